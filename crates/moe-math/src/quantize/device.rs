//! GPTQ as tensor operations, for GPUs: all matrices of a batch move a column forward together.
//!
//! The same as `gptq.rs` with `columns.rs`, left-looking: what a block of columns was fed before it
//! is one batched product. Columns of a block go through one kernel (`kernels/round.rs`).

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::gptq::checked;
use super::grid::Grid;
use super::{Codes, Factor, Options, Problem, QuantizeError, Solved};
use crate::kernels::{BLOCK, Rounded, group_grids, round_block, settle};

impl From<candle_core::Error> for QuantizeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

/// What [`super::solve`] does; with CUDA on the `device`, in f32 by tensor operations: up to ties
/// that other orders of summation decide, the same codes. There either all factors have an order,
/// or none has.
///
/// # Errors
/// As for [`super::solve`], and what the device returns.
pub fn solve_on(
    problems: &[Problem<'_, f32>],
    shape: [usize; 2],
    options: &Options,
    device: &Device,
) -> Result<Vec<Solved>, QuantizeError> {
    match device {
        Device::Cuda(_) => by_tensors(problems, shape, options, device),
        Device::Cpu | Device::Metal(_) => super::solve(problems, shape, options),
    }
}

fn by_tensors(
    problems: &[Problem<'_, f32>],
    shape: [usize; 2],
    options: &Options,
    device: &Device,
) -> Result<Vec<Solved>, QuantizeError> {
    let group = checked(problems, shape, options)?;
    if !problems.par_iter().all(|problem| problem.weight.iter().all(|w| w.is_finite())) {
        return Err(QuantizeError::NotFinite);
    }
    let ordered = problems.iter().filter(|problem| problem.factor.order.is_some()).count();
    if ordered != 0 && ordered != problems.len() {
        return Err(QuantizeError::Device(
            "a batch has factors with an order and without".to_owned(),
        ));
    }
    if problems.is_empty() || shape[0] == 0 {
        return Ok(problems
            .iter()
            .map(|_| Solved { codes: Codes::blank(shape, group), error: 0.0 })
            .collect());
    }
    let batch = Batch::new(problems, shape, group, options, device)?;
    batch.solve()?.finish(&batch)
}

/// Problems on the device, those with the same factor as one matrix that has the rows of all of
/// them.
struct Batch<'a> {
    problems: &'a [Problem<'a, f32>],
    /// Of each of the E matrices the problems whose rows it has, as many in each.
    members: Vec<Vec<usize>>,
    /// N and K of a problem.
    shape: [usize; 2],
    group: usize,
    grid: Grid<f32>,
    clip_search: bool,
    /// `[E, K, R]` with R rows, in the order in which columns are solved; errors take the place of
    /// weights.
    weight: Tensor,
    /// Aᵀ, `[E, K, K]`, 1 on the diagonal and 0 above it.
    feedback: Tensor,
    /// diag H in the order of the weights' columns, `[E, K]`.
    diagonal: Tensor,
    /// By how much the squares of each solved column's errors count, `[E, K, 2]`; see
    /// `gptq::costs`.
    costs: Tensor,
    /// Grids of all groups, where they don't depend on what is rounded: `[2, E, K / g, R]`.
    fixed: Option<Tensor>,
}

/// What has been found, on the device.
struct FoundScales {
    /// `[E, K, R]`, signed.
    codes: Tensor,
    /// `[2, E, K / g, R]`: scales and signed zeros.
    grids: Tensor,
    /// tr(ΔW H ΔWᵀ) of each row, `[E, R]`.
    errors: Tensor,
}

