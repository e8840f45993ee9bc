//! `x Wᵀ` for a few rows of x, straight from the stored encoding of W.
//!
//! A general matrix product first packs its operands, here after widening W to f32. For a few
//! tokens, an expert's usual share, that costs more than the product itself. This kernel reads W
//! once in its stored encoding, and widens a few rows at a time in the cache.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::graph::tied_to_both;

/// Up to this many rows of x, this kernel is faster than widening W and multiplying by `gemm`,
/// except for matrices with few columns.
const FEW_ROWS: usize = 128;
/// Rows of W that a thread takes at a time. In f32, they and rows of x fit into the second-level
/// cache.
const BLOCK: usize = 16;
/// A tile is this many rows of W times this many rows of x; its sums stay in registers.
const TILE: usize = 4;

/// `x Wᵀ` in the dtype of `x`. `x` is `[rows, in]`; `weight` is `[out, in]`, in its stored encoding
/// or the dtype of `x`.
///
/// # Errors
/// For shapes that don't match, and encodings other than F32, F16 and BF16.
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let few = x.device().is_cpu() && x.dtype() == DType::F32 && x.dim(0)? <= FEW_ROWS;
    let value = if few {
        x.contiguous()?.apply_op2_no_bwd(weight, &FewRows)?
    } else {
        widened_product(&x.detach(), &weight.detach())?
    };
    let trains = [x.track_op(), weight.track_op()];
    tied_to_both(value, x, weight, move |x, weight, gradient| {
        product_backward(x, weight, gradient, trains)
    })
}

/// ∂x = g W and ∂W = gᵀ x, if they are needed.
fn product_backward(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    [to_x, to_weight]: [bool; 2],
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let gradient = gradient.contiguous()?;
    let to_x = to_x.then(|| gradient.matmul(&widened(weight, gradient.dtype())?)).transpose()?;
    let to_weight = to_weight
        .then(|| gradient.t()?.matmul(&x.contiguous()?)?.to_dtype(weight.dtype()))
        .transpose()?;
    Ok((to_x, to_weight))
}

/// Like `product`, but for any number of rows it widens `weight` and uses the device's library.
///
/// # Errors
/// As for [`product`].
pub fn widened_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&widened(weight, x.dtype())?.t()?)
}

/// `weight` in `dtype`. On the CPU all threads convert, unlike in candle's conversion.
fn widened(weight: &Tensor, dtype: DType) -> Result<Tensor> {
    if weight.dtype() == dtype || dtype != DType::F32 || !weight.device().is_cpu() {
        return weight.to_dtype(dtype);
    }
    weight.apply_op1_no_bwd(&ToF32)
}

struct ToF32;

impl CustomOp1 for ToF32 {
    fn name(&self) -> &'static str {
        "widening to f32"
    }

    fn cpu_fwd(&self, w: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("only contiguous tensors are widened")
        };
        let values = match w {
            CpuStorage::F16(w) => all_widened(&w[start..end]),
            CpuStorage::BF16(w) => all_widened(&w[start..end]),
            _ => bail!("{:?} is not a weight encoding", w.dtype()),
        };
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }
}

fn all_widened<T: WidenToF32>(w: &[T]) -> Vec<f32> {
    const PART: usize = 1 << 14;
    let mut values = vec![0f32; w.len()];
    values.par_chunks_mut(PART).zip(w.par_chunks(PART)).for_each(|(to, from)| T::widen(from, to));
    values
}

struct FewRows;

impl CustomOp2 for FewRows {
    fn name(&self) -> &'static str {
        "product of a few rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = lx.shape().dims2()?;
        let (out, inner) = lw.shape().dims2()?;
        let (Some((x0, x1)), Some((w0, w1))) = (lx.contiguous_offsets(), lw.contiguous_offsets())
        else {
            bail!("a product of a few rows takes contiguous operands")
        };
        if width != inner {
            bail!("rows of {width} can't be multiplied by a matrix of rows of {inner}");
        }
        let x = &x.as_slice::<f32>()?[x0..x1];
        let y = match w {
            CpuStorage::F32(w) => few_rows(x, &w[w0..w1], rows, out, width),
            CpuStorage::F16(w) => few_rows(x, &w[w0..w1], rows, out, width),
            CpuStorage::BF16(w) => few_rows(x, &w[w0..w1], rows, out, width),
            _ => bail!("no product with weights of {:?}", w.dtype()),
        };
        Ok((CpuStorage::F32(y), Shape::from((rows, out))))
    }
}

