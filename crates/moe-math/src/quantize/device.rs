//! GPTQ as tensor operations, for GPUs: all matrices of a batch move a column forward together.
//!
//! The same as `gptq.rs` with `columns.rs`, left-looking: what a block of columns was fed before it is one batched product.
//! Factors are made on the CPU.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::gptq::checked;
use super::grid::{CLIPS, Grid, kept_range};
use super::{Codes, Options, Problem, QuantizeError, Solved};
use crate::device::Compute;

/// Columns of a block, where it isn't a group.
const BLOCK: usize = 128;

impl From<candle_core::Error> for QuantizeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

/// What [`super::solve`] does, on a device and in f32 whatever the dtype of `compute`: up to ties that other orders of
/// summation decide, the same codes. Either all factors have an order, or none has.
///
/// # Errors
/// As for [`super::solve`], and what the device returns.
pub fn solve_on(
    problems: &[Problem<'_, f32>],
    shape: [usize; 2],
    options: &Options,
    compute: &Compute,
) -> Result<Vec<Solved>, QuantizeError> {
    let group = checked(problems, shape, options)?;
    if !problems.par_iter().all(|problem| problem.weight.iter().all(|w| w.is_finite())) {
        return Err(QuantizeError::NotFinite);
    }
    let ordered = problems.iter().filter(|problem| problem.factor.order.is_some()).count();
    if ordered != 0 && ordered != problems.len() {
        return Err(QuantizeError::Device("a batch has factors with an order and without".to_owned()));
    }
    if problems.is_empty() || shape[0] == 0 {
        return Ok(problems.iter().map(|_| Solved { codes: Codes::blank(shape, group), error: 0.0 }).collect());
    }
    let batch = Batch::new(problems, shape, group, options, &compute.device)?;
    batch.solve()?.finish(&batch)
}

/// E problems on the device.
struct Batch<'a> {
    problems: &'a [Problem<'a, f32>],
    /// N and K.
    shape: [usize; 2],
    group: usize,
    grid: Grid<f32>,
    clip_search: bool,
    /// `[E, K, N]` in the order in which columns are solved; errors take the place of weights.
    weight: Tensor,
    /// Aᵀ, `[E, K, K]`, 1 on the diagonal and 0 above it.
    feedback: Tensor,
    /// diag H in the order of the columns, `[E, K, 1]`.
    diagonal: Tensor,
}

/// What has been found, on the device.
struct Found {
    /// `[E, K, N]`, unsigned.
    codes: Tensor,
    /// `[E, K / g, N]`
    scales: Tensor,
    /// `[E, K / g, N]`, signed.
    zeros: Tensor,
}

