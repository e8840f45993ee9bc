//! The computations of merging a layer, at the sizes of large models:
//! `cargo bench -p moe-math --bench merging`

use candle_core::{DType, Device, Result, Tensor};
use divan::Bencher;
use moe_math::alignment::{distances, permutation};
use moe_math::least_squares::LeastSquares;
use moe_math::linkage::{average_linkage, euclidean};
use moe_math::principal::{Principal, Rows};
use moe_math::sampling::{generator, normal};

fn main() {
    divan::main();
}

fn noise(count: usize, stream: u64) -> Vec<f64> {
    normal(count, 1.0, &mut generator(1, stream)).into_iter().map(f64::from).collect()
}

/// Assigns unrelated neurons in 64 dimensions: their costs are nearly equal, which is the hard
/// case.
#[divan::bench(args = [768, 1408, 2048], sample_count = 3)]
fn assignment(bencher: Bencher<'_, '_>, neurons: usize) {
    let cost = distances(&noise(neurons * 64, 0), &noise(neurons * 64, 1), 64);
    bencher.bench_local(|| permutation(&cost, neurons).expect("a permutation"));
}

#[divan::bench(args = [64, 128, 256], sample_count = 10)]
fn linkage(bencher: Bencher<'_, '_>, experts: usize) {
    let features = noise(experts * 2048, 2);
    bencher.bench_local(|| average_linkage(&euclidean(&features, 2048), experts / 2));
}

#[divan::bench(args = [768, 1408], sample_count = 1)]
fn least_squares(bencher: Bencher<'_, '_>, width: usize) {
    let mut squares = LeastSquares::new(width, 2048).expect("sums");
    let sample = |columns, stream| {
        Tensor::from_vec(noise(4096 * columns, stream), (4096, columns), &Device::Cpu)
    };
    squares.add(&sample(width, 3).expect("p"), &sample(2048, 4).expect("q")).expect("samples");
    bencher.bench_local(|| squares.solve().expect("a solution"));
}

/// Parts of 2048 neurons that all hold the same values, since only the amount of work matters.
struct Neurons {
    parts: usize,
    part: Tensor,
}

impl Rows for Neurons {
    fn width(&self) -> usize {
        self.part.dim(1).expect("a matrix")
    }

    fn parts(&self) -> Vec<usize> {
        vec![self.part.dim(0).expect("a matrix"); self.parts]
    }

    fn some(&self, _: usize, rows: &[u32]) -> Result<Tensor> {
        self.part.index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0)
    }
}

/// Decomposes rows of shape `[experts · 2048, 3 · 2048]`.
#[divan::bench(args = [32, 256], sample_count = 1)]
fn principal(bencher: Bencher<'_, '_>, experts: usize) {
    let part = Tensor::from_vec(noise(2048 * 6144, 5), (2048, 6144), &Device::Cpu)
        .and_then(|t| t.to_dtype(DType::F64));
    let rows = Neurons { parts: experts, part: part.expect("neurons") };
    bencher.bench_local(|| Principal::of(&rows, 64, 0, &Device::Cpu).expect("directions"));
}
