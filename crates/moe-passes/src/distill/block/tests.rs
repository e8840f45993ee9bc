use candle_core::{Device, Tensor};
use moe_math::sampling::{generator, normal};

use super::*;

/// Compares with sums in f64, for weights that differ.
#[test]
fn the_loss_is_the_relative_error_and_a_little_of_the_angle() {
    let (rows, hidden) = (5, 7);
    let mut random = generator(1, 0);
    let (found, y) =
        (normal(rows * hidden, 1.0, &mut random), normal(rows * hidden, 1.0, &mut random));
    let weights = vec![0.5f32, 2.0, 1.0, 0.25, 3.0];
    let energy = 4.0;
    let mut expected = 0f64;
    for ((a, b), weight) in found.chunks(hidden).zip(y.chunks(hidden)).zip(&weights) {
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let error: f64 =
            a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        expected += f64::from(*weight) * (error / energy + 0.05 * (1.0 - cosine)) / 6.75;
    }
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, (rows, hidden), &Device::Cpu).unwrap();
    let y = tensor(y);
    let samples = BlockSamples { x: y.clone(), y, weights };
    let loss = |found: &Tensor| {
        f64::from(
            super::learner::loss(found, &samples, energy).unwrap().to_scalar::<f32>().unwrap(),
        )
    };
    let found = loss(&tensor(found));
    assert!((found - expected).abs() < 1e-6 * expected, "{found} {expected}");
    // A zero output has no direction, and its error is as large as the target.
    let nothing = loss(&samples.y.zeros_like().unwrap());
    assert!(nothing.is_finite());
}

#[test]
fn what_was_learned_comes_back_bit_for_bit() {
    let nothing = moe_checkpoint::ScratchStore::new(&std::env::temp_dir()).keep(&[]).unwrap();
    let linear = |shape: [usize; 2]| moe_model::Linear {
        weight: Weight::made("w", moe_checkpoint::Dtype::F32, &shape, nothing.clone()),
        bias: None,
    };
    let network = Expert { gate: linear([3, 4]), up: linear([3, 4]), down: linear([4, 3]) };
    let looks = vec![
        Look { step: 0, error: 0.1 + 0.2, loss: None },
        Look { step: 7, error: 1.0 / 3.0, loss: Some(f64::MIN_POSITIVE) },
    ];
    let trained = Trained { steps: 9, best: 7, diverged: Some(10), looks };
    let sizes = network.linears().map(|linear| linear.weight.elements());
    let best = Some(sizes.map(|size| (0..size).map(|i| 1.0 / (i as f32 + 3.0)).collect()));
    for best in [best, None] {
        let learned = Learned { trained: trained.clone(), best };
        let bytes = learned.to_bytes();
        let found = Learned::of_bytes(&bytes, &network).unwrap();
        assert_eq!((&found.trained, &found.best), (&learned.trained, &learned.best));
        // With one value fewer, the bytes belong to another network; half of a number can't be
        // read.
        let fewer = if learned.best.is_some() { bytes.len() - 4 } else { bytes.len() - 8 };
        assert!(Learned::of_bytes(&bytes[..fewer], &network).is_none());
    }
    assert!(Learned::of_bytes(&u64::MAX.to_le_bytes(), &network).is_none());
    assert!(Learned::of_bytes(&[], &network).is_none());
}