/// Problems by their factor, where each has as many; otherwise each by itself.
fn members(problems: &[Problem<'_, f32>]) -> Vec<Vec<usize>> {
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut place = HashMap::new();
    for (index, problem) in problems.iter().enumerate() {
        let next = place.len();
        let place = *place.entry(std::ptr::from_ref(problem.factor)).or_insert(next);
        members.resize(members.len().max(place + 1), Vec::new());
        members[place].push(index);
    }
    match members.iter().all(|of_factor| of_factor.len() == members[0].len()) {
        true => members,
        false => (0..problems.len()).map(|index| vec![index]).collect(),
    }
}

impl<'a> Batch<'a> {
    fn new(
        problems: &'a [Problem<'a, f32>],
        shape: [usize; 2],
        group: usize,
        options: &Options,
        device: &Device,
    ) -> Result<Self, QuantizeError> {
        let ([rows, width], members) = (shape, members(problems));
        let (count, all_rows) = (members.len(), members[0].len() * rows);
        if count * width * all_rows.max(width) > u32::MAX as usize {
            return Err(QuantizeError::Device(
                "candle's kernels count up to 2^32 elements: too many experts together".to_owned(),
            ));
        }
        let factors: Vec<_> = members.iter().map(|members| problems[members[0]].factor).collect();
        let diagonal: Vec<f32> =
            factors.iter().flat_map(|factor| factor.diagonal.iter().copied()).collect();
        let upload =
            |member: &usize| Tensor::from_slice(problems[*member].weight, (rows, width), device);
        let given =
            members.iter().flatten().map(upload).collect::<candle_core::Result<Vec<_>>>()?;
        let given = Tensor::cat(&given, 0)?
            .reshape((count, all_rows, width))?
            .transpose(1, 2)?
            .contiguous()?;
        let costs: Vec<f32> =
            factors.iter().flat_map(|factor| super::gptq::costs(factor)).flatten().collect();
        let mut batch = Self {
            problems,
            shape,
            group,
            grid: Grid::new(&options.scheme),
            clip_search: options.clip_search,
            feedback: Factor::feedback_of(&factors, device)?,
            diagonal: Tensor::from_vec(diagonal, (count, width), device)?,
            costs: Tensor::from_vec(costs, (count, width, 2), device)?,
            fixed: None,
            weight: given,
            members,
        };
        if !batch.grouped() {
            batch.fixed = Some(batch.fixed()?);
        }
        if factors.iter().any(|factor| factor.order.is_some()) {
            let ordered = |(e, factor): (usize, &&Factor<f32>)| {
                let order: Vec<u32> = (0..width).map(|k| column_of(factor, k) as u32).collect();
                batch.weight.get(e)?.index_select(&Tensor::from_vec(order, width, device)?, 0)
            };
            let ordered =
                factors.iter().enumerate().map(ordered).collect::<candle_core::Result<Vec<_>>>()?;
            batch.weight = Tensor::stack(&ordered, 0)?;
        }
        Ok(batch)
    }

    /// The factor of matrix `e`.
    fn factor(&self, e: usize) -> &Factor<f32> {
        self.problems[self.members[e][0]].factor
    }

    /// Whether groups are fixed on the way, from weights that make up for the errors so far.
    fn grouped(&self) -> bool {
        self.group < self.shape[1]
            && self.problems.iter().all(|problem| problem.factor.order.is_none())
    }

    fn solve(&self) -> Result<FoundScales, QuantizeError> {
        let (count, width, rows) = self.weight.dims3()?;
        let codes = self.weight.zeros_like()?;
        let grids = match &self.fixed {
            None => Tensor::zeros(
                (2, count, width / self.group, rows),
                DType::F32,
                self.weight.device(),
            )?,
            Some(fixed) => fixed.clone(),
        };
        let mut errors = Tensor::zeros((count, rows), DType::F32, self.weight.device())?;
        // Where groups are fixed on the way, no block reaches into the next one.
        let group = if self.grouped() { self.group } else { width };
        for start in (0..width).step_by(group) {
            if self.grouped() {
                grids.slice_set(&self.settled(start)?.unsqueeze(2)?, 2, start / group)?;
            }
            for first in (start..start + group).step_by(BLOCK) {
                let size = BLOCK.min(start + group - first);
                let feedback = self.feedback.narrow(1, first, size)?.narrow(2, first, size)?;
                let weight = self.weight.narrow(1, first, size)?;
                let grids = self.columns(&grids, first, size)?;
                let codes_of = [self.grid.low, self.grid.high];
                let found =
                    round_block(&weight, &self.fed(first, size)?, &feedback, &grids, codes_of)?;
                self.weight.slice_set(&found.errors, 1, first)?;
                codes.slice_set(&found.codes, 1, first)?;
                errors = (errors + self.cost(first, &found)?)?;
            }
        }
        Ok(FoundScales { codes, grids, errors })
    }

    /// What the errors of all columns before `first` feed to a block: `[E, size, R]`.
    fn fed(&self, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        if first == 0 {
            return Ok(self.weight.narrow(1, 0, size)?.zeros_like()?);
        }
        let feedback = self.feedback.narrow(1, first, size)?.narrow(2, 0, first)?.contiguous()?;
        Ok(feedback.matmul(&self.weight.narrow(1, 0, first)?)?)
    }

    /// What a block of columns adds to tr(ΔW H ΔWᵀ) of each row: Σ_k D_k (ΔW A)_k² less what
    /// damping adds.
    fn cost(&self, first: usize, found: &Rounded) -> Result<Tensor, QuantizeError> {
        let costs = self.costs.narrow(1, first, found.errors.dim(1)?)?;
        let weighed =
            |values: &Tensor, cost: usize| values.sqr()?.broadcast_mul(&costs.narrow(2, cost, 1)?);
        Ok((weighed(&found.missed, 0)? - weighed(&found.errors, 1)?)?.sum(1)?)
    }

    /// Of grids `[2, E, K / g, R]` those of each solved column of a block: `[2, E, size, R]`, or
    /// `[2, E, 1, R]` where it is one group.
    fn columns(&self, grids: &Tensor, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        if self.grouped() {
            return Ok(grids.narrow(2, first / self.group, 1)?);
        }
        let (_, count, groups, rows) = grids.dims4()?;
        let group =
            |e: usize, k: usize| (e * groups + column_of(self.factor(e), k) / self.group) as u32;
        let indices: Vec<u32> =
            (0..count).flat_map(|e| (first..first + size).map(move |k| group(e, k))).collect();
        let indices = Tensor::new(indices, grids.device())?;
        Ok(grids
            .reshape((2, count * groups, rows))?
            .index_select(&indices, 1)?
            .reshape((2, count, size, rows))?)
    }

    /// Scales and zeros of all groups from the weights in the order in which they are given, `[2,
    /// E, K / g, R]`.
    fn fixed(&self) -> Result<Tensor, QuantizeError> {
        let (count, width, rows) = self.weight.dims3()?;
        let groups = count * width / self.group;
        let members = self.weight.reshape((groups, self.group, rows))?;
        let energy = self.diagonal.reshape((groups, self.group))?;
        let grids = group_grids(&members, &energy, self.grid, self.clip_search)?;
        Ok(grids.reshape((2, count, width / self.group, rows))?)
    }

    /// Scales and zeros `[2, E, R]` of the group that begins with column `first`, from the weights
    /// that its columns would have if none of them were rounded.
    fn settled(&self, first: usize) -> Result<Tensor, QuantizeError> {
        let block = self.feedback.narrow(1, first, self.group)?.narrow(2, first, self.group)?;
        let added = settle(&self.fed(first, self.group)?, &block)?;
        let members = (added + self.weight.narrow(1, first, self.group)?)?;
        let energy = self.diagonal.narrow(1, first, self.group)?;
        Ok(group_grids(&members, &energy, self.grid, self.clip_search)?)
    }
}

