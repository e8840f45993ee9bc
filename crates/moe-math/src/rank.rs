//! Measures how similar two rankings or two choices are.

/// Spearman's rank correlation: Pearson's correlation of the ranks, where equal values share their
/// mean rank. If a ranking is constant, it is 1 if both are equal and 0 otherwise.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let product =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let norm = (product(&a, &a) * product(&b, &b)).sqrt();
    if norm > 0.0 { product(&a, &b) / norm } else { f64::from(u8::from(a == b)) }
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 1.0;
    for equals in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let shared = first + (equals.len() as f64 - 1.0) / 2.0;
        equals.iter().for_each(|index| ranks[*index] = shared);
        first += equals.len() as f64;
    }
    ranks
}

/// |a ∩ b| / |a ∪ b| of two ascending sets; 1 if both are empty.
pub fn jaccard(a: &[usize], b: &[usize]) -> f64 {
    let common = a.iter().filter(|x| b.binary_search(x).is_ok()).count();
    let union = a.len() + b.len() - common;
    if union == 0 { 1.0 } else { common as f64 / union as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 40.0]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0]), [3.5, 2.0, 3.5, 1.0]);
        assert_eq!(
            (spearman(&[1.0; 3], &[2.0; 3]), spearman(&[1.0; 3], &[1.0, 2.0, 3.0])),
            (1.0, 0.0)
        );
        assert_eq!((jaccard(&[1, 2, 3], &[2, 3, 4]), jaccard(&[], &[])), (0.5, 1.0));
    }
}