impl<'a> Batch<'a> {
    fn new(
        problems: &'a [Problem<'a, f32>],
        shape: [usize; 2],
        group: usize,
        options: &Options,
        device: &Device,
    ) -> Result<Self, QuantizeError> {
        let ([rows, width], count) = (shape, problems.len());
        let mut weight = vec![0f32; count * rows * width];
        let mut feedback = vec![0f32; count * width * width];
        weight.par_chunks_mut(rows * width).zip(problems).for_each(|(to, problem)| {
            for (k, column) in to.chunks_exact_mut(rows).enumerate() {
                let from = column_of(problem, k);
                column.iter_mut().zip(problem.weight.chunks_exact(width)).for_each(|(to, row)| *to = row[from]);
            }
        });
        feedback.par_chunks_mut(width * width).zip(problems).for_each(|(to, problem)| {
            for (k, (to, from)) in to.chunks_exact_mut(width).zip(problem.factor.feedback.chunks(width)).enumerate() {
                to[..=k].copy_from_slice(&from[..=k]);
            }
        });
        let diagonal: Vec<f32> = problems.iter().flat_map(|problem| problem.factor.diagonal.iter().copied()).collect();
        Ok(Self {
            problems,
            shape,
            group,
            grid: Grid::new(&options.scheme),
            clip_search: options.clip_search,
            weight: Tensor::from_vec(weight, (count, width, rows), device)?,
            feedback: Tensor::from_vec(feedback, (count, width, width), device)?,
            diagonal: Tensor::from_vec(diagonal, (count, width, 1), device)?,
        })
    }

    /// Whether groups are fixed on the way, from weights that make up for the errors so far.
    fn grouped(&self) -> bool {
        self.group < self.shape[1] && self.problems.iter().all(|problem| problem.factor.order.is_none())
    }

    fn solve(&self) -> Result<Found, QuantizeError> {
        let ([rows, width], count) = (self.shape, self.problems.len());
        let groups = (count, width / self.group, rows);
        let codes = self.weight.zeros_like()?;
        let (scales, zeros) = if self.grouped() {
            let empty = || Tensor::zeros(groups, DType::F32, self.weight.device());
            (empty()?, empty()?)
        } else {
            self.fixed()?
        };
        let block = if self.grouped() { self.group } else { BLOCK };
        for first in (0..width).step_by(block) {
            let size = block.min(width - first);
            let fed = self.fed(first, size)?;
            let grids = if self.grouped() {
                let found = self.settled(&fed, first)?;
                scales.slice_set(&found[0], 1, first / self.group)?;
                zeros.slice_set(&found[1], 1, first / self.group)?;
                found
            } else {
                [self.columns(&scales, first, size)?, self.columns(&zeros, first, size)?]
            };
            self.round(first, &fed, &grids, &codes)?;
        }
        Ok(Found { codes, scales, zeros })
    }

    /// What the errors of all columns before `first` feed to a block: `[E, size, N]`.
    fn fed(&self, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        if first == 0 {
            return Ok(self.weight.narrow(1, 0, size)?.zeros_like()?);
        }
        let feedback = self.feedback.narrow(1, first, size)?.narrow(2, 0, first)?.contiguous()?;
        Ok(feedback.matmul(&self.weight.narrow(1, 0, first)?)?)
    }

    /// Rounds the columns of a block one after another.
    fn round(&self, first: usize, fed: &Tensor, grids: &[Tensor; 2], codes: &Tensor) -> Result<(), QuantizeError> {
        for i in 0..fed.dim(1)? {
            let (k, weight) = (first + i, self.weight.narrow(1, first + i, 1)?);
            let [scale, zero] = grids;
            let at = |grid: &Tensor| grid.narrow(1, if grid.dim(1)? == 1 { 0 } else { i }, 1);
            let (scale, zero) = (at(scale)?, at(zero)?);
            let mut best = (&weight + fed.narrow(1, i, 1)?)?;
            if i > 0 {
                let feedback = self.feedback.narrow(1, k, 1)?.narrow(2, first, i)?;
                best = (best + feedback.matmul(&self.weight.narrow(1, first, i)?)?)?;
            }
            let code = self.code(&best, &scale, &zero)?;
            let error = (weight - ((&code - zero)? * scale)?)?;
            codes.slice_set(&code, 1, k)?;
            self.weight.slice_set(&error, 1, k)?;
        }
        Ok(())
    }

    /// Signed codes.
    fn code(&self, value: &Tensor, scale: &Tensor, zero: &Tensor) -> Result<Tensor, QuantizeError> {
        // From here on f32 are 1 apart: adding it rounds halves to even, which `round` doesn't.
        const WHOLE: f64 = 12_582_912.0;
        let code = value.broadcast_div(scale)?.broadcast_add(zero)?.clamp(self.grid.low, self.grid.high)?;
        Ok(code.affine(1.0, WHOLE)?.affine(1.0, -WHOLE)?)
    }

    /// Of scales or zeros `[E, K / g, N]` those of each solved column of a block: `[E, size, N]`.
    fn columns(&self, grids: &Tensor, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        let (count, groups, rows) = grids.dims3()?;
        let group = |e: usize, k: usize| (e * groups + column_of(&self.problems[e], k) / self.group) as u32;
        let indices: Vec<u32> = (0..count).flat_map(|e| (first..first + size).map(move |k| group(e, k))).collect();
        let indices = Tensor::new(indices, grids.device())?;
        Ok(grids.reshape((count * groups, rows))?.index_select(&indices, 0)?.reshape((count, size, rows))?)
    }

    /// Scales and zeros of all groups from the weights as they are given, `[E, K / g, N]`.
    fn fixed(&self) -> Result<(Tensor, Tensor), QuantizeError> {
        let ([rows, width], count) = (self.shape, self.problems.len());
        let given: Vec<f32> = self.problems.iter().flat_map(|problem| problem.weight.iter().copied()).collect();
        let given = Tensor::from_vec(given, (count, rows, width), self.weight.device())?;
        let groups = count * width / self.group;
        let members = given.transpose(1, 2)?.contiguous()?.reshape((groups, self.group, rows))?;
        let [scales, zeros] = self.fix(&members, &self.diagonal.reshape((groups, self.group, 1))?)?;
        let shape = (count, width / self.group, rows);
        Ok((scales.reshape(shape)?, zeros.reshape(shape)?))
    }

    /// Scales and zeros `[E, 1, N]` of the group that begins with column `first`, from the weights that its columns would
    /// have if none of them were rounded.
    fn settled(&self, fed: &Tensor, first: usize) -> Result<[Tensor; 2], QuantizeError> {
        let size = self.group;
        let block = self.feedback.narrow(1, first, size)?.narrow(2, first, size)?;
        let mut added = fed.copy()?;
        // A_gᵀ X = B, a row after the other.
        for i in 1..size {
            let row = block.narrow(1, i, 1)?.narrow(2, 0, i)?;
            let row = (fed.narrow(1, i, 1)? - row.matmul(&added.narrow(1, 0, i)?)?)?;
            added.slice_set(&row, 1, i)?;
        }
        added = (added + self.weight.narrow(1, first, size)?)?;
        self.fix(&added, &self.diagonal.narrow(1, first, size)?)
    }

    /// Scales and zeros `[B, 1, N]` of groups `[B, g, N]` whose columns have the energies `[B, g, 1]`.
    fn fix(&self, members: &Tensor, energy: &Tensor) -> Result<[Tensor; 2], QuantizeError> {
        let [least, most] = [members.min_keepdim(1)?, members.max_keepdim(1)?];
        let ranges = [least.flatten_all()?.to_vec1::<f32>()?, most.flatten_all()?.to_vec1::<f32>()?];
        let [mut scales, mut zeros] = self.parameters(&ranges, 1.0, &least)?;
        if self.clip_search {
            let mut least_error = self.errors(members, energy, &scales, &zeros)?;
            for step in 1..=CLIPS {
                let tried = self.parameters(&ranges, kept_range(step) as f32, &least)?;
                let errors = self.errors(members, energy, &tried[0], &tried[1])?;
                let better = errors.lt(&least_error)?;
                scales = better.where_cond(&tried[0], &scales)?;
                zeros = better.where_cond(&tried[1], &zeros)?;
                least_error = better.where_cond(&errors, &least_error)?;
            }
        }
        Ok([scales, zeros])
    }

    /// Scales and zeros for the share `kept` of ranges, made on the host and shaped as `like`.
    fn parameters(&self, ranges: &[Vec<f32>; 2], kept: f32, like: &Tensor) -> Result<[Tensor; 2], QuantizeError> {
        let found = ranges[0].par_iter().zip(&ranges[1]);
        let found = found.map(|(least, most)| self.grid.parameters(*least * kept, *most * kept));
        let (scales, zeros): (Vec<f32>, Vec<f32>) = found.unzip();
        let tensor = |values| Tensor::from_vec(values, like.shape(), like.device());
        Ok([tensor(scales)?, tensor(zeros)?])
    }

    /// Σ diag(H) · (w − ŵ)², `[B, 1, N]`.
    fn errors(
        &self,
        members: &Tensor,
        energy: &Tensor,
        scale: &Tensor,
        zero: &Tensor,
    ) -> Result<Tensor, QuantizeError> {
        let value = self.code(members, scale, zero)?.broadcast_sub(zero)?.broadcast_mul(scale)?;
        Ok((members - value)?.sqr()?.broadcast_mul(energy)?.sum_keepdim(1)?)
    }

    /// tr(ΔW H ΔWᵀ) of each problem: Σ_k D_k (ΔW A)_k² less what damping adds.
    fn output_errors(&self) -> Result<Vec<f64>, QuantizeError> {
        let squares = |values: Tensor| values.sqr()?.sum(D::Minus1)?.to_vec2::<f32>();
        let (rounded, own) = (squares(self.feedback.matmul(&self.weight)?)?, squares(self.weight.clone())?);
        let error = |e: usize| {
            let costs = super::gptq::costs(self.problems[e].factor);
            let terms = costs.iter().zip(rounded[e].iter().zip(&own[e]));
            terms.map(|([d, added], (r, w))| f64::from(*d) * f64::from(*r) - f64::from(*added) * f64::from(*w)).sum()
        };
        Ok((0..self.problems.len()).map(error).collect())
    }
}

