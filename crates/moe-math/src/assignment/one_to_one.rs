//! [`linear`](super::linear) for rows ≤ columns.
//!
//! The method of Jonker and Volgenant (Computing 38, 1987). For squares, three reductions first
//! leave few rows free. Then each free row is matched along the shortest augmenting path, as Crouse
//! does for rectangles (IEEE TAES 52, 2016).

use std::collections::VecDeque;

/// Stands for "no row" and "no column".
const NONE: usize = usize::MAX;
/// Maximum number of rows that the reduction displaces, as a multiple of the number of rows. With
/// nearly equal costs it could otherwise go on for long.
const MAX_DISPLACEMENTS: usize = 8;

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

/// A matching, with prices v of columns for which it is optimal for its rows. A row's own price is
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

    /// Matches most rows of a square matrix, and returns the others.
    fn reduced(&mut self) -> Vec<usize> {
        let matches = self.reduce_columns();
        for row in (0..matches.len()).filter(|row| matches[*row] == 1) {
            self.transfer(row);
        }
        let free = (0..matches.len()).filter(|row| self.column_of[*row] == NONE).collect();
        let mut displacements = MAX_DISPLACEMENTS * matches.len();
        let free = self.reduce_rows(free, &mut displacements);
        self.reduce_rows(free, &mut displacements)
    }

    /// Sets every column's price to its least cost, and matches the column with that row if the row
    /// is free. Returns for each row the number of columns that have their least cost in it.
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

    /// Lowers the price of the only column of `row` until the row's second choice is as good.
    fn transfer(&mut self, row: usize) {
        let own = self.column_of[row];
        let others =
            self.row(row).iter().zip(&self.v).enumerate().filter(|(column, _)| *column != own);
        let second = others.map(|(_, (cost, v))| cost - v).fold(f64::INFINITY, f64::min);
        self.v[own] -= second;
    }

    /// Matches every free row with its best column, and lowers that column's price by its lead over
    /// the second best. A row displaced by a strict improvement is matched next. Returns the rows
    /// that are free at the end.
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

    /// Matches `row` with its best column, or with the second best if that is as good and the best
    /// is taken. Returns the displaced row, and whether the best was strictly better than the
    /// second.
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

    /// Matches `row` along the shortest path to a free column.
    fn augment(&mut self, row: usize, search: &mut PathSearch) {
        let end = self.nearest_free(row, search);
        // Keeps reduced costs ≥ 0, and = 0 where rows are matched: a column nearer than the end
        // becomes more expensive by the difference.
        for column in &search.closed {
            self.v[*column] += search.distance[*column] - search.distance[end];
        }
        let mut column = end;
        loop {
            let mover = search.via[column];
            self.row_of[column] = mover;
            // The row's previous column is filled next; the new row had none.
            column = std::mem::replace(&mut self.column_of[mover], column);
            if mover == row {
                break;
            }
        }
    }

    /// The free column nearest to `row`; `search` then holds the path.
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

/// The two least values of cost − v, and their columns.
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

/// Dijkstra's search for the shortest path from a free row to a free column. Reduced costs are ≥ 0.
/// It scans whole rows without branches, which is faster than skipping closed columns.
struct PathSearch {
    /// Distances of open columns; infinite for closed ones.
    open: Vec<f64>,
    /// Added to the distances: infinite for closed columns, otherwise 0.
    penalty: Vec<f64>,
    /// The row before each column on the shortest path to it.
    via: Vec<usize>,
    /// Distances of closed columns.
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

    /// Offers all columns the path through `row` with these `costs`, from distance `base`.
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

    /// The nearest open column; of equally near ones a free one, then the lowest index.
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