/// An encoding that can be widened to f32.
trait WidenToF32: Copy + Sync {
    fn widen(from: &[Self], to: &mut [f32]);
}

impl WidenToF32 for f32 {
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl WidenToF32 for bf16 {
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

impl WidenToF32 for f16 {
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// Each sum is made by one thread in a fixed order, so that the result doesn't depend on the number
/// of threads.
fn few_rows<T: WidenToF32>(x: &[f32], w: &[T], rows: usize, out: usize, width: usize) -> Vec<f32> {
    if rows * out * width == 0 {
        return vec![0.0; rows * out];
    }
    let arch = Arch::new();
    let mut transposed = vec![0f32; out * rows];
    transposed.par_chunks_mut(BLOCK * rows).zip(w.par_chunks(BLOCK * width)).for_each_init(
        || vec![0f32; BLOCK * width],
        |wide, (y, w)| arch.dispatch(ProductBlock { x, w, wide, y, rows, width }),
    );
    let mut y = vec![0f32; rows * out];
    y.par_chunks_mut(out).enumerate().for_each(|(row, y)| {
        for (y, column) in y.iter_mut().zip(transposed.chunks_exact(rows)) {
            *y = column[row];
        }
    });
    y
}

/// Some rows of W times all rows of x; `y` is `[rows of W, rows of x]`.
struct ProductBlock<'a, T> {
    x: &'a [f32],
    w: &'a [T],
    /// Buffer for the widened rows.
    wide: &'a mut [f32],
    y: &'a mut [f32],
    rows: usize,
    width: usize,
}

impl<T: WidenToF32> WithSimd for ProductBlock<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, wide, y, rows, width } = self;
        let wide = &mut wide[..w.len()];
        T::widen(w, wide);
        for (first, x) in x.chunks(TILE * width).enumerate() {
            let x: [&[f32]; TILE] = std::array::from_fn(|i| row(x, i, width));
            for (w, y) in wide.chunks(TILE * width).zip(y.chunks_mut(TILE * rows)) {
                let sums = tile(simd, std::array::from_fn(|i| row(w, i, width)), x);
                for (y, sums) in y.chunks_exact_mut(rows).zip(sums) {
                    for (y, sum) in y[first * TILE..].iter_mut().zip(sums) {
                        *y = sum;
                    }
                }
            }
        }
    }
}

/// Row `i`, or the first row if the tile has fewer; its sums are computed and not used.
#[inline(always)]
fn row(block: &[f32], i: usize, width: usize) -> &[f32] {
    let start = if (i + 1) * width <= block.len() { i * width } else { 0 };
    &block[start..start + width]
}

/// Uses loops rather than closures in `array::map`, since only inlined code gets the instructions
/// of `S`.
#[inline(always)]
fn tile<S: Simd>(simd: S, w: [&[f32]; TILE], x: [&[f32]; TILE]) -> [[f32; TILE]; TILE] {
    let (mut wide_w, rest_w) = vectors::<S>(w);
    let (mut wide_x, rest_x) = vectors::<S>(x);
    let mut sums = [[simd.splat_f32s(0.0); TILE]; TILE];
    let length = wide_w[0].len();
    // Tells the compiler once that all rows have one length.
    for i in 0..TILE {
        (wide_w[i], wide_x[i]) = (&wide_w[i][..length], &wide_x[i][..length]);
    }
    for at in 0..length {
        for i in 0..TILE {
            for j in 0..TILE {
                sums[i][j] = simd.mul_add_f32s(wide_w[i][at], wide_x[j][at], sums[i][j]);
            }
        }
    }
    if !rest_w[0].is_empty() {
        add_rest(simd, &mut sums, rest_w, rest_x);
    }
    reduced(simd, sums)
}

