//! Some rows of a matrix, transposed so that each column of them is contiguous.

use std::ops::Range;

use rayon::prelude::*;

use super::grid::{Codes, Grid};
use super::kernel::STRIP;
use super::{QuantizeError, Real};

/// Rows of a chunk: few enough for its columns to stay in the second-level cache, and enough for
/// matrix products.
const ROWS: usize = 128;
/// Matrices are transposed in squares of this side, whose rows fit in a cache line.
const TILE: usize = 16;

/// A matrix, and the place for its codes.
pub(super) struct MatrixJob<'a> {
    /// `[N, K]`
    pub weight: &'a [f32],
    /// The order in which columns are solved; None for the order of the matrix.
    pub order: Option<&'a [u32]>,
    pub codes: &'a mut Codes,
}

/// Rows of a matrix by columns, `[K, rows]`, in the order in which columns are solved. Rows are
/// padded with zeros to whole strips.
#[derive(Default)]
pub(super) struct RowChunk<T> {
    /// Number of strips in a column.
    pub strips: usize,
    /// Number of columns, K.
    pub width: usize,
    /// Columns of a group.
    pub group: usize,
    /// W; for a solved column its error W − Ŵ.
    pub weight: Vec<[T; STRIP]>,
    /// The correction of each column by the errors of other columns.
    pub fed: Vec<[T; STRIP]>,
    /// Unsigned codes.
    pub codes: Vec<[u8; STRIP]>,
    /// `[K / g, rows]`
    pub scales: Vec<[T; STRIP]>,
    /// `[K / g, rows]`, signed codes.
    pub zeros: Vec<[T; STRIP]>,
    /// The weighted squared error of each row.
    pub errors: Vec<[T; STRIP]>,
}

/// Calls `run` with the index of a job and a chunk of its rows, for all chunks in parallel, and
/// keeps the codes, scales and zeros that it leaves in the chunk. Returns the sum of the errors of
/// each job. Neither chunks nor sums depend on the number of threads.
pub(super) fn each_chunk<T: Real>(
    jobs: &mut [MatrixJob<'_>],
    grid: &Grid<T>,
    run: impl Fn(usize, &mut RowChunk<T>) + Sync,
) -> Result<Vec<f64>, QuantizeError> {
    let mut sums = vec![0.0; jobs.len()];
    let places: Vec<Vec<usize>> = jobs.iter().map(places).collect();
    let parts = jobs
        .iter_mut()
        .zip(&places)
        .enumerate()
        .flat_map(|(index, (job, places))| parts(index, job, places));
    let parts: Vec<ChunkPart<'_>> = parts.collect();
    let solved = parts.into_par_iter().map_init(RowChunk::default, |chunk, part| {
        let job = part.job;
        Ok((job, chunk.solve(part, grid, &run)?))
    });
    let errors: Result<Vec<(usize, f64)>, QuantizeError> = solved.collect();
    errors?.into_iter().for_each(|(job, error)| sums[job] += error);
    Ok(sums)
}

/// The position of each column in the order of solving.
fn places(job: &MatrixJob<'_>) -> Vec<usize> {
    let mut places: Vec<usize> = (0..job.codes.shape[1]).collect();
    for (k, column) in job.order.unwrap_or_default().iter().enumerate() {
        places[*column as usize] = k;
    }
    places
}

struct ChunkPart<'a> {
    job: usize,
    group: usize,
    places: &'a [usize],
    weight: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    zeros: &'a mut [u8],
}

fn parts<'a>(
    index: usize,
    job: &'a mut MatrixJob<'_>,
    places: &'a [usize],
) -> impl Iterator<Item = ChunkPart<'a>> {
    let Codes { shape: [_, width], group, codes, scales, zeros } = &mut *job.codes;
    let (group, groups) = (*group, ROWS * (*width / *group));
    let codes = job.weight.chunks(ROWS * *width).zip(codes.chunks_mut(ROWS * *width));
    let grids = scales.chunks_mut(groups).zip(zeros.chunks_mut(groups));
    codes.zip(grids).map(move |((weight, codes), (scales, zeros))| ChunkPart {
        job: index,
        group,
        places,
        weight,
        codes,
        scales,
        zeros,
    })
}

impl<T: Real> RowChunk<T> {
    /// Number of rows, with padding.
    pub fn rows(&self) -> usize {
        self.strips * STRIP
    }

    /// The range of the strips of `columns`.
    pub fn columns(&self, columns: &Range<usize>) -> Range<usize> {
        columns.start * self.strips..columns.end * self.strips
    }

