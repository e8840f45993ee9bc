//! R with H = R Rᵀ, R upper triangular: the Cholesky factor that starts at the last column.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Arch, Simd, WithSimd};

use super::Real;
use super::kernel::STRIP;

/// Columns of a block.
const BLOCK: usize = 32;

/// Replaces the upper triangle of `matrix`, `[n, n]` by columns, by R, and returns whether R
/// exists. Elements below the diagonal aren't read, but are overwritten.
///
/// Blocks of columns are computed from the last one, left-looking: one product applies all later
/// blocks to a block.
pub(super) fn upper_cholesky<T: Real>(matrix: &mut [T], size: usize) -> bool {
    let mut end = size;
    while end > 0 {
        let first = (end - 1) / BLOCK * BLOCK;
        let (head, later) = matrix.split_at_mut(end * size);
        let columns = &mut head[first * size..];
        subtract_products(columns, later, [first, end], size);
        if !Arch::new().dispatch(Diagonal { columns, first, size }) {
            return false;
        }
        Arch::new().dispatch(Panel { columns, first, size });
        end = first;
    }
    true
}

/// Subtracts R_[0..end, later] R_[first..end, later]ᵀ from columns `first` to `end`.
fn subtract_products<T: Real>(
    columns: &mut [T],
    later: &[T],
    [first, end]: [usize; 2],
    size: usize,
) {
    let later = MatRef::from_column_major_slice(later, size, size - end);
    let columns =
        MatMut::from_column_major_slice_mut(columns, size, end - first).subrows_mut(0, end);
    let block = later.subrows(first, end - first).transpose();
    matmul(columns, Accum::Add, later.subrows(0, end), block, -T::ONE, Par::Seq);
}

/// Factors a diagonal block, one column after another from the last; returns whether that worked.
struct Diagonal<'a, T> {
    columns: &'a mut [T],
    first: usize,
    size: usize,
}

impl<T: Real> WithSimd for Diagonal<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        let Self { columns, first, size } = self;
        for k in (0..columns.len() / size).rev() {
            let (before, column) = columns.split_at_mut(k * size);
            let column = &mut column[first..=first + k];
            let pivot = column[k].root();
            if !(pivot > T::ZERO && pivot.finite()) {
                return false;
            }
            column[k] = pivot;
            for value in &mut column[..k] {
                *value /= pivot;
            }
            for (j, other) in before.chunks_exact_mut(size).enumerate() {
                let times = column[j];
                for (value, by) in other[first..=first + j].iter_mut().zip(&column[..=j]) {
                    *value -= times * *by;
                }
            }
        }
        true
    }
}

/// Solves X Rᵀ = the part above a diagonal block, in place; R is the block's factor.
struct Panel<'a, T> {
    columns: &'a mut [T],
    first: usize,
    size: usize,
}

impl<T: Real> WithSimd for Panel<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { columns, first, size } = self;
        let count = columns.len() / size;
        let takes = negated(columns, first, size);
        let mut strips = vec![[T::ZERO; STRIP]; count];
        for top in (0..first).step_by(STRIP) {
            let rows = STRIP.min(first - top);
            for k in (0..count).rev() {
                let pivot = columns[k * size + first + k];
                let column = &mut columns[k * size + top..][..rows];
                let (strip, solved) = strips[k..].split_at_mut(1);
                strip[0][..rows].copy_from_slice(column);
                let takes = &takes[k * count + k + 1..][..count - k - 1];
                T::feed(simd, &mut strip[0], takes, solved, 1);
                for value in &mut strip[0] {
                    *value /= pivot;
                }
                column.copy_from_slice(&strip[0][..rows]);
            }
        }
    }
}

/// −R above the diagonal of a diagonal block, by rows.
fn negated<T: Real>(columns: &[T], first: usize, size: usize) -> Vec<T> {
    let count = columns.len() / size;
    let mut negated = vec![T::ZERO; count * count];
    for k in 0..count {
        for j in k + 1..count {
            negated[k * count + j] = -columns[j * size + first + k];
        }
    }
    negated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    /// R Rᵀ equals the matrix, for sizes around the edges of blocks and strips.
    #[test]
    fn the_factor_gives_the_matrix_back() {
        for size in [1, 2, 63, 64, 65, 130, 200] {
            let x: Vec<f64> = normal(2 * size * size, 1.0, &mut generator(7, 0))
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            let rows: Vec<&[f64]> = x.chunks(2 * size).collect();
            let product =
                |i: usize, j: usize| rows[i].iter().zip(rows[j]).map(|(a, b)| a * b).sum::<f64>();
            let mut matrix: Vec<f64> =
                (0..size * size).map(|at| product(at / size, at % size)).collect();
            let expected = matrix.clone();
            assert!(upper_cholesky(&mut matrix, size));
            for i in 0..size {
                for j in i..size {
                    let found: f64 =
                        (j..size).map(|k| matrix[k * size + i] * matrix[k * size + j]).sum();
                    assert!(
                        (found - expected[j * size + i]).abs() < 1e-12 * size as f64 * size as f64,
                        "{size}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_matrix_without_a_factor_is_reported() {
        assert!(!upper_cholesky(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!upper_cholesky(&mut [0.0f32], 1));
        assert!(!upper_cholesky(&mut [f64::NAN, 0.0, 0.0, 1.0], 2));
        assert!(!upper_cholesky(&mut [1.0, 0.0, f64::INFINITY, 1.0], 2));
        assert!(upper_cholesky::<f64>(&mut [], 0));
    }
}
