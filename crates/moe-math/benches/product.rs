//! A few rows times a bf16 matrix, by our kernel and by widening and `gemm`:
//! `cargo bench -p moe-math --bench product`

use candle_core::{DType, Device, Tensor};
use divan::{Bencher, counter::ItemsCount};
use moe_math::product::{product, widened_product};

const ROWS: [usize; 8] = [1, 4, 8, 16, 32, 64, 128, 256];
/// `[out, in]` of SmolLM2-135M's up and down projections, and of a large expert's projection.
const SHAPES: [(usize, usize); 3] = [(1536, 576), (576, 1536), (2048, 4096)];

fn main() {
    divan::main();
}

fn operands(rows: usize, (out, width): (usize, usize)) -> (Tensor, Tensor) {
    let make =
        |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor");
    (make((rows, width)), make((out, width)).to_dtype(DType::BF16).expect("a tensor"))
}

fn flops(rows: usize, (out, width): (usize, usize)) -> ItemsCount {
    ItemsCount::new(2 * rows * out * width)
}

#[divan::bench(consts = [0, 1, 2], args = ROWS)]
fn kernel<const SHAPE: usize>(bencher: Bencher<'_, '_>, rows: usize) {
    let (x, w) = operands(rows, SHAPES[SHAPE]);
    bencher.counter(flops(rows, SHAPES[SHAPE])).bench(|| product(&x, &w).expect("a product"));
}

#[divan::bench(consts = [0, 1, 2], args = ROWS)]
fn widened_gemm<const SHAPE: usize>(bencher: Bencher<'_, '_>, rows: usize) {
    let (x, w) = operands(rows, SHAPES[SHAPE]);
    bencher
        .counter(flops(rows, SHAPES[SHAPE]))
        .bench(|| widened_product(&x, &w).expect("a product"));
}
