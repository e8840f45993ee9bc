//! Properties of clusterings, on every device.

use crate::common::{every_device, numbers};
use candle_core::{Device, Tensor};
use moe_math::kmeans::{
    ClusterError, Clustering, KmeansOptions, Metric, balanced_kmeans, balanced_kmeans_from, kmeans,
    kmeans_from,
};
use moe_math::sampling::{generator, normal};

const METRICS: [Metric; 2] = [Metric::Euclidean, Metric::Cosine];

fn points(n: usize, d: usize, seed: u64, device: &Device) -> Tensor {
    Tensor::from_vec(normal(n * d, 1.0, &mut generator(seed, 0)), (n, d), device).unwrap()
}

fn sizes(found: &Clustering) -> Vec<usize> {
    let k = found.centroids.dim(0).unwrap();
    (0..k as u32).map(|c| found.assignment.iter().filter(|a| **a == c).count()).collect()
}

/// Searches that end after 1, 2, … iterations show each step; the last one is settled.
fn assert_falling(search: impl Fn(usize) -> Clustering, case: &str) {
    let mut last = search(1);
    for iterations in 2..300 {
        let next = search(iterations);
        if next.is_settled {
            assert_eq!(
                (next.inertia, &next.assignment),
                (last.inertia, &last.assignment),
                "{case}"
            );
            return;
        }
        assert!(
            next.inertia < last.inertia && next.iterations == iterations,
            "{case}: {} after {iterations}",
            next.inertia
        );
        last = next;
    }
    panic!("{case} did not settle");
}

#[test]
fn inertia_falls_until_the_assignment_settles() {
    every_device(|device| {
        for seed in 0..6 {
            for metric in METRICS {
                let options = |max_iterations| KmeansOptions { metric, max_iterations };
                let (points, start) =
                    (points(96, 5, seed, device), points(6, 5, 100 + seed, device));
                let plain = |i| kmeans_from(&points, &start, &options(i)).unwrap();
                assert_falling(plain, &format!("plain {metric:?} {seed}"));
                for capacity in [16, 18] {
                    let balanced =
                        |i| balanced_kmeans_from(&points, &start, capacity, &options(i)).unwrap();
                    assert_falling(balanced, &format!("capacity {capacity} {metric:?} {seed}"));
                }
            }
        }
    });
}

#[test]
fn clusters_have_their_sizes_and_none_is_empty() {
    every_device(|device| {
        for seed in 0..10 {
            let points = points(60, 3, seed, device);
            let options = KmeansOptions::default();
            let random = &mut generator(seed, 1);
            assert!(sizes(&kmeans(&points, 20, &options, random).unwrap()).iter().all(|n| *n > 0));
            assert_eq!(sizes(&balanced_kmeans(&points, 12, 5, &options, random).unwrap()), [5; 12]);
            let room = sizes(&balanced_kmeans(&points, 12, 7, &options, random).unwrap());
            assert!(room.iter().all(|n| (1..=7).contains(n)), "{room:?}");
        }
    });
}

#[test]
fn separate_groups_are_found_and_a_seed_repeats() {
    every_device(|device| {
        // Groups at 50·e₁ … 50·e₄ are far apart compared with their width of 1.
        let mut values = normal(80 * 4, 1.0, &mut generator(3, 0));
        (0..80).for_each(|i| values[i * 4 + i % 4] += 50.0);
        let points = Tensor::from_vec(values, (80, 4), device).unwrap();
        for metric in METRICS {
            let options = KmeansOptions { metric, ..KmeansOptions::default() };
            let run = || kmeans(&points, 4, &options, &mut generator(9, 2)).unwrap();
            let (found, again) = (run(), run());
            assert!(
                (0..80).all(|i| found.assignment[i] == found.assignment[i % 4]),
                "{:?}",
                found.assignment
            );
            assert_eq!(sizes(&found), [20; 4]);
            assert_eq!((found.assignment, found.inertia), (again.assignment, again.inertia));
            assert_eq!(numbers(&found.centroids), numbers(&again.centroids));
        }
    });
}

#[test]
fn threads_do_not_change_a_bit() {
    let points = points(3000, 70, 8, &Device::Cpu);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let options = KmeansOptions { max_iterations: 12, ..KmeansOptions::default() };
        let found = pool.install(|| kmeans(&points, 9, &options, &mut generator(1, 0)).unwrap());
        (found.assignment, found.inertia.to_bits(), numbers(&found.centroids))
    };
    let one = run(1);
    assert!([2, 3, 8].into_iter().all(|threads| run(threads) == one));
}