impl FoundScales {
    fn finish(self, batch: &Batch<'_>) -> Result<Vec<Solved>, QuantizeError> {
        let ([rows, width], groups) = (batch.shape, batch.shape[1] / batch.group);
        let errors = self.errors.to_vec2::<f32>()?;
        let low = f64::from(batch.grid.low);
        let unsigned = |codes: Tensor| {
            codes.affine(1.0, -low)?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()
        };
        let of_rows = |grid: usize| self.grids.get(grid)?.transpose(1, 2)?.contiguous();
        let scales = of_rows(0)?.flatten_all()?.to_vec1::<f32>()?;
        let (zeros, codes) = (unsigned(of_rows(1)?)?, unsigned(self.codes)?);
        let parts = batch.members[0].len();
        let mut solved: Vec<(usize, Solved)> = (0..batch.problems.len())
            .into_par_iter()
            .map(|place| {
                let (e, part) = (place / parts, place % parts);
                let mut found = Codes::blank(batch.shape, batch.group);
                let of_matrix = &codes[e * parts * rows * width..][..parts * rows * width];
                for (k, column) in of_matrix.chunks_exact(parts * rows).enumerate() {
                    let (to, column) =
                        (column_of(batch.factor(e), k), &column[part * rows..][..rows]);
                    found
                        .codes
                        .chunks_exact_mut(width)
                        .zip(column)
                        .for_each(|(row, code)| row[to] = *code);
                }
                found.scales.copy_from_slice(&scales[place * rows * groups..][..rows * groups]);
                found.zeros.copy_from_slice(&zeros[place * rows * groups..][..rows * groups]);
                let error =
                    errors[e][part * rows..][..rows].iter().map(|error| f64::from(*error)).sum();
                (batch.members[e][part], Solved { codes: found, error })
            })
            .collect();
        solved.sort_by_key(|(problem, _)| *problem);
        Ok(solved.into_iter().map(|(_, solved)| solved).collect())
    }
}

