//! GPTQ of a layer's experts beside matrix products of as many operations. The ratio of their items
//! per second is the share of the machine that GPTQ uses.
//!
//! `cargo bench -p moe-math --bench quantize`

use candle_core::DType;
use divan::{Bencher, counter::ItemsCount};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use moe_math::quantize::{
    Damping, Factor, GptqOptions, GridScheme, Hessian, Problem, factorize, objective, pack,
    round_to_nearest, solve,
};
use moe_math::sampling::{generator, normal};
use rayon::prelude::*;

/// `[experts, N, K]`: small experts, Qwen3-30B-A3B's up and down projections, and wide experts.
const SHAPES: [[usize; 3]; 4] = [[32, 512, 512], [8, 768, 2048], [8, 2048, 768], [4, 2048, 4096]];

fn main() {
    divan::main();
}

fn random(count: usize, seed: u64) -> Vec<f32> {
    normal(count, 1.0, &mut generator(seed, 0))
}

fn hessian(width: usize) -> Hessian {
    let mut hessian = Hessian::new(width);
    hessian.add(&random(width / 2 * width, 1), None).expect("whole rows");
    hessian
}

fn factor(width: usize, act_order: bool) -> Factor<f32> {
    factorize(&hessian(width), &Damping::default(), act_order).expect("a factor")
}

fn options(clip_search: bool) -> GptqOptions {
    GptqOptions {
        scheme: GridScheme { bits: 4, symmetric: true, group: Some(128), scale_dtype: DType::BF16 },
        clip_search,
    }
}

fn solving(
    bencher: Bencher<'_, '_>,
    [experts, rows, width]: [usize; 3],
    act_order: bool,
    clip_search: bool,
) {
    let factors: Vec<_> = (0..experts).map(|_| factor(width, act_order)).collect();
    let weights: Vec<_> = (0..experts).map(|e| random(rows * width, e as u64)).collect();
    let problems: Vec<_> =
        weights.iter().zip(&factors).map(|(weight, factor)| Problem { weight, factor }).collect();
    bencher
        .counter(ItemsCount::new(experts * rows * width * width))
        .bench(|| solve(&problems, [rows, width], &options(clip_search)).expect("codes"));
}

#[divan::bench(args = SHAPES)]
fn codes(bencher: Bencher<'_, '_>, shape: [usize; 3]) {
    solving(bencher, shape, false, false);
}

#[divan::bench(args = SHAPES)]
fn codes_in_act_order(bencher: Bencher<'_, '_>, shape: [usize; 3]) {
    solving(bencher, shape, true, false);
}

#[divan::bench(args = SHAPES)]
fn codes_clipped(bencher: Bencher<'_, '_>, shape: [usize; 3]) {
    solving(bencher, shape, false, true);
}

#[divan::bench(args = SHAPES)]
fn factors(bencher: Bencher<'_, '_>, [experts, _, width]: [usize; 3]) {
    let hessian = hessian(width);
    bencher.counter(ItemsCount::new(experts * width * width * width / 3)).bench(|| {
        (0..experts).into_par_iter().for_each(|_| {
            divan::black_box(factorize(&hessian, &Damping::default(), true).expect("a factor"));
        });
    });
}

/// Counts half of the operations of the whole product, since H is symmetric.
#[divan::bench(args = SHAPES)]
fn hessians(bencher: Bencher<'_, '_>, [experts, tokens, width]: [usize; 3]) {
    let x = random(tokens * width, 1);
    let mut sums: Vec<Hessian> = (0..experts).map(|_| Hessian::new(width)).collect();
    bencher
        .counter(ItemsCount::new(experts * tokens * width * width))
        .bench_local(|| sums.iter_mut().for_each(|sum| sum.add(&x, None).expect("whole rows")));
}

/// Computes `[N, K] [K, K]` for each expert, with the experts side by side.
#[divan::bench(args = SHAPES)]
fn products(bencher: Bencher<'_, '_>, [experts, rows, width]: [usize; 3]) {
    let (a, b) = (random(rows * width, 1), random(width * width, 2));
    bencher.counter(ItemsCount::new(2 * experts * rows * width * width)).bench(|| {
        (0..experts).into_par_iter().for_each(|_| {
            let mut c = vec![0f32; rows * width];
            let to = MatMut::from_column_major_slice_mut(&mut c, rows, width);
            let a = MatRef::from_column_major_slice(&a, rows, width);
            let b = MatRef::from_column_major_slice(&b, width, width);
            matmul(to, Accum::Replace, a, b, 1.0, Par::Seq);
            divan::black_box(c);
        });
    });
}

#[divan::bench(args = SHAPES)]
fn objectives(bencher: Bencher<'_, '_>, [experts, rows, width]: [usize; 3]) {
    let (weight, hessian) = (random(rows * width, 1), hessian(width));
    let codes = round_to_nearest(&weight, [rows, width], &options(false).scheme)
        .expect("codes")
        .dequantize();
    bencher.counter(ItemsCount::new(2 * experts * rows * width * width)).bench(|| {
        (0..experts)
            .map(|_| objective(&weight, &codes, &hessian).expect("energies"))
            .collect::<Vec<_>>()
    });
}

/// Items are weights.
#[divan::bench(args = SHAPES)]
fn rounded_to_nearest(bencher: Bencher<'_, '_>, [_, rows, width]: [usize; 3]) {
    let weight = random(rows * width, 1);
    bencher
        .counter(ItemsCount::new(rows * width))
        .bench(|| round_to_nearest(&weight, [rows, width], &options(false).scheme).expect("codes"));
}

/// Items are weights.
#[divan::bench(args = [2, 3, 4, 8])]
fn packed(bencher: Bencher<'_, '_>, bits: u32) {
    let codes: Vec<u8> = (0..2048 * 768usize).map(|i| (i % (1 << bits)) as u8).collect();
    bencher
        .counter(ItemsCount::new(codes.len()))
        .bench(|| pack::pack_rows(&codes, 768, bits).expect("words"));
}
