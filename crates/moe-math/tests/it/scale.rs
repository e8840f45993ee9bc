//! Times at the sizes of real models:
//! `cargo test --release -p moe-math --test it scale:: -- --ignored --nocapture`

use std::time::Instant;

use crate::common::every_device;
use candle_core::Tensor;
use moe_math::assignment::{balanced, linear};
use moe_math::kmeans::{KmeansOptions, balanced_kmeans, kmeans};
use moe_math::sampling::{generator, normal};

fn uniform(count: usize, seed: u64) -> Vec<f64> {
    normal(count, 1.0, &mut generator(seed, 0)).into_iter().map(f64::from).collect()
}

#[test]
#[ignore = "measures times"]
fn balanced_assignments() {
    for (n, k) in [(1536, 8), (8192, 16), (14336, 64)] {
        for (name, bias) in [("independent", 0.0), ("most want the same clusters", 0.5)] {
            let mut cost = uniform(n * k, 1);
            cost.iter_mut().enumerate().for_each(|(i, c)| *c += bias * (i % k) as f64);
            let start = Instant::now();
            balanced(&cost, k, n / k).unwrap();
            println!("balanced [{n}, {k}], {name}: {:?}", start.elapsed());
        }
    }
    for n in [256, 1024, 2048] {
        let cost = uniform(n * n, 2);
        let start = Instant::now();
        linear(&cost, n).unwrap();
        println!("linear [{n}, {n}]: {:?}", start.elapsed());
    }
}

#[test]
#[ignore = "measures times"]
fn clusterings() {
    every_device(|device| {
        for (n, d, k) in [(8192, 1024, 16), (14336, 1024, 64)] {
            let points =
                Tensor::from_vec(normal(n * d, 1.0, &mut generator(3, 0)), (n, d), device).unwrap();
            let options = KmeansOptions { max_iterations: 10, ..KmeansOptions::default() };
            let start = Instant::now();
            let found = kmeans(&points, k, &options, &mut generator(4, 0)).unwrap();
            println!(
                "kmeans [{n}, {d}], {k}: {:?}, {} iterations",
                start.elapsed(),
                found.iterations
            );
            let start = Instant::now();
            let found = balanced_kmeans(&points, k, n / k, &options, &mut generator(4, 0)).unwrap();
            println!(
                "balanced_kmeans [{n}, {d}], {k}: {:?}, {} iterations",
                start.elapsed(),
                found.iterations
            );
        }
    });
}
