//! Principal components of rows that needn't fit in memory.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use crate::orthogonal::orthonormalize;
use crate::sampling::{generator, normal};
use crate::symmetric::eigen;

/// Up to this many columns, the covariance is computed and decomposed exactly.
const MAX_EXACT_WIDTH: usize = 2048;
/// Maximum number of wider rows that are used. With 6144 columns they take 400 MB in f32.
const MAX_SAMPLE_ROWS: usize = 16_384;
/// Number of directions that a search carries in addition to those that are asked for.
const SPARE_DIRECTIONS: usize = 32;
/// Number of times that a search passes over the sample.
const ITERATIONS: usize = 6;

/// The directions in which rows vary most.
#[derive(Debug)]
pub struct Principal {
    /// `[d]`, mean over the rows.
    mean: Tensor,
    /// `[d, r]`, orthonormal columns.
    directions: Tensor,
    /// Σ of the squared scores along each direction, descending.
    pub values: Vec<f64>,
}

/// The maximum number of bytes that [`Principal::of`] holds for `count` rows of width `d`, of which
/// `part` are made at a time.
pub fn bytes(count: usize, part: usize, d: usize) -> usize {
    if d <= MAX_EXACT_WIDTH {
        // A part, and the part minus its mean; the covariance, the addition of a part, their sum,
        // and the memory of the decomposition.
        return 8 * (2 * part * d + 5 * d * d);
    }
    // First the parts and their concatenation in f64, then the concatenation and the centered rows
    // in f32.
    16 * count.min(MAX_SAMPLE_ROWS) * d
}

/// Rows of width `d`, in parts that are made on request as f64 tensors on the CPU.
pub trait Rows: Sync {
    /// Number of columns.
    fn width(&self) -> usize;

    /// The number of rows of each part.
    fn parts(&self) -> Vec<usize>;

    /// The given rows of a part, which ascend: `[n, d]`.
    ///
    /// # Errors
    /// If reading fails.
    fn some(&self, part: usize, rows: &[u32]) -> Result<Tensor>;

    /// The total number of rows.
    fn count(&self) -> usize {
        self.parts().iter().sum()
    }

    /// All rows of a part.
    ///
    /// # Errors
    /// If reading fails.
    fn part(&self, part: usize) -> Result<Tensor> {
        self.some(part, &Vec::from_iter(0..self.parts()[part] as u32))
    }
}

impl Principal {
    /// The first `rank` principal directions of `rows`, or as many as the rows have dimensions.
    ///
    /// Exact up to rounding for widths up to 2048, from the eigenvectors of the covariance in f64.
    /// For wider rows, up to 16,384 evenly spaced rows are searched by 6 rounds of subspace
    /// iteration, which starts at directions drawn by `seed`, with 32 spare ones and a
    /// Rayleigh–Ritz step (Halko, Martinsson and Tropp, 0909.4061, algorithm 4.4); its products are
    /// f32 on `device`. The values found are less than 1 % below the sample's, even if the spectrum
    /// is flat; directions of nearly equal values mix.
    ///
    /// # Errors
    /// If `rows` or the device fails.
    pub fn of(rows: &impl Rows, rank: usize, seed: u64, device: &Device) -> Result<Self> {
        let rank = rank.min(rows.width()).min(rows.count());
        if rows.width() <= MAX_EXACT_WIDTH {
            exact(rows, rank)
        } else {
            searched(sample(rows)?, rank, seed, device)
        }
    }

    /// Number of directions.
    pub fn rank(&self) -> usize {
        self.values.len()
    }

    /// Scores of `rows`, `[n, d]`, as `[n, r]` row by row.
    ///
    /// # Errors
    /// If the device fails.
    pub fn scores(&self, rows: &Tensor) -> Result<Vec<f64>> {
        rows.broadcast_sub(&self.mean)?.matmul(&self.directions)?.flatten_all()?.to_vec1()
    }
}

fn mean(rows: &impl Rows) -> Result<Tensor> {
    let mut sum = Tensor::zeros(rows.width(), DType::F64, &Device::Cpu)?;
    for index in 0..rows.parts().len() {
        sum = (sum + rows.part(index)?.sum(0)?)?;
    }
    sum / (rows.count() as f64).max(1.0)
}

