//! GPTQ as tensor operations, for GPUs: all matrices of a batch advance column by column together.
//!
//! This does the same as `gptq.rs` with `columns.rs`, left-looking: one batched product computes
//! what all earlier columns feed to a block. The columns of a block go through one kernel
//! (`kernels/round.rs`).

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::gptq::checked;
use super::grid::Grid;
use super::{Codes, Factor, GptqOptions, Problem, QuantizeError, SolvedMatrix};
use crate::kernels::{BLOCK, Rounded, group_grids, round_block, settle};

impl From<candle_core::Error> for QuantizeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

/// Like [`super::solve`], but with CUDA it runs on the `device`, in f32 by tensor operations, and
/// gives the same codes, except at ties that the order of summation decides. There, either all
/// factors must have an order, or none.
///
/// # Errors
/// As for [`super::solve`], or if the device fails.
pub fn solve_on(
    problems: &[Problem<'_, f32>],
    shape: [usize; 2],
    options: &GptqOptions,
    device: &Device,
) -> Result<Vec<SolvedMatrix>, QuantizeError> {
    match device {
        Device::Cuda(_) => by_tensors(problems, shape, options, device),
        Device::Cpu | Device::Metal(_) => super::solve(problems, shape, options),
    }
}

fn by_tensors(
    problems: &[Problem<'_, f32>],
    shape: [usize; 2],
    options: &GptqOptions,
    device: &Device,
) -> Result<Vec<SolvedMatrix>, QuantizeError> {
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
            .map(|_| SolvedMatrix { codes: Codes::blank(shape, group), error: 0.0 })
            .collect());
    }
    let batch = DeviceBatch::new(problems, shape, group, options, device)?;
    batch.solve()?.finish(&batch)
}

/// Problems on the device. Those with the same factor form one matrix with all of their rows.
struct DeviceBatch<'a> {
    problems: &'a [Problem<'a, f32>],
    /// For each of the E matrices, the problems whose rows it has; all have equally many.
    members: Vec<Vec<usize>>,
    /// N and K of a problem.
    shape: [usize; 2],
    group: usize,
    grid: Grid<f32>,
    clip_search: bool,
    /// `[E, K, R]` with R rows, in the order in which columns are solved. Errors replace the
    /// weights.
    weight: Tensor,
    /// Aᵀ, `[E, K, K]`, 1 on the diagonal and 0 above it.
    feedback: Tensor,
    /// diag H in the order of the weights' columns, `[E, K]`.
    diagonal: Tensor,
    /// Weights of the squared errors of each solved column, `[E, K, 2]`; see `gptq::costs`.
    costs: Tensor,
    /// Grids of all groups, `[2, E, K / g, R]`; None if they are fixed on the way.
    fixed: Option<Tensor>,
}

/// Results on the device.
struct FoundScales {
    /// `[E, K, R]`, signed.
    codes: Tensor,
    /// `[2, E, K / g, R]`: scales and signed zeros.
    grids: Tensor,
    /// tr(ΔW H ΔWᵀ) of each row, `[E, R]`.
    errors: Tensor,
}