    /// Solves `part`, and returns the sum of its rows' errors.
    fn solve(
        &mut self,
        part: ChunkPart<'_>,
        grid: &Grid<T>,
        run: impl Fn(usize, &mut Self),
    ) -> Result<f64, QuantizeError> {
        self.load(&part)?;
        run(part.job, self);
        let error = self.errors.as_flattened().iter().map(|error| error.to_f64()).sum::<f64>();
        self.store(part, grid);
        Ok(error)
    }

    fn load(&mut self, part: &ChunkPart<'_>) -> Result<(), QuantizeError> {
        let width = part.places.len();
        let rows = part.weight.len() / width;
        self.make_room(rows, width, part.group);
        let padded = self.rows();
        let to = self.weight.as_flattened_mut();
        if rows < padded {
            to.chunks_exact_mut(padded).for_each(|column| column[rows..].fill(T::ZERO));
        }
        let mut wrong = 0;
        for (block, lines) in part.weight.chunks(TILE * width).enumerate() {
            for (c, places) in part.places.chunks(TILE).enumerate() {
                let tile = tile(lines, width, c * TILE);
                wrong |= non_finite(&tile);
                for (i, place) in places.iter().enumerate() {
                    let column = &mut to[place * padded + block * TILE..][..TILE];
                    for (value, line) in column.iter_mut().zip(&tile) {
                        *value = T::from_f32(line[i]);
                    }
                }
            }
        }
        if wrong == 0 { Ok(()) } else { Err(QuantizeError::NotFinite) }
    }

    /// Makes room for `rows` rows of `width` columns in groups of `group`. Errors and `fed` become
    /// 0; the rest may hold earlier values.
    fn make_room(&mut self, rows: usize, width: usize, group: usize) {
        let strips = rows.div_ceil(STRIP);
        (self.strips, self.width, self.group) = (strips, width, group);
        self.weight.resize(width * strips, [T::ZERO; STRIP]);
        self.codes.resize(width * strips, [0; STRIP]);
        self.scales.resize(width / group * strips, [T::ONE; STRIP]);
        self.zeros.resize(width / group * strips, [T::ZERO; STRIP]);
        self.errors.clear();
        self.errors.resize(strips, [T::ZERO; STRIP]);
        self.fed.clear();
        self.fed.resize(width * strips, [T::ZERO; STRIP]);
    }

    fn store(&self, part: ChunkPart<'_>, grid: &Grid<T>) {
        self.store_codes(part.codes, part.places);
        let (padded, groups) = (self.rows(), self.width / self.group);
        let (scales, zeros) = (self.scales.as_flattened(), self.zeros.as_flattened());
        for (row, (to, signs)) in
            part.scales.chunks_mut(groups).zip(part.zeros.chunks_mut(groups)).enumerate()
        {
            for (g, (scale, zero)) in to.iter_mut().zip(signs).enumerate() {
                (*scale, *zero) =
                    (scales[g * padded + row].to_f32(), grid.unsigned(zeros[g * padded + row]));
            }
        }
    }

    fn store_codes(&self, codes: &mut [u8], places: &[usize]) {
        let (width, padded) = (self.width, self.rows());
        let from = self.codes.as_flattened();
        for (block, lines) in codes.chunks_mut(TILE * width).enumerate() {
            for (c, places) in places.chunks(TILE).enumerate() {
                let mut tile = [[0u8; TILE]; TILE];
                for (i, place) in places.iter().enumerate() {
                    let column = &from[place * padded + block * TILE..][..TILE];
                    for (line, code) in tile.iter_mut().zip(column) {
                        line[i] = *code;
                    }
                }
                for (line, tile) in lines.chunks_exact_mut(width).zip(&tile) {
                    match line[c * TILE..].first_chunk_mut::<TILE>() {
                        Some(line) => *line = *tile,
                        None => line[c * TILE..].copy_from_slice(&tile[..places.len()]),
                    }
                }
            }
        }
    }
}

/// Returns 0 if all values are finite, otherwise 1.
#[inline(always)]
fn non_finite(tile: &[[f32; TILE]; TILE]) -> u32 {
    tile.as_flattened().iter().fold(0, |wrong, w| wrong | u32::from(!w.is_finite()))
}

/// A square of `lines`, which are rows of `width`, from column `first`; zeros beyond the end.
fn tile(lines: &[f32], width: usize, first: usize) -> [[f32; TILE]; TILE] {
    let mut tile = [[0f32; TILE]; TILE];
    for (tile, line) in tile.iter_mut().zip(lines.chunks_exact(width)) {
        match line[first..].first_chunk::<TILE>() {
            Some(line) => *tile = *line,
            None => tile[..width - first].copy_from_slice(&line[first..]),
        }
    }
    tile
}