fn exact(rows: &impl Rows, rank: usize) -> Result<Principal> {
    let (d, mean) = (rows.width(), mean(rows)?);
    let mut covariance = Tensor::zeros((d, d), DType::F64, &Device::Cpu)?;
    for index in 0..rows.parts().len() {
        let centered = rows.part(index)?.broadcast_sub(&mean)?;
        covariance = (covariance + centered.t()?.matmul(&centered)?)?;
    }
    let found = eigen(&covariance.flatten_all()?.to_vec1::<f64>()?, d)?;
    let directions = Tensor::from_slice(&found.vectors[..rank * d], (rank, d), &Device::Cpu)?
        .t()?
        .contiguous()?;
    Ok(Principal { mean, directions, values: found.values[..rank].to_vec() })
}

/// Evenly spaced rows in f64, `[n, d]`.
fn sample(rows: &impl Rows) -> Result<Tensor> {
    let step = rows.count().div_ceil(MAX_SAMPLE_ROWS).max(1);
    let mut first = 0;
    let chosen = rows.parts().into_iter().map(|count| {
        let here: Vec<u32> = (0..count)
            .filter(|row| (first + row).is_multiple_of(step))
            .map(|row| row as u32)
            .collect();
        first += count;
        here
    });
    let chosen: Vec<Vec<u32>> = chosen.collect();
    let read = chosen.par_iter().enumerate().filter(|(_, here)| !here.is_empty());
    Tensor::cat(&read.map(|(part, here)| rows.some(part, here)).collect::<Result<Vec<_>>>()?, 0)
}

fn searched(sample: Tensor, rank: usize, seed: u64, device: &Device) -> Result<Principal> {
    let (n, d) = sample.dims2()?;
    let k = (rank + SPARE_DIRECTIONS).min(d);
    let mean = (sample.sum(0)? / (n as f64).max(1.0))?;
    let x = centered(sample, &mean)?.to_device(device)?;
    let start: Vec<f64> =
        normal(k * d, 1.0, &mut generator(seed, 0)).into_iter().map(f64::from).collect();
    let mut q = start.clone();
    orthonormalize(&mut q, d)?;
    for _ in 1..ITERATIONS {
        let mut next: Vec<f64> = covariance_times(&x, &q)?.flatten_all()?.to_vec1()?;
        // A small part of the start keeps directions independent if the rows span fewer.
        let size = next.iter().fold(f64::MIN_POSITIVE, |most, x| x.abs().max(most));
        next.iter_mut().zip(&start).for_each(|(x, start)| *x += 1e-9 * size * start);
        orthonormalize(&mut next, d)?;
        q = next;
    }
    let image = covariance_times(&x, &q)?;
    let q = Tensor::from_vec(q, (k, d), &Device::Cpu)?;
    let (directions, values) = rayleigh_ritz(&q, &image, rank)?;
    Ok(Principal { mean, directions, values })
}

/// The first `rank` directions within the span of the rows of `q`, `[k, d]`, for the matrix that
/// maps `q` to `image`, and its values along them.
fn rayleigh_ritz(q: &Tensor, image: &Tensor, rank: usize) -> Result<(Tensor, Vec<f64>)> {
    let k = q.dim(0)?;
    let small = q.matmul(&image.t()?)?;
    let symmetric = ((&small + small.t()?)? / 2.0)?;
    let found = eigen(&symmetric.flatten_all()?.to_vec1::<f64>()?, k)?;
    let rotation = Tensor::from_slice(&found.vectors[..rank * k], (rank, k), &Device::Cpu)?;
    Ok((rotation.matmul(q)?.t()?.contiguous()?, found.values[..rank].to_vec()))
}

/// Rows minus their mean, in f32. Blocks are centered in f64 one at a time, since a centered f64
/// copy would be as large as the rows.
fn centered(rows: Tensor, mean: &Tensor) -> Result<Tensor> {
    const BLOCK: usize = 512;
    let (n, d) = rows.dims2()?;
    let mut values: Vec<f32> = Vec::with_capacity(n * d);
    for first in (0..n).step_by(BLOCK) {
        let some = rows
            .narrow(0, first, BLOCK.min(n - first))?
            .broadcast_sub(mean)?
            .to_dtype(DType::F32)?;
        values.extend(some.flatten_all()?.to_vec1::<f32>()?);
    }
    Tensor::from_vec(values, (n, d), &Device::Cpu)
}

