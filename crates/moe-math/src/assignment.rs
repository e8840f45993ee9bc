//! Assigning items to places at the least total cost: one to one, or to clusters of limited size.
//!
//! Both are exact, run on the calling thread, and break ties by index, so that the same costs give the same assignment.

mod transport;

pub use transport::balanced;

/// Costs that allow no assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// The costs don't fill whole rows.
    #[error("{values} costs are no matrix of {columns} columns")]
    Shape {
        /// Costs given.
        values: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A cost is infinite or no number.
    #[error("the cost of item {row} in place {column} is not finite")]
    NotFinite {
        /// The item.
        row: usize,
        /// The place or cluster.
        column: usize,
    },
    /// The clusters can't hold all items.
    #[error("{items} items don't fit into {clusters} clusters of {capacity}")]
    Capacity {
        /// Items to place.
        items: usize,
        /// Clusters there are.
        clusters: usize,
        /// Items that a cluster can hold.
        capacity: usize,
    },
}

/// The column of each row, so that no column is used twice, min(rows, columns) rows have one, and Σ cost is least.
///
/// `cost` is `[rows, columns]`. The shortest augmenting path method of Jonker and Volgenant (Computing 38, 1987) as
/// Crouse generalises it to rectangles (IEEE TAES 52, 2016): O(m²·M), m the lesser and M the greater of the two sizes.
///
/// # Errors
/// [`AssignmentError::Shape`] and [`AssignmentError::NotFinite`].
pub fn linear(cost: &[f64], columns: usize) -> Result<Vec<Option<usize>>, AssignmentError> {
    let rows = checked_rows(cost, columns)?;
    if rows <= columns {
        return Ok(shortest_paths(cost, rows, columns).into_iter().map(Some).collect());
    }
    let transposed: Vec<f64> = (0..columns).flat_map(|j| (0..rows).map(move |i| cost[i * columns + j])).collect();
    let mut column_of = vec![None; rows];
    for (column, row) in shortest_paths(&transposed, columns, rows).into_iter().enumerate() {
        column_of[row] = Some(column);
    }
    Ok(column_of)
}

fn checked_rows(cost: &[f64], columns: usize) -> Result<usize, AssignmentError> {
    if columns == 0 && !cost.is_empty() || columns > 0 && !cost.len().is_multiple_of(columns) {
        return Err(AssignmentError::Shape { values: cost.len(), columns });
    }
    match cost.iter().position(|c| !c.is_finite()) {
        Some(at) => Err(AssignmentError::NotFinite { row: at / columns, column: at % columns }),
        None => Ok(cost.len() / columns.max(1)),
    }
}

/// No row, item or cluster.
const NONE: usize = usize::MAX;

/// [`linear`] for rows ≤ columns. v are the columns' dual prices; a row's own price is cost − v at its column.
fn shortest_paths(cost: &[f64], rows: usize, columns: usize) -> Vec<usize> {
    let mut v = vec![0f64; columns];
    let mut row_of = vec![NONE; columns];
    let mut column_of = vec![NONE; rows];
    for row in 0..rows {
        let reduced = |i: usize, j: usize, v: &[f64]| cost[i * columns + j] - v[j];
        let mut search = Search::new((0..columns).map(|j| reduced(row, j, &v)), row);
        let end = loop {
            let j = search.nearest(|j| row_of[j] == NONE);
            if row_of[j] == NONE {
                break j;
            }
            let i = row_of[j];
            let base = search.distance[j] - reduced(i, j, &v);
            search.scan(j, |to| (base + reduced(i, to, &v), i));
        };
        search.update_prices(end, &mut v);
        let mut j = end;
        loop {
            let i = search.via[j];
            row_of[j] = i;
            // The column that row i leaves is the next to be filled; the new row leaves none.
            j = std::mem::replace(&mut column_of[i], j);
            if i == row {
                break;
            }
        }
    }
    column_of
}

/// Dijkstra's search for the shortest way from a new item to a free place, over reduced costs ≥ 0.
struct Search {
    distance: Vec<f64>,
    /// The item that enters each place on the shortest way there.
    via: Vec<usize>,
    scanned: Vec<bool>,
}

