//! Some rows of a matrix, turned so that a column of them is contiguous.

use std::ops::Range;

use rayon::prelude::*;

use super::Real;
use super::grid::{Codes, Grid};

/// Rows of a chunk: few enough for its columns to stay in the second-level cache, enough for matrix products.
const ROWS: usize = 128;
/// Rows are padded with zeros to a multiple of this.
pub(super) const STRIP: usize = 32;

/// A matrix and where its codes go.
pub(super) struct Job<'a> {
    /// `[N, K]`
    pub weight: &'a [f32],
    /// The order in which columns are solved; none: as they are.
    pub order: Option<&'a [u32]>,
    pub codes: &'a mut Codes,
}

/// Rows of a matrix by columns, `[K, rows]`, in the order in which columns are solved.
#[derive(Default)]
pub(super) struct Chunk<T> {
    pub rows: usize,
    pub width: usize,
    /// Columns of a group.
    pub group: usize,
    /// W, and where a column is solved its error W − Ŵ.
    pub weight: Vec<T>,
    /// What columns were fed by the errors of others.
    pub fed: Vec<T>,
    /// Unsigned.
    pub codes: Vec<u8>,
    /// `[K / g, rows]`
    pub scales: Vec<T>,
    /// `[K / g, rows]`, signed codes.
    pub zeros: Vec<T>,
}

/// Calls `run` with the number of a job and a chunk of its rows, for all of them in parallel, and keeps the codes, scales
/// and zeros that it leaves in the chunk. Chunks don't depend on how many threads there are.
pub(super) fn each_chunk<T: Real>(jobs: &mut [Job<'_>], grid: &Grid<T>, run: impl Fn(usize, &mut Chunk<T>) + Sync) {
    let parts: Vec<Part<'_>> = jobs.iter_mut().enumerate().flat_map(|(index, job)| parts(index, job)).collect();
    parts.into_par_iter().for_each_init(Chunk::default, |chunk, part| {
        chunk.load(&part);
        run(part.job, chunk);
        chunk.store(part, grid);
    });
}

struct Part<'a> {
    job: usize,
    width: usize,
    group: usize,
    order: Option<&'a [u32]>,
    weight: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [u8],
}

fn parts<'a>(index: usize, job: &'a mut Job<'_>) -> Vec<Part<'a>> {
    let ([_, width], group, order) = (job.codes.shape, job.codes.group, job.order);
    let groups = ROWS * (width / group);
    let codes = job.weight.chunks(ROWS * width).zip(job.codes.codes.chunks_mut(ROWS * width));
    let grids = job.codes.scales.chunks_mut(groups).zip(job.codes.zeros.chunks_mut(groups));
    codes
        .zip(grids)
        .map(|((weight, codes), (scales, zeros))| Part {
            job: index,
            width,
            group,
            order,
            weight,
            codes,
            scales,
            zeros,
        })
        .collect()
}

impl<T: Real> Chunk<T> {
    fn load(&mut self, part: &Part<'_>) {
        let (width, found) = (part.width, part.weight.len() / part.width);
        let rows = found.next_multiple_of(STRIP);
        (self.rows, self.width, self.group) = (rows, width, part.group);
        self.weight.clear();
        self.weight.resize(width * rows, T::ZERO);
        self.fed.clear();
        self.fed.resize(width * rows, T::ZERO);
        self.codes.resize(width * rows, 0);
        self.scales.resize(width / part.group * rows, T::ONE);
        self.zeros.resize(width / part.group * rows, T::ZERO);
        for (k, column) in self.weight.chunks_exact_mut(rows).enumerate() {
            let from = part.order.map_or(k, |order| order[k] as usize);
            for (value, row) in column.iter_mut().zip(part.weight.chunks_exact(width)) {
                *value = T::from_f32(row[from]);
            }
        }
    }

    fn store(&self, part: Part<'_>, grid: &Grid<T>) {
        let rows = self.rows;
        for (k, column) in self.codes.chunks_exact(rows).enumerate() {
            let to = part.order.map_or(k, |order| order[k] as usize);
            for (codes, code) in part.codes.chunks_exact_mut(self.width).zip(column) {
                codes[to] = *code;
            }
        }
        let groups = self.width / self.group;
        for (g, (scales, zeros)) in self.scales.chunks_exact(rows).zip(self.zeros.chunks_exact(rows)).enumerate() {
            for (to, scale) in part.scales.chunks_exact_mut(groups).zip(scales) {
                to[g] = scale.to_f32();
            }
            for (to, zero) in part.zeros.chunks_exact_mut(groups).zip(zeros) {
                to[g] = grid.unsigned(*zero);
            }
        }
    }

    /// Rows of column `k`, as a range of what is stored by columns.
    pub fn column(&self, k: usize) -> Range<usize> {
        k * self.rows..(k + 1) * self.rows
    }
}