/// Xᵀ X q for each row of `q`, `[k, d]`, f64 on the CPU; `x` is `[n, d]`.
fn covariance_times(x: &Tensor, q: &[f64]) -> Result<Tensor> {
    let (_, d) = x.dims2()?;
    let q = Tensor::from_slice(q, (q.len() / d, d), &Device::Cpu)?
        .to_dtype(DType::F32)?
        .to_device(x.device())?;
    let scores = x.matmul(&q.t()?)?;
    scores.t()?.matmul(x)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Whole(Tensor);

    impl Rows for Whole {
        fn width(&self) -> usize {
            self.0.dim(1).unwrap()
        }

        fn parts(&self) -> Vec<usize> {
            let all = self.0.dim(0).unwrap();
            vec![all / 2, all - all / 2]
        }

        fn some(&self, part: usize, rows: &[u32]) -> Result<Tensor> {
            let first = (part * self.parts()[0]) as u32;
            let rows: Vec<u32> = rows.iter().map(|row| first + row).collect();
            self.0.index_select(&Tensor::from_slice(&rows, rows.len(), &Device::Cpu)?, 0)
        }
    }

    /// Rows whose standard deviation along coordinate i is `spread(i)`.
    fn rows(n: usize, d: usize, spread: impl Fn(usize) -> f64) -> Whole {
        let noise = normal(n * d, 1.0, &mut generator(7, 1));
        let values: Vec<f64> = noise
            .into_iter()
            .enumerate()
            .map(|(i, x)| 3.0 + f64::from(x) * spread(i % d))
            .collect();
        Whole(Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap())
    }

    fn searched_and_exact(rows: &Whole, rank: usize) -> [Principal; 2] {
        [
            searched(sample(rows).unwrap(), rank, 0, &Device::Cpu).unwrap(),
            exact(rows, rank).unwrap(),
        ]
    }

    #[test]
    fn a_search_finds_values_that_decay() {
        let [searched, exact] = searched_and_exact(&rows(300, 150, |i| 0.9f64.powi(i as i32)), 8);
        for (found, value) in searched.values.iter().zip(&exact.values) {
            assert!((found / value - 1.0).abs() < 1e-5, "{found} is not {value}");
        }
    }

    #[test]
    fn a_search_finds_nearly_as_much_in_noise() {
        let [searched, exact] = searched_and_exact(&rows(600, 300, |_| 1.0), 16);
        let share = searched.values.iter().sum::<f64>() / exact.values.iter().sum::<f64>();
        assert!((0.99..=1.000_001).contains(&share), "{share}");
    }

    #[test]
    fn rows_may_have_fewer_dimensions_than_directions() {
        let [searched, exact] =
            searched_and_exact(&rows(100, 40, |i| if i < 3 { 1.0 } else { 0.0 }), 8);
        assert!(
            searched.values[3] < 1e-6 * searched.values[0]
                && exact.values[3] < 1e-9 * exact.values[0]
        );
        assert!((searched.values[2] / exact.values[2] - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_sample_is_evenly_spaced_over_parts() {
        struct Numbers;
        impl Rows for Numbers {
            fn width(&self) -> usize {
                1
            }

            fn parts(&self) -> Vec<usize> {
                vec![MAX_SAMPLE_ROWS; 3]
            }

            fn some(&self, part: usize, rows: &[u32]) -> Result<Tensor> {
                let values: Vec<f64> = rows
                    .iter()
                    .map(|row| (part * MAX_SAMPLE_ROWS) as f64 + f64::from(*row))
                    .collect();
                Tensor::from_slice(&values, (rows.len(), 1), &Device::Cpu)
            }
        }
        let found: Vec<f64> = sample(&Numbers).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found, (0..MAX_SAMPLE_ROWS).map(|i| 3.0 * i as f64).collect::<Vec<_>>());
    }
}