/// Where the column that is solved as number `k` belongs.
fn column_of(factor: &Factor<f32>, k: usize) -> usize {
    factor.order.as_ref().map_or(k, |order| order[k] as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Damping, Hessian, Scheme, factorise, solve};
    use crate::sampling::{generator, normal};

    fn factor(width: usize, seed: u64, act_order: bool) -> Factor<f32> {
        let mut x = normal(width * width, 1.0, &mut generator(seed, 0));
        for row in x.chunks_mut(width) {
            // Columns of different energy that follow the one before them, and a dead one.
            (1..width)
                .for_each(|k| row[k] = (row[k] + 0.8 * row[k - 1]) * (1.0 + (k % 7) as f32 / 7.0));
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
            let weights: Vec<_> =
                (0..6).map(|seed| normal(rows * width, 0.05, &mut generator(seed, 1))).collect();
            // Two matrices to a factor, whose rows go together, or to some of the factors.
            let of = |index: usize| &factors[index % 3];
            let mut problems: Vec<_> = (0..6)
                .map(|index| Problem { weight: &weights[index], factor: of(index) })
                .collect();
            problems.truncate(if clip_search { 5 } else { 6 });
            let expected = solve(&problems, [rows, width], &options).unwrap();
            let found = by_tensors(&problems, [rows, width], &options, &Device::Cpu).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                let equal = found
                    .codes
                    .codes
                    .iter()
                    .zip(&expected.codes.codes)
                    .filter(|(a, b)| a == b)
                    .count();
                assert!(
                    equal as f64 > 0.99 * (rows * width) as f64,
                    "{equal} of {} {scheme:?}",
                    rows * width
                );
                assert!((found.error - expected.error).abs() < 0.01 * expected.error, "{scheme:?}");
                let scales = found.codes.scales.iter().zip(&expected.codes.scales);
                assert!(
                    scales.filter(|(a, b)| a == b).count() as f64
                        > 0.97 * found.codes.scales.len() as f64
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_a_batch_is_refused() {
        let (ordered, plain) = (factor(8, 1, true), factor(8, 1, false));
        let scheme = Scheme { bits: 4, symmetric: true, group: Some(4), scale_dtype: DType::F32 };
        let options = Options { scheme, clip_search: false };
        let good = Problem { weight: &[0.5; 16], factor: &plain };
        let on =
            |problems: &[Problem<'_, f32>]| by_tensors(problems, [2, 8], &options, &Device::Cpu);
        assert_eq!(on(&[good]).unwrap().len(), 1);
        assert_eq!(on(&[]).unwrap(), []);
        assert!(matches!(
            on(&[good, Problem { factor: &ordered, ..good }]),
            Err(QuantizeError::Device(_))
        ));
        assert_eq!(
            on(&[Problem { weight: &[f32::NAN; 16], ..good }]),
            Err(QuantizeError::NotFinite)
        );
        assert!(matches!(
            on(&[Problem { weight: &[0.5; 15], ..good }]),
            Err(QuantizeError::Length { .. })
        ));
    }
}
