//! Random orthonormal rows.

use candle_core::{Result, bail};
use rand_core::RngCore;
use rand_distr::{Distribution, StandardNormal};

use crate::reduce::dot;

/// `gain` times orthonormal rows `[n, d]`, row-major and Haar distributed: the QR factor Q of a
/// Gaussian matrix, with signs chosen so that R's diagonal is positive (Mezzadri, math-ph/0609050).
/// For n ≤ d this is torch's `nn.init.orthogonal_`.
///
/// For n > d, the n rows can't be orthonormal. torch then makes the columns orthonormal, and the
/// rows shorter than `gain`. A router needs rows of equal length, so here each block of d rows is
/// orthonormal, and independent of the other blocks.
///
/// # Errors
/// If the Gaussian rows are linearly dependent, which has probability 0.
pub fn rows(n: usize, d: usize, gain: f64, generator: &mut impl RngCore) -> Result<Vec<f64>> {
    let mut rows: Vec<f64> = (0..n * d).map(|_| StandardNormal.sample(generator)).collect();
    for block in rows.chunks_mut((d * d).max(1)) {
        orthonormalize(block, d)?;
    }
    rows.iter_mut().for_each(|x| *x *= gain);
    Ok(rows)
}

/// Replaces the rows of `a` `[n, d]`, n ≤ d, with those of Qᵀ in Aᵀ = QR, with R's diagonal
/// positive.
///
/// Modified Gram–Schmidt with every projection done twice: "twice is enough" for orthogonality up
/// to rounding (Giraud et al., Numer. Math. 101, 2005). It runs in f64 on the calling thread and
/// takes 4·n²·d operations.
///
/// # Errors
/// If a row depends linearly on those before it.
pub fn orthonormalize(a: &mut [f64], d: usize) -> Result<()> {
    for i in 0..a.len() / d.max(1) {
        let (done, rest) = a.split_at_mut(i * d);
        let row = &mut rest[..d];
        let before = dot(row, row).sqrt();
        for _ in 0..2 {
            done.chunks_exact(d).for_each(|q| project_out(q, row));
        }
        let norm = dot(row, row).sqrt();
        if norm.is_nan() || norm <= before * f64::EPSILON * d as f64 {
            bail!("row {i} of [{}, {d}] depends linearly on the rows before it", a.len() / d);
        }
        row.iter_mut().for_each(|x| *x /= norm);
    }
    Ok(())
}

/// row −= (q · row) q.
fn project_out(q: &[f64], row: &mut [f64]) {
    let along = dot(q, row);
    row.iter_mut().zip(q).for_each(|(x, q)| *x -= along * q);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::generator;

    /// The largest |QQᵀ − gain²·I| of rows `[n, d]`.
    fn deviation(rows: &[f64], d: usize, gain: f64) -> f64 {
        let list: Vec<&[f64]> = rows.chunks_exact(d).collect();
        let entry =
            |i: usize, j: usize| dot(list[i], list[j]) - if i == j { gain * gain } else { 0.0 };
        let entries = (0..list.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
        entries.map(|(i, j)| entry(i, j).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn rows_are_orthonormal_times_gain() {
        for (n, d) in [(1, 1), (3, 7), (64, 64), (60, 512), (128, 130)] {
            let rows = rows(n, d, 0.5, &mut generator(3, n as u64)).unwrap();
            assert_eq!(rows.len(), n * d);
            assert!(deviation(&rows, d, 0.5) < 1e-12, "[{n}, {d}]: {:e}", deviation(&rows, d, 0.5));
        }
    }

    #[test]
    fn more_rows_than_columns_come_in_orthonormal_blocks() {
        let (n, d) = (21, 8);
        let rows = rows(n, d, 1.0, &mut generator(4, 0)).unwrap();
        for block in rows.chunks(d * d) {
            assert!(deviation(block, d, 1.0) < 1e-12);
        }
        assert_ne!(rows[..d], rows[d * d..d * d + d], "blocks are independent");
    }

    /// Every entry of a Haar distributed matrix has mean 0 and variance 1/d. Without the fixed
    /// signs the mean is biased.
    #[test]
    fn entries_have_the_moments_of_the_haar_distribution() {
        let (d, draws) = (4, 4000);
        let mut first = vec![0f64; d * d];
        let mut second = vec![0f64; d * d];
        for draw in 0..draws {
            let rows = rows(d, d, 1.0, &mut generator(5, draw)).unwrap();
            for (i, x) in rows.iter().enumerate() {
                first[i] += x / draws as f64;
                second[i] += x * x / draws as f64;
            }
        }
        // Five standard errors; the variance of x² is below 2/d².
        let error = 5.0 * (1.0 / (d as f64 * draws as f64)).sqrt();
        assert!(first.iter().all(|m| m.abs() < error), "{first:?}");
        let error = 5.0 * (2.0 / (d as f64 * d as f64 * draws as f64)).sqrt();
        assert!(second.iter().all(|m| (m - 0.25).abs() < error), "{second:?}");
    }

    /// One pass of Gram–Schmidt would leave errors of 1e-16 · 1e8 along the earlier rows.
    #[test]
    fn nearly_parallel_rows_become_orthonormal() {
        let d = 20;
        let mut a: Vec<f64> = rows(10, d, 1e-8, &mut generator(6, 0)).unwrap();
        a.iter_mut().for_each(|x| *x += 1.0);
        orthonormalize(&mut a, d).unwrap();
        assert!(deviation(&a, d, 1.0) < 1e-12, "{:e}", deviation(&a, d, 1.0));
    }

    #[test]
    fn dependent_rows_are_refused() {
        let mut a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 5.0, 7.0, 9.0];
        assert!(orthonormalize(&mut a, 3).unwrap_err().to_string().contains("row 2"));
        assert!(orthonormalize(&mut [f64::NAN, 1.0], 2).is_err());
        assert!(
            orthonormalize(&mut [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2).is_err(),
            "more rows than columns"
        );
    }

    #[test]
    fn a_seed_repeats() {
        let draw = |seed| rows(3, 5, 1.0, &mut generator(seed, 0)).unwrap();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
