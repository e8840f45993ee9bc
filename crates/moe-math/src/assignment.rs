//! Assigns items to places at minimal total cost: one to one, or to clusters of limited size.
//!
//! Both are exact, run on the calling thread, and break ties by index: the same costs always give
//! the same assignment.

mod one_to_one;
mod transport;

pub use transport::balanced;

use one_to_one::columns_of_rows;

/// Costs that allow no assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// The costs don't fill whole rows.
    #[error("{values} costs are not a matrix of {columns} columns")]
    Shape {
        /// Costs given.
        values: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A cost is infinite or NaN.
    #[error("the cost of item {row} in place {column} is not finite")]
    NotFinite {
        /// Index of the item.
        row: usize,
        /// Index of the place or cluster.
        column: usize,
    },
    /// The clusters can't hold all items.
    #[error("{items} items don't fit into {clusters} clusters of {capacity}")]
    Capacity {
        /// Items to place.
        items: usize,
        /// Number of clusters.
        clusters: usize,
        /// Maximum number of items in a cluster.
        capacity: usize,
    },
}

/// The column of each row, such that no column is used twice, min(rows, columns) rows have one, and
/// the total cost is least.
///
/// `cost` is `[rows, columns]`. The method is that of Jonker and Volgenant (Computing 38, 1987), as
/// Crouse generalizes it to rectangles (IEEE TAES 52, 2016). It takes O(m²·M) at worst, with m the
/// lesser and M the greater of the two sizes.
///
/// # Errors
/// [`AssignmentError::Shape`] and [`AssignmentError::NotFinite`].
pub fn linear(cost: &[f64], columns: usize) -> Result<Vec<Option<usize>>, AssignmentError> {
    let rows = checked_rows(cost, columns)?;
    if rows <= columns {
        return Ok(columns_of_rows(cost, rows, columns).into_iter().map(Some).collect());
    }
    let transposed: Vec<f64> =
        (0..columns).flat_map(|j| (0..rows).map(move |i| cost[i * columns + j])).collect();
    let mut column_of = vec![None; rows];
    for (column, row) in columns_of_rows(&transposed, columns, rows).into_iter().enumerate() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, unit};

    /// The minimal total over all ways to give each row its own column.
    fn brute_force(cost: &[f64], columns: usize, row: usize, used: &mut Vec<usize>) -> f64 {
        if row == cost.len() / columns {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..columns {
            if !used.contains(&column) {
                used.push(column);
                best = best
                    .min(cost[row * columns + column] + brute_force(cost, columns, row + 1, used));
                used.pop();
            }
        }
        best
    }

    #[test]
    fn totals_are_minimal_and_both_orientations_agree() {
        let mut random = generator(1, 0);
        for (rows, columns) in [(1, 1), (1, 5), (3, 3), (4, 6), (6, 6)] {
            let cost: Vec<f64> =
                (0..rows * columns).map(|_| (unit(&mut random) * 12.0).floor() - 6.0).collect();
            let chosen: Vec<usize> =
                linear(&cost, columns).unwrap().into_iter().map(Option::unwrap).collect();
            let total: f64 = chosen.iter().enumerate().map(|(i, j)| cost[i * columns + j]).sum();
            assert_eq!(
                total,
                brute_force(&cost, columns, 0, &mut Vec::new()),
                "[{rows}, {columns}]"
            );
            let transposed: Vec<f64> = (0..columns)
                .flat_map(|j| (0..rows).map(move |i| (i, j)))
                .map(|(i, j)| cost[i * columns + j])
                .collect();
            let chosen = linear(&transposed, rows).unwrap();
            assert_eq!(chosen.iter().flatten().count(), rows);
            let entry = |(j, i): (usize, &Option<usize>)| i.map(|i| transposed[j * rows + i]);
            assert_eq!(chosen.iter().enumerate().filter_map(entry).sum::<f64>(), total);
        }
    }

    #[test]
    fn empty_costs_give_an_empty_assignment() {
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
