//! Choosing a set of experts that are important and different from each other: DO-ACP (2605.28207).

/// K_ij = √(I_i I_j) · E⟨f_i, f_j⟩ of experts with importances I, row by row.
pub fn kernel(importance: &[f64], products: &[f64]) -> Vec<f64> {
    let n = importance.len();
    (0..n * n).map(|at| (importance[at / n] * importance[at % n]).sqrt() * products[at]).collect()
}

/// The λ for taking `k` items of `kernel`, `[n, n]`: the mean over its diagonal, divided by k.
pub fn lambda(kernel: &[f64], n: usize, k: usize) -> f64 {
    (0..n).map(|i| kernel[i * n + i]).sum::<f64>() / n as f64 / k.max(1) as f64
}

/// All items in greedy order: each next item maximizes log det(K_S + λ I), the lowest index among
/// equals. K is `[n, n]` row by row, symmetric and positive semi-definite.
///
/// An item adds the log of its diagonal entry after S is projected out: a Cholesky factor with
/// pivots (Chen et al. 1709.05135).
///
/// # Panics
/// If K isn't `[n, n]`.
pub fn greedy(kernel: &[f64], n: usize, lambda: f64) -> Vec<usize> {
    assert_eq!(kernel.len(), n * n, "a square matrix");
    let mut left: Vec<f64> = (0..n).map(|i| kernel[i * n + i] + lambda).collect();
    // Rows of the factor, one for each item taken.
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(n);
    let mut order = Vec::with_capacity(n);
    let mut open: Vec<usize> = (0..n).collect();
    while !open.is_empty() {
        let best =
            open.iter().copied().reduce(|best, i| if left[i] > left[best] { i } else { best });
        let best = best.expect("some are open");
        open.retain(|i| *i != best);
        order.push(best);
        // Rounding can make the rest of an item negative if the items taken span it.
        let root = left[best].max(f64::MIN_POSITIVE).sqrt();
        let mut row = vec![0.0; n];
        for i in &open {
            let known: f64 = rows.iter().map(|row| row[best] * row[*i]).sum();
            row[*i] = (kernel[best * n + i] - known) / root;
            left[*i] -= row[*i] * row[*i];
        }
        rows.push(row);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    /// log det of a positive definite matrix, by elimination.
    fn log_det(mut m: Vec<f64>, n: usize) -> f64 {
        let mut sum = 0.0;
        for k in 0..n {
            sum += m[k * n + k].ln();
            for i in k + 1..n {
                let factor = m[i * n + k] / m[k * n + k];
                (k..n).for_each(|j| m[i * n + j] -= factor * m[k * n + j]);
            }
        }
        sum
    }

    #[test]
    fn each_step_maximizes_the_determinant() {
        let n = 7;
        let x: Vec<f64> =
            normal(n * 4, 1.0, &mut generator(3, 0)).into_iter().map(f64::from).collect();
        let product = |i: usize, j: usize| (0..4).map(|c| x[i * 4 + c] * x[j * 4 + c]).sum::<f64>();
        let kernel: Vec<f64> = (0..n * n).map(|at| product(at / n, at % n)).collect();
        let lambda = 0.1;
        let order = greedy(&kernel, n, lambda);
        let of = |set: &[usize]| {
            let k = set.len();
            let value = |(a, b): (usize, usize)| {
                kernel[set[a] * n + set[b]] + if a == b { lambda } else { 0.0 }
            };
            log_det((0..k * k).map(|at| value((at / k, at % k))).collect(), k)
        };
        for k in 1..=n {
            let chosen = of(&order[..k]);
            for other in (0..n).filter(|i| !order[..k].contains(i)) {
                let mut set = order[..k].to_vec();
                set[k - 1] = other;
                assert!(of(&set) <= chosen + 1e-12, "{k}: {other}");
            }
        }
    }

    #[test]
    fn a_copy_of_a_chosen_item_comes_last() {
        // Items 0 and 1 are identical, and the largest.
        assert_eq!(greedy(&[4., 4., 0., 4., 4., 0., 0., 0., 1.], 3, 0.5), [0, 2, 1]);
        assert_eq!(greedy(&[0.0; 4], 2, 0.0), [0, 1]);
    }
}