impl Search {
    fn new(distance: impl Iterator<Item = f64>, item: usize) -> Self {
        let distance: Vec<f64> = distance.collect();
        Self { via: vec![item; distance.len()], scanned: vec![false; distance.len()], distance }
    }

    /// The nearest place not yet scanned; of equally near ones a free one, then the lower index.
    fn nearest(&self, is_free: impl Fn(usize) -> bool) -> usize {
        let closer = |a: &usize, b: &usize| {
            self.distance[*a].total_cmp(&self.distance[*b]).then_with(|| is_free(*b).cmp(&is_free(*a)))
        };
        (0..self.distance.len()).filter(|j| !self.scanned[*j]).min_by(closer).expect("a free place is left")
    }

    /// Leaves place `from`: `step(to)` is the distance of `to` through it, and the item that would move there.
    fn scan(&mut self, from: usize, mut step: impl FnMut(usize) -> (f64, usize)) {
        self.scanned[from] = true;
        for to in (0..self.distance.len()).filter(|to| !self.scanned[*to]) {
            let (distance, item) = step(to);
            if distance < self.distance[to] {
                (self.distance[to], self.via[to]) = (distance, item);
            }
        }
    }

    /// Keeps reduced costs ≥ 0, and = 0 where items are: what was nearer than `end` becomes dearer by the difference.
    fn update_prices(&self, end: usize, v: &mut [f64]) {
        for j in (0..v.len()).filter(|j| self.scanned[*j]) {
            v[j] += self.distance[j] - self.distance[end];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, unit};

    /// The least total over all ways to give each row a column of its own.
    fn brute_force(cost: &[f64], columns: usize, row: usize, used: &mut Vec<usize>) -> f64 {
        if row == cost.len() / columns {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..columns {
            if !used.contains(&column) {
                used.push(column);
                best = best.min(cost[row * columns + column] + brute_force(cost, columns, row + 1, used));
                used.pop();
            }
        }
        best
    }

    #[test]
    fn totals_are_the_least_of_all_and_both_orientations_agree() {
        let mut random = generator(1, 0);
        for (rows, columns) in [(1, 1), (1, 5), (3, 3), (4, 6), (6, 6)] {
            let cost: Vec<f64> = (0..rows * columns).map(|_| (unit(&mut random) * 12.0).floor() - 6.0).collect();
            let chosen: Vec<usize> = linear(&cost, columns).unwrap().into_iter().map(Option::unwrap).collect();
            let total: f64 = chosen.iter().enumerate().map(|(i, j)| cost[i * columns + j]).sum();
            assert_eq!(total, brute_force(&cost, columns, 0, &mut Vec::new()), "[{rows}, {columns}]");
            let transposed: Vec<f64> =
                (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| cost[i * columns + j]).collect();
            let chosen = linear(&transposed, rows).unwrap();
            assert_eq!(chosen.iter().flatten().count(), rows);
            let entry = |(j, i): (usize, &Option<usize>)| i.map(|i| transposed[j * rows + i]);
            assert_eq!(chosen.iter().enumerate().filter_map(entry).sum::<f64>(), total);
        }
    }

    #[test]
    fn nothing_is_assigned_to_nothing() {
        assert!(linear(&[], 0).unwrap().is_empty());
        assert!(linear(&[], 3).unwrap().is_empty());
        assert!(balanced(&[], 3, 0).unwrap().is_empty());
    }

    #[test]
    fn impossible_requests_are_explained() {
        assert_eq!(linear(&[1.0; 5], 2), Err(AssignmentError::Shape { values: 5, columns: 2 }));
        assert_eq!(linear(&[1.0], 0), Err(AssignmentError::Shape { values: 1, columns: 0 }));
        let nan = [0.0, 1.0, 2.0, f64::NAN];
        assert_eq!(linear(&nan, 2), Err(AssignmentError::NotFinite { row: 1, column: 1 }));
        let full = AssignmentError::Capacity { items: 3, clusters: 2, capacity: 1 };
        assert_eq!(balanced(&[0.0; 6], 2, 1), Err(full));
    }
}