#[test]
fn cosine_centroids_are_unit_vectors_and_lengths_do_not_matter() {
    every_device(|device| {
        let points = points(50, 6, 1, device);
        let lengths = Tensor::arange(1f32, 51.0, device).unwrap().unsqueeze(1).unwrap();
        let longer = points.broadcast_mul(&lengths).unwrap();
        let options = KmeansOptions { metric: Metric::Cosine, ..KmeansOptions::default() };
        let [a, b] = [&points, &longer]
            .map(|points| kmeans(points, 5, &options, &mut generator(4, 0)).unwrap());
        assert_eq!(a.assignment, b.assignment);
        for centroid in numbers(&a.centroids).chunks_exact(6) {
            assert!((centroid.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-6);
        }
    });
}

/// The farthest point of a cluster of two moves, the first of equally far ones. Then the cluster's
/// last point must stay.
#[test]
fn empty_clusters_take_the_farthest_point_that_leaves_none_empty() {
    every_device(|device| {
        // Their mean is 63, so distances are exact.
        let points = Tensor::new(&[[0f32], [10.0], [100.0], [101.0], [104.0]], device).unwrap();
        let start = Tensor::new(&[[5f32], [102.0], [1000.0], [2000.0]], device).unwrap();
        let options = KmeansOptions { max_iterations: 1, ..KmeansOptions::default() };
        assert_eq!(kmeans_from(&points, &start, &options).unwrap().assignment, [2, 0, 3, 1, 1]);
    });
}

#[test]
fn as_many_clusters_as_points_leave_no_inertia() {
    every_device(|device| {
        let found =
            kmeans(&points(9, 2, 5, device), 9, &KmeansOptions::default(), &mut generator(1, 0))
                .unwrap();
        assert_eq!((sizes(&found), found.inertia), (vec![1; 9], 0.0));
    });
}

#[test]
fn points_that_cannot_be_clustered_are_explained() {
    let (options, random) = (KmeansOptions::default(), &mut generator(1, 0));
    let some = points(5, 3, 1, &Device::Cpu);
    let error = |points: &Tensor, k, metric| {
        kmeans(points, k, &KmeansOptions { metric, ..options }, &mut generator(1, 0)).unwrap_err()
    };
    let plain = |points: &Tensor, k| error(points, k, Metric::Euclidean);
    assert!(matches!(plain(&some, 6), ClusterError::Clusters { points: 5, clusters: 6 }));
    assert!(matches!(plain(&some, 0), ClusterError::Clusters { clusters: 0, .. }));
    assert!(plain(&some, 6).to_string().contains("5 points can't form 6 clusters"));
    let equal = Tensor::ones((7, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(matches!(plain(&equal, 2), ClusterError::Duplicates { .. }));
    assert_eq!(kmeans(&equal, 1, &options, random).unwrap().inertia, 0.0);
    assert!(matches!(plain(&equal.narrow(1, 0, 0).unwrap(), 2), ClusterError::NoCoordinates));
    let bad = |value: f32| Tensor::new(&[[1f32, 2.0], [value, 0.0]], &Device::Cpu).unwrap();
    for value in [f32::NAN, f32::NEG_INFINITY, 1e30] {
        assert!(matches!(plain(&bad(value), 2), ClusterError::NotFinite { row: 1, .. }));
    }
    assert!(matches!(
        error(&bad(0.0), 2, Metric::Cosine),
        ClusterError::NoDirection { row: 1, .. }
    ));
    let initial = Tensor::new(&[[f32::INFINITY, 0.0, 0.0]], &Device::Cpu).unwrap();
    assert!(
        kmeans_from(&some, &initial, &options)
            .unwrap_err()
            .to_string()
            .contains("initial centroid 0")
    );
    let narrow = initial.narrow(1, 1, 2).unwrap();
    assert!(matches!(
        kmeans_from(&some, &narrow, &options).unwrap_err(),
        ClusterError::Width { points: 3, centroids: 2 }
    ));
    let small = balanced_kmeans(&some, 2, 2, &options, random).unwrap_err();
    assert!(small.to_string().contains("5 items don't fit into 2 clusters of 2"), "{small}");
}

/// Directions that cancel have no mean direction, so the centroid stays.
#[test]
fn opposite_directions_keep_the_centroid() {
    every_device(|device| {
        let points = Tensor::new(&[[1f32, 0.0], [-1.0, 0.0]], device).unwrap();
        let start = Tensor::new(&[[0f32, 1.0]], device).unwrap();
        let options = KmeansOptions { metric: Metric::Cosine, ..KmeansOptions::default() };
        let found = kmeans_from(&points, &start, &options).unwrap();
        assert_eq!(numbers(&found.centroids), [0.0, 1.0]);
        assert!((found.inertia - 4.0).abs() < 1e-12);
    });
}
