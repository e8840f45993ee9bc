use super::*;
use crate::quantize::{Damping, GridScheme, Hessian, factorize, solve};
use crate::sampling::{generator, normal};

fn factor(width: usize, seed: u64, act_order: bool) -> Factor<f32> {
    let mut x = normal(width * width, 1.0, &mut generator(seed, 0));
    for row in x.chunks_mut(width) {
        // Columns of different energy, each correlated with the one before, and a dead one.
        (1..width)
            .for_each(|k| row[k] = (row[k] + 0.8 * row[k - 1]) * (1.0 + (k % 7) as f32 / 7.0));
        row[width / 2] = 0.0;
    }
    let mut hessian = Hessian::new(width);
    hessian.add(&x, None).unwrap();
    factorize(&hessian, &Damping::default(), act_order).unwrap()
}

#[test]
fn tensors_give_the_codes_of_the_native_solver() {
    let (rows, width) = (20, 192);
    for (bits, symmetric, group, act_order, clip_search) in [
        (4, true, Some(64), false, false),
        (3, false, Some(32), false, true),
        (4, true, Some(32), true, false),
        (2, false, Some(96), true, true),
        (8, true, None, false, false),
        (4, false, None, true, true),
    ] {
        let scheme = GridScheme { bits, symmetric, group, scale_dtype: DType::BF16 };
        let options = GptqOptions { scheme, clip_search };
        let factors: Vec<_> = (0..3).map(|seed| factor(width, seed, act_order)).collect();
        let weights: Vec<_> =
            (0..6).map(|seed| normal(rows * width, 0.05, &mut generator(seed, 1))).collect();
        // Each factor has two matrices, whose rows go together; when clips are searched, one factor
        // has only one.
        let of = |index: usize| &factors[index % 3];
        let mut problems: Vec<_> =
            (0..6).map(|index| Problem { weight: &weights[index], factor: of(index) }).collect();
        problems.truncate(if clip_search { 5 } else { 6 });
        let expected = solve(&problems, [rows, width], &options).unwrap();
        let found = by_tensors(&problems, [rows, width], &options, &Device::Cpu).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            let equal =
                found.codes.codes.iter().zip(&expected.codes.codes).filter(|(a, b)| a == b).count();
            assert!(
                equal as f64 > 0.99 * (rows * width) as f64,
                "{equal} of {} {scheme:?}",
                rows * width
            );
            assert!((found.error - expected.error).abs() < 0.01 * expected.error, "{scheme:?}");
            let scales = found.codes.scales.iter().zip(&expected.codes.scales);
            assert!(
                scales.filter(|(a, b)| a == b).count() as f64
                    > 0.97 * found.codes.scales.len() as f64
            );
        }
    }
}

#[test]
fn problems_that_do_not_fit_a_batch_are_refused() {
    let (ordered, plain) = (factor(8, 1, true), factor(8, 1, false));
    let scheme = GridScheme { bits: 4, symmetric: true, group: Some(4), scale_dtype: DType::F32 };
    let options = GptqOptions { scheme, clip_search: false };
    let good = Problem { weight: &[0.5; 16], factor: &plain };
    let on = |problems: &[Problem<'_, f32>]| by_tensors(problems, [2, 8], &options, &Device::Cpu);
    assert_eq!(on(&[good]).unwrap().len(), 1);
    assert_eq!(on(&[]).unwrap(), []);
    assert!(matches!(
        on(&[good, Problem { factor: &ordered, ..good }]),
        Err(QuantizeError::Device(_))
    ));
    assert_eq!(on(&[Problem { weight: &[f32::NAN; 16], ..good }]), Err(QuantizeError::NotFinite));
    assert!(matches!(
        on(&[Problem { weight: &[0.5; 15], ..good }]),
        Err(QuantizeError::Length { .. })
    ));
}
