//! Sums over slices in a fixed order, however many threads there are.

/// Σ f(aᵢ, bᵢ) as eight interleaved partial sums, which the compiler can vectorize.
pub(crate) fn sum<A: Copy, B: Copy>(a: &[A], b: &[B], f: impl Fn(A, B) -> f64) -> f64 {
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0f64; 8];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..8 {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f(*a, *b)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// a · b.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a, b, |a, b| a * b)
}

/// |a − b|².
pub(crate) fn squared_distance(a: &[f32], b: &[f64]) -> f64 {
    sum(a, b, |a, b| (f64::from(a) - b) * (f64::from(a) - b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_counts_at_every_length() {
        for length in 0..40 {
            let a: Vec<f64> = (0..length).map(f64::from).collect();
            let ones = vec![1f64; a.len()];
            let expected: f64 = a.iter().sum();
            assert_eq!(dot(&a, &ones), expected);
        }
        assert_eq!(squared_distance(&[1.0, 2.0], &[4.0, -2.0]), 25.0);
    }
}