impl Found {
    fn finish(self, batch: &Batch<'_>) -> Result<Vec<Solved>, QuantizeError> {
        let ([rows, width], groups) = (batch.shape, batch.shape[1] / batch.group);
        let errors = batch.output_errors()?;
        let low = f64::from(batch.grid.low);
        let unsigned = |codes: Tensor| codes.affine(1.0, -low)?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>();
        let (codes, zeros) = (unsigned(self.codes)?, unsigned(self.zeros.transpose(1, 2)?.contiguous()?)?);
        let scales = self.scales.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?;
        let solved = errors.into_par_iter().zip(batch.problems).enumerate().map(|(e, (error, problem))| {
            let mut found = Codes::blank(batch.shape, batch.group);
            for (k, column) in codes[e * rows * width..][..rows * width].chunks_exact(rows).enumerate() {
                let to = column_of(problem, k);
                found.codes.chunks_exact_mut(width).zip(column).for_each(|(row, code)| row[to] = *code);
            }
            found.scales.copy_from_slice(&scales[e * rows * groups..][..rows * groups]);
            found.zeros.copy_from_slice(&zeros[e * rows * groups..][..rows * groups]);
            Solved { codes: found, error }
        });
        Ok(solved.collect())
    }
}

/// Where the column that is solved as number `k` belongs.
fn column_of(problem: &Problem<'_, f32>, k: usize) -> usize {
    problem.factor.order.as_ref().map_or(k, |order| order[k] as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Damping, Factor, Hessian, Scheme, factorise, solve};
    use crate::sampling::{generator, normal};

    fn factor(width: usize, seed: u64, act_order: bool) -> Factor<f32> {
        let mut x = normal(width * width, 1.0, &mut generator(seed, 0));
        for row in x.chunks_mut(width) {
            // Columns of different energy that follow the one before them, and a dead one.
            (1..width).for_each(|k| row[k] = (row[k] + 0.8 * row[k - 1]) * (1.0 + (k % 7) as f32 / 7.0));
            row[width / 2] = 0.0;
        }
        let mut hessian = Hessian::new(width);
        hessian.add(&x, None).unwrap();
        factorise(&hessian, &Damping::default(), act_order).unwrap()
    }

    #[test]
    fn tensors_give_the_codes_of_the_native_solver() {
        let (rows, width) = (20, 192);
        for (bits, symmetric, group, act_order, clip_search) in [
            (4, true, Some(64), false, false),
            (3, false, Some(32), false, true),
            (4, true, Some(32), true, false),
            (2, false, Some(96), true, true),
            (8, true, None, false, false),
            (4, false, None, true, true),
        ] {
            let scheme = Scheme { bits, symmetric, group, scale_dtype: DType::BF16 };
            let options = Options { scheme, clip_search };
            let factors: Vec<_> = (0..3).map(|seed| factor(width, seed, act_order)).collect();
            let weights: Vec<_> = (0..3).map(|seed| normal(rows * width, 0.05, &mut generator(seed, 1))).collect();
            let problems: Vec<_> =
                weights.iter().zip(&factors).map(|(weight, factor)| Problem { weight, factor }).collect();
            let expected = solve(&problems, [rows, width], &options).unwrap();
            let found = solve_on(&problems, [rows, width], &options, &Compute::cpu()).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                let equal = found.codes.codes.iter().zip(&expected.codes.codes).filter(|(a, b)| a == b).count();
                assert!(equal as f64 > 0.99 * (rows * width) as f64, "{equal} of {} {scheme:?}", rows * width);
                assert!((found.error - expected.error).abs() < 0.01 * expected.error, "{scheme:?}");
                let scales = found.codes.scales.iter().zip(&expected.codes.scales);
                assert!(scales.filter(|(a, b)| a == b).count() as f64 > 0.97 * found.codes.scales.len() as f64);
            }
        }
    }

    #[test]
    fn what_does_not_fit_a_batch_is_refused() {
        let (ordered, plain) = (factor(8, 1, true), factor(8, 1, false));
        let scheme = Scheme { bits: 4, symmetric: true, group: Some(4), scale_dtype: DType::F32 };
        let options = Options { scheme, clip_search: false };
        let good = Problem { weight: &[0.5; 16], factor: &plain };
        let on = |problems: &[Problem<'_, f32>]| solve_on(problems, [2, 8], &options, &Compute::cpu());
        assert_eq!(on(&[good]).unwrap().len(), 1);
        assert_eq!(on(&[]).unwrap(), []);
        assert!(matches!(on(&[good, Problem { factor: &ordered, ..good }]), Err(QuantizeError::Device(_))));
        assert_eq!(on(&[Problem { weight: &[f32::NAN; 16], ..good }]), Err(QuantizeError::NotFinite));
        assert!(matches!(on(&[Problem { weight: &[0.5; 15], ..good }]), Err(QuantizeError::Length { .. })));
    }
}
