//! [`linear`](super::linear) for rows ≤ columns.
//!
//! The method of Jonker and Volgenant (Computing 38, 1987): for squares first the three reductions
//! that leave few rows free, then, for each row that is left, the shortest augmenting path, as
//! Crouse has it for rectangles (IEEE TAES 52, 2016).

use std::collections::VecDeque;

/// No row, no column.
const NONE: usize = usize::MAX;
/// Rows that the reduction may displace, as a multiple of their number: with costs that are nearly
/// equal it could go on for long.
const DISPLACEMENTS: usize = 8;

/// The column of each row of `cost`, `[rows, columns]`.
pub(super) fn columns_of_rows(cost: &[f64], rows: usize, columns: usize) -> Vec<usize> {
    let mut matching = Matching {
        cost,
        v: vec![0.0; columns],
        row_of: vec![NONE; columns],
        column_of: vec![NONE; rows],
    };
    let free = if rows == columns && rows > 1 { matching.reduced() } else { (0..rows).collect() };
    let mut search = PathSearch::new(columns);
    free.into_iter().for_each(|row| matching.augment(row, &mut search));
    matching.column_of
}

/// A matching, and prices v of columns with which it is the best of its rows: a row's own price is
/// cost − v at its column.
struct Matching<'a> {
    cost: &'a [f64],
    v: Vec<f64>,
    row_of: Vec<usize>,
    column_of: Vec<usize>,
}

impl<'a> Matching<'a> {
    fn row(&self, row: usize) -> &'a [f64] {
        &self.cost[row * self.v.len()..][..self.v.len()]
    }

    fn assign(&mut self, row: usize, column: usize) {
        (self.row_of[column], self.column_of[row]) = (row, column);
    }

    /// Matches most rows of a square; gives the others.
    fn reduced(&mut self) -> Vec<usize> {
        let matches = self.reduce_columns();
        for row in (0..matches.len()).filter(|row| matches[*row] == 1) {
            self.transfer(row);
        }
        let free = (0..matches.len()).filter(|row| self.column_of[*row] == NONE).collect();
        let mut displacements = DISPLACEMENTS * matches.len();
        let free = self.reduce_rows(free, &mut displacements);
        self.reduce_rows(free, &mut displacements)
    }

    /// Prices every column at its least cost, where its row takes it; how many columns would have
    /// taken each row.
    fn reduce_columns(&mut self) -> Vec<u32> {
        let columns = self.v.len();
        let mut least = vec![0; columns];
        let first = self.row(0);
        self.v.copy_from_slice(first);
        for row in 1..columns {
            for ((v, least), cost) in
                self.v.iter_mut().zip(&mut least).zip(self.cost[row * columns..].iter())
            {
                if cost < v {
                    (*v, *least) = (*cost, row);
                }
            }
        }
        let mut matches = vec![0; columns];
        for (column, row) in least.into_iter().enumerate().rev() {
            matches[row] += 1;
            if self.column_of[row] == NONE {
                self.assign(row, column);
            }
        }
        matches
    }

    /// Lowers the price of the only column of `row` to what would make its second choice as good.
    fn transfer(&mut self, row: usize) {
        let own = self.column_of[row];
        let others =
            self.row(row).iter().zip(&self.v).enumerate().filter(|(column, _)| *column != own);
        let second = others.map(|(_, (cost, v))| cost - v).fold(f64::INFINITY, f64::min);
        self.v[own] -= second;
    }

    /// Gives every free row its best column, lowering that column's price by what it is better than
    /// the second; who is displaced, by a strict improvement, is next. Gives the rows that are free
    /// then.
    fn reduce_rows(&mut self, free: Vec<usize>, displacements: &mut usize) -> Vec<usize> {
        let mut left = Vec::new();
        let mut queue = VecDeque::from(free);
        while let Some(row) = queue.pop_front() {
            if *displacements == 0 {
                left.push(row);
                continue;
            }
            *displacements -= 1;
            match self.take_best(row) {
                Some((displaced, true)) => queue.push_front(displaced),
                Some((displaced, false)) => left.push(displaced),
                None => {}
            }
        }
        left.sort_unstable();
        left
    }

    /// Gives `row` its best column, or the second where that is as good and the best is taken.
    /// Tells who is displaced, and whether the best is a strict improvement on the second.
    fn take_best(&mut self, row: usize) -> Option<(usize, bool)> {
        let [(best, mut column), (second, other)] = two_least(self.row(row), &self.v);
        let better = best < second;
        if better {
            self.v[column] -= second - best;
        } else if self.row_of[column] != NONE {
            column = other;
        }
        let displaced = std::mem::replace(&mut self.row_of[column], NONE);
        self.assign(row, column);
        if displaced == NONE {
            return None;
        }
        self.column_of[displaced] = NONE;
        Some((displaced, better))
    }

    /// Matches `row` along the shortest way to a free column.
    fn augment(&mut self, row: usize, search: &mut PathSearch) {
        let end = self.nearest_free(row, search);
        // Reduced costs stay ≥ 0, and = 0 where rows are matched: what was nearer than the end
        // becomes more expensive by the difference.
        for column in &search.closed {
            self.v[*column] += search.distance[*column] - search.distance[end];
        }
        let mut column = end;
        loop {
            let mover = search.via[column];
            self.row_of[column] = mover;
            // The column that it leaves is the next to be filled; the new row leaves none.
            column = std::mem::replace(&mut self.column_of[mover], column);
            if mover == row {
                break;
            }
        }
    }

    /// The free column that is nearest to `row`; `search` has the way then.
    fn nearest_free(&self, row: usize, search: &mut PathSearch) -> usize {
        search.start();
        let (mut from, mut base) = (row, 0.0);
        loop {
            search.relax(self.row(from), &self.v, base, from);
            let column = search.nearest(|column| self.row_of[column] == NONE);
            search.close(column);
            from = self.row_of[column];
            if from == NONE {
                return column;
            }
            base = search.distance[column] - (self.row(from)[column] - self.v[column]);
        }
    }
}

