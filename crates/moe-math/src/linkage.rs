//! Agglomerative clustering by average linkage, by which HC-SMoE (2410.08589) groups experts.

/// Repeatedly joins the two clusters whose members are nearest on average (UPGMA), until `clusters`
/// are left.
///
/// `distances` is `[n, n]` and symmetric; it needn't come from points. Of equally near pairs, the
/// one with the lower smallest members is joined. Clusters come in order of their smallest members,
/// and members ascend. Takes O(n³); the distances of a joined cluster are updated as Lance and
/// Williams do (Comput. J. 9, 1967).
///
/// # Panics
/// If `distances` isn't a square.
pub fn average_linkage(distances: &[f64], clusters: usize) -> Vec<Vec<usize>> {
    let n = distances.len().isqrt();
    assert_eq!(n * n, distances.len(), "distances of all pairs");
    let mut distances = distances.to_vec();
    let mut members: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
    // A cluster keeps the index of its smallest member.
    let mut left: Vec<usize> = (0..n).collect();
    while left.len() > clusters.max(1) {
        let (a, b) = nearest_pair(&distances, &left, n);
        let [size_a, size_b] = [a, b].map(|c| members[c].len() as f64);
        left.retain(|c| *c != b);
        for c in left.iter().copied().filter(|c| *c != a) {
            let mean =
                (size_a * distances[a * n + c] + size_b * distances[b * n + c]) / (size_a + size_b);
            (distances[a * n + c], distances[c * n + a]) = (mean, mean);
        }
        let joined = std::mem::take(&mut members[b]);
        members[a].extend(joined);
    }
    members.retain(|cluster| !cluster.is_empty());
    members.iter_mut().for_each(|cluster| cluster.sort_unstable());
    members
}

fn nearest_pair(distances: &[f64], left: &[usize], n: usize) -> (usize, usize) {
    let mut nearest = (left[0], left[1]);
    for (position, a) in left.iter().enumerate() {
        for b in &left[position + 1..] {
            if distances[a * n + b] < distances[nearest.0 * n + nearest.1] {
                nearest = (*a, *b);
            }
        }
    }
    nearest
}

/// Euclidean distances between all of `points`, `[n, d]` row by row: `[n, n]`.
pub fn euclidean(points: &[f64], d: usize) -> Vec<f64> {
    let rows = points.chunks_exact(d);
    let pairs = rows.clone().flat_map(|a| rows.clone().map(move |b| (a, b)));
    pairs.map(|(a, b)| squared_distance(a, b).sqrt()).collect()
}

/// ‖a − b‖₂²
pub fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    crate::reduce::sum(a, b, |a, b| (a - b) * (a - b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equally_near_pairs_are_joined_from_the_lowest() {
        let points: Vec<f64> = vec![0.0, 1.0, 2.0, 3.0];
        let distances = euclidean(&points, 1);
        assert_eq!(average_linkage(&distances, 3), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(average_linkage(&distances, 2), [[0, 1], [2, 3]]);
    }

    #[test]
    fn joining_can_stop_at_once_or_end_in_one_cluster() {
        let distances = euclidean(&[0.0, 5.0, 1.0], 1);
        assert_eq!(average_linkage(&distances, 3).len(), 3);
        assert_eq!(average_linkage(&distances, 1), [[0, 1, 2]]);
        assert!(average_linkage(&[], 1).is_empty());
    }

    #[test]
    fn distances_are_means_over_pairs_of_members() {
        // From {0, 1}, point 5.0 has the mean distance 4.5; to the nearest member it is 4 (single
        // linkage), to the farthest 5 (complete linkage).
        let distances = euclidean(&[0.0, 1.0, 5.0, 9.4], 1);
        assert_eq!(average_linkage(&distances, 2), [vec![0, 1], vec![2, 3]]);
    }
}
