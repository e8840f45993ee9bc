//! Compares with scikit-learn, scipy and numpy (golden/math), on every device.

use crate::common::{Golden, difference, every_device, numbers};
use candle_core::Device;
use moe_math::assignment::{balanced, linear};
use moe_math::kmeans::{
    ClusterError, Clustering, KmeansOptions, Metric, balanced_kmeans_from, kmeans_from,
};
use moe_math::orthogonal::orthonormalize;
use moe_math::temperature::scale_to_entropy;

/// Maximum error of a centroid, relative to the largest coordinate: rounding to f32.
const CENTROID: f64 = 1e-6;

fn cluster(golden: &Golden, case: &str, device: &Device) -> Result<Clustering, ClusterError> {
    let metric = if case.starts_with("spherical") || case == "cosine" {
        Metric::Cosine
    } else {
        Metric::Euclidean
    };
    let max_iterations = if case == "truncated" { 2 } else { 300 };
    let options = KmeansOptions { metric, max_iterations };
    let points = golden.get(case, "points").to_device(device)?;
    let initial = golden.get(case, "initial").to_device(device)?;
    match golden.find(case, "capacity") {
        None => kmeans_from(&points, &initial, &options),
        Some(_) => balanced_kmeans_from(
            &points,
            &initial,
            golden.integers(case, "capacity")[0] as usize,
            &options,
        ),
    }
}

fn assert_same_clusters(golden: &Golden, case: &str, device: &Device) {
    let found = cluster(golden, case, device).unwrap();
    assert!(found.centroids.device().same_device(device));
    let expected = golden.numbers(case, "centroids");
    let off = difference(&numbers(&found.centroids), &expected);
    assert!(
        off < CENTROID * expected.iter().fold(0.0, |most, x| x.abs().max(most)),
        "{case}: centroids differ by {off}"
    );
    assert_eq!(found.is_settled, case != "truncated", "{case}");
    if case == "truncated" {
        return;
    }
    let assignment: Vec<i64> = found.assignment.iter().map(|a| i64::from(*a)).collect();
    assert_eq!(assignment, golden.integers(case, "assignment"), "{case}");
    let inertia = golden.numbers(case, "inertia")[0];
    assert!(
        (found.inertia / inertia - 1.0).abs() < 1e-5,
        "{case}: {} is not {inertia}",
        found.inertia
    );
    if golden.find(case, "iterations").is_some() {
        assert_eq!(found.iterations as i64, golden.integers(case, "iterations")[0], "{case}");
    }
}

#[test]
fn clusters_are_those_of_scikit_learn() {
    let golden = Golden::open("kmeans");
    every_device(|device| {
        golden.cases(8).iter().for_each(|case| assert_same_clusters(&golden, case, device))
    });
}

#[test]
fn balanced_clusters_are_those_of_scipy() {
    let golden = Golden::open("balanced");
    every_device(|device| {
        golden.cases(4).iter().for_each(|case| assert_same_clusters(&golden, case, device))
    });
}

#[test]
fn assignments_are_those_of_scipy() {
    let golden = Golden::open("assignment");
    for case in golden.cases(12) {
        let cost = golden.numbers(case, "cost");
        let columns = golden.get(case, "cost").dim(1).unwrap();
        let chosen: Vec<i64> = match golden.find(case, "capacity") {
            None => {
                linear(&cost, columns).unwrap().iter().map(|c| c.map_or(-1, |c| c as i64)).collect()
            }
            Some(_) => {
                let capacity = golden.integers(case, "capacity")[0] as usize;
                balanced(&cost, columns, capacity).unwrap().iter().map(|c| i64::from(*c)).collect()
            }
        };
        let price = |(row, column): (usize, &i64)| cost[row * columns + *column as usize];
        let total: f64 =
            chosen.iter().enumerate().filter(|(_, column)| **column >= 0).map(price).sum();
        let expected = golden.numbers(case, "total")[0];
        assert!(
            (total - expected).abs() < 1e-12 * expected.abs().max(1.0),
            "{case}: {total} is not {expected}"
        );
        if golden.find(case, "column_of").is_some() {
            assert_eq!(chosen, golden.integers(case, "column_of"), "{case}");
        }
    }
}

#[test]
fn orthonormal_rows_are_those_of_numpy() {
    let golden = Golden::open("orthogonal");
    for case in golden.cases(4) {
        let mut rows = golden.numbers(case, "gaussian");
        orthonormalize(&mut rows, golden.get(case, "gaussian").dim(1).unwrap()).unwrap();
        let off = difference(&rows, &golden.numbers(case, "rows"));
        assert!(off < 1e-12, "{case}: {off:e}");
    }
}

#[test]
fn scales_are_those_of_scipy() {
    let golden = Golden::open("temperature");
    every_device(|device| {
        for case in golden.cases(5) {
            let logits = golden.get(case, "logits").to_device(device).unwrap();
            let pairs =
                golden.numbers(case, "targets").into_iter().zip(golden.numbers(case, "scales"));
            for (target, scale) in pairs {
                let found = scale_to_entropy(&logits, target).unwrap();
                assert!(
                    (found.scale / scale - 1.0).abs() < 1e-8,
                    "{case} at {target}: {found:?} is not {scale}"
                );
                assert!(
                    (found.entropy_fraction - target).abs() < 1e-10,
                    "{case} at {target}: {found:?}"
                );
            }
        }
    });
}