/// Adds the products of the elements after the last whole vectors.
#[inline(always)]
fn add_rest<S: Simd>(
    simd: S,
    sums: &mut [[S::f32s; TILE]; TILE],
    rest_w: [&[f32]; TILE],
    rest_x: [&[f32]; TILE],
) {
    for i in 0..TILE {
        for j in 0..TILE {
            let (w, x) = (simd.partial_load_f32s(rest_w[i]), simd.partial_load_f32s(rest_x[j]));
            sums[i][j] = simd.mul_add_f32s(w, x, sums[i][j]);
        }
    }
}

/// The whole vectors of each row, and the elements after them.
#[inline(always)]
fn vectors<S: Simd>(rows: [&[f32]; TILE]) -> ([&[S::f32s]; TILE], [&[f32]; TILE]) {
    let (mut wide, mut rest) = ([&[] as &[S::f32s]; TILE], [&[] as &[f32]; TILE]);
    for i in 0..TILE {
        (wide[i], rest[i]) = S::as_simd_f32s(rows[i]);
    }
    (wide, rest)
}

/// The sum over the elements of each vector.
#[inline(always)]
fn reduced<S: Simd>(simd: S, sums: [[S::f32s; TILE]; TILE]) -> [[f32; TILE]; TILE] {
    let mut found = [[0.0; TILE]; TILE];
    for i in 0..TILE {
        for j in 0..TILE {
            found[i][j] = simd.reduce_sum_f32s(sums[i][j]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::encoding::{decode_f32, encode_f32};
    use crate::graph::differences;
    use crate::sampling;

    /// Compares with sums in f64, for sizes around the edges of blocks and tiles.
    #[test]
    fn few_rows_agree_with_f64() {
        let mut random = sampling::generator(1, 0);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (rows, out, width) in
                [(1, 1, 1), (3, 17, 31), (4, 16, 64), (5, 33, 67), (64, 40, 129), (2, 0, 4)]
            {
                let x = sampling::normal(rows * width, 1.0, &mut random);
                let bytes =
                    encode_f32(&sampling::normal(out * width, 1.0, &mut random), dtype).unwrap();
                let w = decode_f32(&bytes, dtype).unwrap();
                let weight =
                    Tensor::from_raw_buffer(&bytes, dtype, &[out, width], &Device::Cpu).unwrap();
                let input = Tensor::from_slice(&x, (rows, width), &Device::Cpu).unwrap();
                let found: Vec<Vec<f32>> = product(&input, &weight).unwrap().to_vec2().unwrap();
                assert_eq!(found.len(), rows);
                for (x, found) in x.chunks(width).zip(&found) {
                    assert_eq!(found.len(), out);
                    for (w, found) in w.chunks(width).zip(found) {
                        let exact: f64 =
                            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let scale: f64 = x
                            .iter()
                            .zip(w)
                            .map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs())
                            .sum();
                        assert!(
                            (exact - f64::from(*found)).abs() <= 1e-6 * scale,
                            "{rows}×{out}×{width}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn many_rows_agree_with_few() {
        let mut random = sampling::generator(2, 0);
        let (out, width) = (24, 48);
        let w = encode_f32(&sampling::normal(out * width, 1.0, &mut random), DType::BF16).unwrap();
        let w = Tensor::from_raw_buffer(&w, DType::BF16, &[out, width], &Device::Cpu).unwrap();
        let x = sampling::normal((FEW_ROWS + 1) * width, 1.0, &mut random);
        let x = Tensor::from_vec(x, (FEW_ROWS + 1, width), &Device::Cpu).unwrap();
        let many = product(&x, &w).unwrap().narrow(0, 0, 3).unwrap();
        let few = product(&x.narrow(0, 0, 3).unwrap(), &w).unwrap();
        let worst =
            (many - few).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-4, "{worst}");
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut random = sampling::generator(3, 0);
        for rows in [3, FEW_ROWS + 1] {
            let mut matrix = |rows, columns| {
                let values = sampling::normal(rows * columns, 1.0, &mut random);
                candle_core::Var::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
            };
            let (x, w) = (matrix(rows, 6), matrix(5, 6));
            assert!(differences(&[&x, &w], 1, |t| product(&t[0], &t[1])) < 1e-3);
        }
    }

    #[test]
    fn shapes_that_do_not_match_are_an_error() {
        let x = Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        let w = Tensor::zeros((3, 4), DType::BF16, &Device::Cpu).unwrap();
        assert!(product(&x, &w).is_err());
    }
}