/// Groups problems by their factor if each factor has equally many; otherwise each problem is
/// alone.
fn members(problems: &[Problem<'_, f32>]) -> Vec<Vec<usize>> {
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut place = HashMap::new();
    for (index, problem) in problems.iter().enumerate() {
        let next = place.len();
        let place = *place.entry(std::ptr::from_ref(problem.factor)).or_insert(next);
        members.resize(members.len().max(place + 1), Vec::new());
        members[place].push(index);
    }
    if members.iter().all(|of_factor| of_factor.len() == members[0].len()) {
        members
    } else {
        (0..problems.len()).map(|index| vec![index]).collect()
    }
}

/// Refuses matrices with more elements than candle's kernels can count.
fn check_countable(members: &[Vec<usize>], [rows, width]: [usize; 2]) -> Result<(), QuantizeError> {
    let all_rows = members[0].len() * rows;
    if members.len() * width * all_rows.max(width) > u32::MAX as usize {
        return Err(QuantizeError::Device(
            "candle's kernels count up to 2^32 elements: too many experts together".to_owned(),
        ));
    }
    Ok(())
}

/// The weights of `problems` on the device, those of one matrix's members side by side: `[E, K,
/// R]`.
fn uploaded(
    problems: &[Problem<'_, f32>],
    members: &[Vec<usize>],
    [rows, width]: [usize; 2],
    device: &Device,
) -> candle_core::Result<Tensor> {
    let given = members.iter().flatten();
    let given = given.map(|of| Tensor::from_slice(problems[*of].weight, (rows, width), device));
    Tensor::cat(&given.collect::<candle_core::Result<Vec<_>>>()?, 0)?
        .reshape((members.len(), members[0].len() * rows, width))?
        .transpose(1, 2)?
        .contiguous()
}

fn diagonals(factors: &[&Factor<f32>], device: &Device) -> candle_core::Result<Tensor> {
    let values: Vec<f32> =
        factors.iter().flat_map(|factor| factor.diagonal.iter().copied()).collect();
    let width = values.len() / factors.len();
    Tensor::from_vec(values, (factors.len(), width), device)
}

fn costs(factors: &[&Factor<f32>], device: &Device) -> candle_core::Result<Tensor> {
    let costs: Vec<f32> =
        factors.iter().flat_map(|factor| super::gptq::costs(factor)).flatten().collect();
    let width = costs.len() / factors.len() / 2;
    Tensor::from_vec(costs, (factors.len(), width, 2), device)
}

impl<'a> DeviceBatch<'a> {
    fn new(
        problems: &'a [Problem<'a, f32>],
        shape: [usize; 2],
        group: usize,
        options: &GptqOptions,
        device: &Device,
    ) -> Result<Self, QuantizeError> {
        let mut batch = Self::as_given(problems, shape, group, options, device)?;
        if !batch.grouped() {
            batch.fixed = Some(batch.fixed()?);
        }
        if problems.iter().any(|problem| problem.factor.order.is_some()) {
            batch.weight = batch.ordered()?;
        }
        Ok(batch)
    }

    /// Creates the batch with the weights' columns in their given order, and without grids.
    fn as_given(
        problems: &'a [Problem<'a, f32>],
        shape: [usize; 2],
        group: usize,
        options: &GptqOptions,
        device: &Device,
    ) -> Result<Self, QuantizeError> {
        let members = members(problems);
        check_countable(&members, shape)?;
        let factors: Vec<_> = members.iter().map(|members| problems[members[0]].factor).collect();
        Ok(Self {
            problems,
            shape,
            group,
            grid: Grid::new(&options.scheme),
            clip_search: options.clip_search,
            weight: uploaded(problems, &members, shape, device)?,
            feedback: Factor::feedback_of(&factors, device)?,
            diagonal: diagonals(&factors, device)?,
            costs: costs(&factors, device)?,
            fixed: None,
            members,
        })
    }

    /// The weights, with their columns in the order of solving.
    fn ordered(&self) -> candle_core::Result<Tensor> {
        let width = self.shape[1];
        let ordered = (0..self.members.len()).map(|e| {
            let factor = self.factor(e);
            let order: Vec<u32> = (0..width).map(|k| factor.column(k) as u32).collect();
            let order = Tensor::from_vec(order, width, self.weight.device())?;
            self.weight.get(e)?.index_select(&order, 0)
        });
        Tensor::stack(&ordered.collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    /// The factor of matrix `e`.
    fn factor(&self, e: usize) -> &Factor<f32> {
        self.problems[self.members[e][0]].factor
    }

    /// Whether groups are fixed on the way, from weights that compensate the errors so far.
    fn grouped(&self) -> bool {
        self.group < self.shape[1]
            && self.problems.iter().all(|problem| problem.factor.order.is_none())
    }

    fn solve(&self) -> Result<FoundScales, QuantizeError> {
        let (count, width, rows) = self.weight.dims3()?;
        let device = self.weight.device();
        let codes = self.weight.zeros_like()?;
        let grids = match &self.fixed {
            None => Tensor::zeros((2, count, width / self.group, rows), DType::F32, device)?,
            Some(fixed) => fixed.clone(),
        };
        let mut errors = Tensor::zeros((count, rows), DType::F32, device)?;
        // If groups are fixed on the way, a block must not reach into the next group.
        let group = if self.grouped() { self.group } else { width };
        for start in (0..width).step_by(group) {
            if self.grouped() {
                grids.slice_set(&self.settled(start)?.unsqueeze(2)?, 2, start / group)?;
            }
            for first in (start..start + group).step_by(BLOCK) {
                let found = self.round(&grids, first, BLOCK.min(start + group - first))?;
                self.weight.slice_set(&found.errors, 1, first)?;
                codes.slice_set(&found.codes, 1, first)?;
                errors = (errors + self.cost(first, &found)?)?;
            }
        }
        Ok(FoundScales { codes, grids, errors })
    }

    /// Rounds a block of `size` columns to `grids`.
    fn round(&self, grids: &Tensor, first: usize, size: usize) -> Result<Rounded, QuantizeError> {
        let feedback = self.feedback.narrow(1, first, size)?.narrow(2, first, size)?;
        let weight = self.weight.narrow(1, first, size)?;
        let grids = self.columns(grids, first, size)?;
        let codes = [self.grid.low, self.grid.high];
        Ok(round_block(&weight, &self.fed(first, size)?, &feedback, &grids, codes)?)
    }

    /// Computes the corrections of a block's columns by the errors of all columns before `first`,
    /// `[E, size, R]`.
    fn fed(&self, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        if first == 0 {
            return Ok(self.weight.narrow(1, 0, size)?.zeros_like()?);
        }
        let feedback = self.feedback.narrow(1, first, size)?.narrow(2, 0, first)?.contiguous()?;
        Ok(feedback.matmul(&self.weight.narrow(1, 0, first)?)?)
    }

    /// Computes the contribution of a block of columns to tr(ΔW H ΔWᵀ) of each row: Σ_k D_k (ΔW
    /// A)_k², minus the share of damping.
    fn cost(&self, first: usize, found: &Rounded) -> Result<Tensor, QuantizeError> {
        let costs = self.costs.narrow(1, first, found.errors.dim(1)?)?;
        let weighed =
            |values: &Tensor, cost: usize| values.sqr()?.broadcast_mul(&costs.narrow(2, cost, 1)?);
        Ok((weighed(&found.missed, 0)? - weighed(&found.errors, 1)?)?.sum(1)?)
    }

    /// Selects from grids `[2, E, K / g, R]` those of each solved column of a block: `[2, E, size,
    /// R]`, or `[2, E, 1, R]` if the block is in one group.
    fn columns(&self, grids: &Tensor, first: usize, size: usize) -> Result<Tensor, QuantizeError> {
        if self.grouped() {
            return Ok(grids.narrow(2, first / self.group, 1)?);
        }
        let (_, count, groups, rows) = grids.dims4()?;
        let group =
            |e: usize, k: usize| (e * groups + self.factor(e).column(k) / self.group) as u32;
        let indices: Vec<u32> =
            (0..count).flat_map(|e| (first..first + size).map(move |k| group(e, k))).collect();
        let indices = Tensor::new(indices, grids.device())?;
        Ok(grids
            .reshape((2, count * groups, rows))?
            .index_select(&indices, 1)?
            .reshape((2, count, size, rows))?)
    }

    /// Scales and zeros of all groups from the given weights, `[2, E, K / g, R]`.
    fn fixed(&self) -> Result<Tensor, QuantizeError> {
        let (count, width, rows) = self.weight.dims3()?;
        let groups = count * width / self.group;
        let members = self.weight.reshape((groups, self.group, rows))?;
        let energy = self.diagonal.reshape((groups, self.group))?;
        let grids = group_grids(&members, &energy, self.grid, self.clip_search)?;
        Ok(grids.reshape((2, count, width / self.group, rows))?)
    }

    /// Scales and zeros `[2, E, R]` of the group that starts at column `first`, from the weights
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
    fn finish(self, batch: &DeviceBatch<'_>) -> Result<Vec<SolvedMatrix>, QuantizeError> {
        let parts = batch.members[0].len();
        let found = self.read(batch)?;
        let solved = (0..batch.problems.len()).into_par_iter().map(|place| {
            let (e, part) = (place / parts, place % parts);
            (batch.members[e][part], found.solved(batch, [e, part]))
        });
        let mut solved: Vec<(usize, SolvedMatrix)> = solved.collect();
        solved.sort_by_key(|(problem, _)| *problem);
        Ok(solved.into_iter().map(|(_, solved)| solved).collect())
    }

    fn read(self, batch: &DeviceBatch<'_>) -> candle_core::Result<ReadScales> {
        let low = f64::from(batch.grid.low);
        Ok(ReadScales {
            errors: self.errors.to_vec2::<f32>()?,
            scales: self.grids_by_rows(0)?.flatten_all()?.to_vec1::<f32>()?,
            zeros: unsigned(self.grids_by_rows(1)?, low)?,
            codes: unsigned(self.codes, low)?,
        })
    }

    /// Scales (`grid` 0) or signed zeros (`grid` 1) as `[E, R, K / g]`.
    fn grids_by_rows(&self, grid: usize) -> candle_core::Result<Tensor> {
        self.grids.get(grid)?.transpose(1, 2)?.contiguous()
    }
}

fn unsigned(codes: Tensor, low: f64) -> candle_core::Result<Vec<u8>> {
    codes.affine(1.0, -low)?.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()
}

/// Results in host memory.
struct ReadScales {
    /// `[E, K, R]`, unsigned.
    codes: Vec<u8>,
    /// `[E, R, K / g]`
    scales: Vec<f32>,
    /// `[E, R, K / g]`, unsigned.
    zeros: Vec<u8>,
    /// `[E, R]`
    errors: Vec<Vec<f32>>,
}

impl ReadScales {
    /// The solution of the problem that is number `part` in matrix `e`.
    fn solved(&self, batch: &DeviceBatch<'_>, [e, part]: [usize; 2]) -> SolvedMatrix {
        let ([rows, width], groups) = (batch.shape, batch.shape[1] / batch.group);
        let parts = batch.members[0].len();
        let mut found = Codes::blank(batch.shape, batch.group);
        let of_matrix = &self.codes[e * parts * rows * width..][..parts * rows * width];
        for (k, column) in of_matrix.chunks_exact(parts * rows).enumerate() {
            let to = batch.factor(e).column(k);
            let column = &column[part * rows..][..rows];
            for (row, code) in found.codes.chunks_exact_mut(width).zip(column) {
                row[to] = *code;
            }
        }
        let own = (e * parts + part) * rows * groups;
        found.scales.copy_from_slice(&self.scales[own..][..rows * groups]);
        found.zeros.copy_from_slice(&self.zeros[own..][..rows * groups]);
        let errors = &self.errors[e][part * rows..][..rows];
        SolvedMatrix { codes: found, error: errors.iter().map(|error| f64::from(*error)).sum() }
    }
}

#[cfg(test)]
mod tests;