/// The least two of cost − v, and their columns.
fn two_least(costs: &[f64], v: &[f64]) -> [(f64, usize); 2] {
    let mut least = [(f64::INFINITY, NONE); 2];
    for (column, (cost, v)) in costs.iter().zip(v).enumerate() {
        let reduced = cost - v;
        if reduced < least[0].0 {
            least = [(reduced, column), least[0]];
        } else if reduced < least[1].0 {
            least[1] = (reduced, column);
        }
    }
    least
}

/// Dijkstra's search for the shortest way from a free row to a free column, over reduced costs ≥ 0.
/// Whole rows are looked at without branches, which is faster than leaving out what is closed.
struct PathSearch {
    /// Distances of open columns; infinite where closed.
    open: Vec<f64>,
    /// Infinite for closed columns, otherwise 0: what is added to their distances.
    penalty: Vec<f64>,
    /// The row that enters each column on the shortest way there.
    via: Vec<usize>,
    /// Of closed columns.
    distance: Vec<f64>,
    closed: Vec<usize>,
}

impl PathSearch {
    fn new(columns: usize) -> Self {
        let zeros = vec![0.0; columns];
        Self {
            open: zeros.clone(),
            penalty: zeros.clone(),
            via: vec![0; columns],
            distance: zeros,
            closed: Vec::new(),
        }
    }

    fn start(&mut self) {
        self.open.fill(f64::INFINITY);
        self.penalty.fill(0.0);
        self.closed.clear();
    }

    /// Offers all columns the way through `row`, whose `costs` these are, from the distance `base`.
    fn relax(&mut self, costs: &[f64], v: &[f64], base: f64, row: usize) {
        let columns = self.open.len();
        let (open, via) = (&mut self.open[..columns], &mut self.via[..columns]);
        let (penalty, costs, v) = (&self.penalty[..columns], &costs[..columns], &v[..columns]);
        for column in 0..columns {
            let distance = base + (costs[column] - v[column]) + penalty[column];
            let nearer = distance < open[column];
            open[column] = if nearer { distance } else { open[column] };
            via[column] = if nearer { row } else { via[column] };
        }
    }

    /// The nearest open column; of equally near ones a free one, then the lower index.
    fn nearest(&self, is_free: impl Fn(usize) -> bool) -> usize {
        const LANES: usize = 8;
        let (chunks, rest) = self.open.as_chunks::<LANES>();
        let mut least = [f64::INFINITY; LANES];
        for chunk in chunks {
            for (least, distance) in least.iter_mut().zip(chunk) {
                *least = if distance < least { *distance } else { *least };
            }
        }
        let least = least.iter().chain(rest).copied().fold(f64::INFINITY, f64::min);
        let equal = || (0..self.open.len()).filter(|column| self.open[*column] == least);
        equal()
            .find(|column| is_free(*column))
            .or_else(|| equal().next())
            .expect("a free column is left")
    }

    fn close(&mut self, column: usize) {
        self.distance[column] = self.open[column];
        (self.open[column], self.penalty[column]) = (f64::INFINITY, f64::INFINITY);
        self.closed.push(column);
    }
}
