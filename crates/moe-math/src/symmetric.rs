//! Eigenvalues and eigenvectors of symmetric matrices.

use candle_core::{Error, Result};
use faer::{MatRef, Side};

/// A matrix as Σ λ v vᵀ.
pub(crate) struct Eigen {
    /// λ, descending.
    pub values: Vec<f64>,
    /// v, unit vectors `[n, n]`, one in each row, in the order of the values.
    pub vectors: Vec<f64>,
}

/// Decomposes `matrix`, `[n, n]` and symmetric. Runs on the calling thread, so that the result
/// doesn't depend on the number of threads.
pub(crate) fn eigen(matrix: &[f64], n: usize) -> Result<Eigen> {
    let failed =
        |e| Error::Msg(format!("the eigenvalues of a [{n}, {n}] matrix can't be found: {e:?}"));
    let found = MatRef::from_row_major_slice(matrix, n, n)
        .self_adjoint_eigen(Side::Lower)
        .map_err(failed)?;
    let (values, vectors) = (found.S().column_vector(), found.U());
    let descending = || (0..n).rev();
    Ok(Eigen {
        values: descending().map(|i| values[i]).collect(),
        vectors: descending().flat_map(|i| (0..n).map(move |row| vectors[(row, i)])).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let found = eigen(&[2.0, 1.0, 1.0, 2.0], 2).unwrap();
        assert!((found.values[0] - 3.0).abs() < 1e-14 && (found.values[1] - 1.0).abs() < 1e-14);
        assert!((found.vectors[0] - found.vectors[1]).abs() < 1e-14, "(1, 1)/√2 first");
        assert!(
            eigen(&[f64::NAN; 4], 2).is_err()
                || eigen(&[f64::NAN; 4], 2).unwrap().values[0].is_nan()
        );
    }
}
