use candle_core::DType;

use super::*;
use crate::quantize::{Damping, Hessian, WIDTHS, factorize, objective, round_to_nearest};
use crate::sampling::{generator, normal};

/// Inputs with correlated columns of different energy, `[tokens, width]`.
fn inputs(tokens: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut random = generator(seed, 0);
    let (common, own) =
        (normal(tokens * 8, 1.0, &mut random), normal(tokens * width, 0.3, &mut random));
    let mix = normal(8 * width, 1.0, &mut random);
    let energy: Vec<f32> = normal(width, 1.0, &mut random).iter().map(|x| x.exp()).collect();
    let value = |t: usize, k: usize| {
        let shared: f32 = (0..8).map(|i| common[t * 8 + i] * mix[i * width + k]).sum();
        (shared + own[t * width + k]) * energy[k]
    };
    (0..tokens * width).map(|at| value(at / width, at % width)).collect()
}

fn hessian<T: Real>(x: &[f32], width: usize) -> Hessian<T> {
    let mut hessian = Hessian::new(width);
    hessian.add(&x.iter().map(|x| T::from_f32(*x)).collect::<Vec<_>>(), None).unwrap();
    hessian
}

fn options(bits: u32, group: Option<usize>, symmetric: bool) -> GptqOptions {
    GptqOptions {
        scheme: GridScheme { bits, symmetric, group, scale_dtype: DType::BF16 },
        clip_search: false,
    }
}

fn solved<T: Real>(
    weight: &[f32],
    hessian: &Hessian<T>,
    act_order: bool,
    options: &GptqOptions,
) -> SolvedMatrix {
    let factor = factorize(hessian, &Damping::default(), act_order).unwrap();
    let shape = [weight.len() / hessian.size, hessian.size];
    solve(&[Problem { weight, factor: &factor }], shape, options).unwrap().remove(0)
}

/// Algorithm 1 of 2210.17323, one column at a time, with the inverse Hessian itself: after column k
/// is rounded, the others compensate, and row and column k are eliminated from H⁻¹ (equation 3).
fn reference(
    weight: &[f32],
    x: &[f32],
    width: usize,
    act_order: bool,
    options: &GptqOptions,
) -> Vec<u8> {
    let rows = weight.len() / width;
    let mut h = vec![0f64; width * width];
    for row in x.chunks(width) {
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate() {
                h[i * width + j] += f64::from(*a) * f64::from(*b);
            }
        }
    }
    let diagonal: Vec<f64> = (0..width).map(|i| h[i * width + i]).collect();
    let live = diagonal.iter().filter(|d| **d > 0.0).count();
    for i in 0..width {
        h[i * width + i] += 0.01 * diagonal.iter().sum::<f64>() / live as f64;
        if diagonal[i] == 0.0 {
            h[i * width + i] = 1.0;
        }
    }
    let mut inverse = inverted(&h, width);
    let mut order: Vec<usize> = (0..width).collect();
    if act_order {
        order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    }
    let group = options.scheme.group.unwrap_or(width);
    let grid = Grid::<f64>::new(&options.scheme);
    let mut w: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
    let range = |w: &[f64], row: usize, g: usize| {
        let members = &w[row * width + g * group..][..group];
        let fold = |f: fn(f64, f64) -> f64| members.iter().fold(0.0, |a, b| f(a, *b));
        grid.parameters(fold(f64::min), fold(f64::max))
    };
    let mut parameters: Vec<_> =
        (0..rows * width).map(|at| range(&w, at / width, at % width / group)).collect();
    let mut codes = vec![0; w.len()];
    for k in order {
        for row in 0..rows {
            if !act_order && k % group == 0 {
                let found = range(&w, row, k / group);
                parameters[row * width + k..][..group].fill(found);
            }
            let (scale, zero) = parameters[row * width + k];
            let code = grid.code(w[row * width + k], scale, zero);
            codes[row * width + k] = grid.unsigned(code);
            let error = (w[row * width + k] - (code - zero) * scale) / inverse[k * width + k];
            for j in 0..width {
                w[row * width + j] -= error * inverse[k * width + j];
            }
        }
        let column: Vec<f64> = (0..width).map(|i| inverse[i * width + k]).collect();
        for i in 0..width {
            for j in 0..width {
                inverse[i * width + j] -= column[i] * column[j] / column[k];
            }
        }
    }
    codes
}

/// Inverts by Gauss–Jordan without pivoting.
fn inverted(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut left = matrix.to_vec();
    let mut right: Vec<f64> =
        (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    for k in 0..n {
        let pivot = left[k * n + k];
        for j in 0..n {
            left[k * n + j] /= pivot;
            right[k * n + j] /= pivot;
        }
        for i in (0..n).filter(|i| *i != k) {
            let times = left[i * n + k];
            for j in 0..n {
                left[i * n + j] -= times * left[k * n + j];
                right[i * n + j] -= times * right[k * n + j];
            }
        }
    }
    right
}

fn equal_share(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

#[test]
fn codes_are_those_of_the_paper() {
    for (width, tokens) in [(48, 200), (96, 40), (130, 300)] {
        let mut x = inputs(tokens, width, 3);
        x.iter_mut().skip(5).step_by(width).for_each(|x| *x = 0.0);
        let weight = normal(37 * width, 0.05, &mut generator(4, 0));
        for (bits, symmetric) in [(4, true), (3, false), (2, true), (8, false)] {
            for group in [None, Some(width / 2), Some(2), Some(16)]
                .into_iter()
                .filter(|g| width % g.unwrap_or(1) == 0)
            {
                for act_order in [false, true] {
                    let options = options(bits, group, symmetric);
                    let expected = reference(&weight, &x, width, act_order, &options);
                    let found = solved::<f64>(&weight, &hessian(&x, width), act_order, &options);
                    let share = equal_share(&found.codes.codes, &expected);
                    assert_eq!(share, 1.0, "{width} {bits} {symmetric} {group:?} {act_order}");
                    let found = solved::<f32>(&weight, &hessian(&x, width), act_order, &options);
                    let share = equal_share(&found.codes.codes, &expected);
                    assert!(
                        share > 0.98,
                        "f32: {share} {width} {bits} {symmetric} {group:?} {act_order}"
                    );
                }
            }
        }
    }
}

#[test]
fn output_errors_are_smaller_than_with_rounding_to_nearest() {
    let (width, rows) = (128, 64);
    let x = inputs(500, width, 1);
    let weight = normal(rows * width, 0.05, &mut generator(2, 0));
    let hessian = hessian::<f32>(&x, width);
    for bits in WIDTHS {
        let options = options(bits, Some(32), true);
        let plain = round_to_nearest(&weight, [rows, width], &options.scheme).unwrap();
        let [plain, output] = objective(&weight, &plain.dequantize(), &hessian).unwrap();
        for act_order in [false, true] {
            let found = solved(&weight, &hessian, act_order, &options);
            let [error, _] = objective(&weight, &found.codes.dequantize(), &hessian).unwrap();
            assert!(
                (error - found.error).abs() < 1e-3 * error,
                "{bits} bits: {error} {}",
                found.error
            );
            assert!(error < 0.6 * plain && plain < output, "{bits} bits: {error} {plain} {output}");
        }
    }
}

#[test]
fn f32_gives_the_codes_of_f64() {
    let (width, rows) = (256, 40);
    let weight = normal(rows * width, 0.05, &mut generator(2, 0));
    // More tokens than columns, and fewer. Without damping the latter Hessian would be singular.
    for tokens in [1000, 60] {
        let hessian = hessian::<f32>(&inputs(tokens, width, 5), width);
        let wide = Hessian {
            sum: hessian.sum.iter().map(|h| f64::from(*h)).collect(),
            ..Hessian::new(width)
        };
        for act_order in [false, true] {
            let options = options(4, Some(64), true);
            let (a, b) = (
                solved(&weight, &hessian, act_order, &options),
                solved(&weight, &wide, act_order, &options),
            );
            let share = equal_share(&a.codes.codes, &b.codes.codes);
            assert!(share >= 0.995, "{tokens} tokens, act-order {act_order}: {share}");
            assert!((a.error - b.error).abs() < 1e-2 * b.error, "{} {}", a.error, b.error);
        }
    }
}

#[test]
fn without_tokens_weights_are_rounded_to_nearest() {
    let (width, rows) = (96, 70);
    let weight = normal(rows * width, 0.05, &mut generator(2, 0));
    for (act_order, group) in [(false, Some(32)), (true, Some(32)), (false, None)] {
        for clip_search in [false, true] {
            let options = GptqOptions { clip_search, ..options(3, group, false) };
            let found = solved(&weight, &Hessian::<f32>::new(width), act_order, &options);
            assert_eq!(
                found.codes,
                round_to_nearest(&weight, [rows, width], &options.scheme).unwrap()
            );
            assert_eq!(found.error, 0.0);
        }
    }
}

#[test]
fn dead_columns_are_rounded_to_nearest_and_change_no_other() {
    let (width, rows, dead) = (64, 33, [0, 17, 63]);
    let mut x = inputs(300, width, 1);
    for column in dead {
        x.iter_mut().skip(column).step_by(width).for_each(|x| *x = 0.0);
    }
    let mut weight = normal(rows * width, 0.05, &mut generator(2, 0));
    let options = options(4, None, true);
    let plain = round_to_nearest(&weight, [rows, width], &options.scheme).unwrap();
    let before = solved(&weight, &hessian::<f32>(&x, width), true, &options);
    for row in 0..rows {
        for column in dead {
            assert_eq!(before.codes.codes[row * width + column], plain.codes[row * width + column]);
            weight[row * width + column] /= 2.0;
        }
    }
    let after = solved(&weight, &hessian::<f32>(&x, width), true, &options);
    for (at, (a, b)) in before.codes.codes.iter().zip(&after.codes.codes).enumerate() {
        // A dead weight may have been the largest of its row, which decides the scale.
        assert!(
            a == b
                || dead.contains(&(at % width))
                || before.codes.scales[at / width] != after.codes.scales[at / width]
        );
    }
}

/// Act-order determines its own order: with one group a row, columns given in another order get the
/// same codes.
#[test]
fn act_order_does_not_depend_on_the_order_of_columns() {
    let (width, rows) = (80, 20);
    let (x, weight) = (inputs(300, width, 1), normal(rows * width, 0.05, &mut generator(2, 0)));
    let turned = |values: &[f32]| -> Vec<f32> {
        values.chunks(width).flat_map(|row| (0..width).map(|k| row[k * 7 % width])).collect()
    };
    let options = options(4, None, true);
    let found = solved::<f64>(&weight, &hessian(&x, width), true, &options);
    let other = solved::<f64>(&turned(&weight), &hessian(&turned(&x), width), true, &options);
    for (row, other) in found.codes.codes.chunks(width).zip(other.codes.codes.chunks(width)) {
        assert!((0..width).all(|k| row[k * 7 % width] == other[k]));
    }
}

#[test]
fn neither_the_batch_nor_the_threads_change_a_result() {
    let (width, rows) = (96, 150);
    let problems: Vec<_> = (0..3)
        .map(|seed| {
            let hessian = hessian::<f32>(&inputs(200, width, seed), width);
            let factor = factorize(&hessian, &Damping::default(), seed == 1).unwrap();
            (normal(rows * width, 0.05, &mut generator(seed, 1)), factor)
        })
        .collect();
    let problems: Vec<_> =
        problems.iter().map(|(weight, factor)| Problem { weight, factor }).collect();
    let options = options(4, Some(32), true);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| solve(&problems, [rows, width], &options).unwrap())
    };
    let found = on(1);
    assert_eq!(found, on(3));
    for (problem, found) in problems.iter().zip(found) {
        assert_eq!(solve(&[*problem], [rows, width], &options).unwrap(), [found]);
    }
}

/// Clipping takes the best of eleven ranges for each group.
#[test]
fn clipping_reduces_the_weighted_error() {
    let (width, rows) = (64, 40);
    let mut weight = normal(rows * width, 0.05, &mut generator(2, 0));
    weight.iter_mut().step_by(37).for_each(|w| *w *= 4.0);
    let mut hessian = Hessian::<f32>::new(width);
    for i in 0..width {
        hessian.sum[i * width + i] = 1.0 + i as f32;
    }
    for act_order in [false, true] {
        let clipped = GptqOptions { clip_search: true, ..options(3, Some(32), true) };
        let plain = solved(&weight, &hessian, act_order, &options(3, Some(32), true));
        let clipped = solved(&weight, &hessian, act_order, &clipped);
        assert!(clipped.error < 0.9 * plain.error, "{} {}", clipped.error, plain.error);
        for (a, b) in clipped.codes.scales.iter().zip(&plain.codes.scales) {
            assert!(*a <= *b && *a >= 0.49 * *b);
        }
    }
}

#[test]
fn values_that_are_not_finite_or_do_not_fit_are_refused() {
    let factor = factorize(&Hessian::<f32>::new(4), &Damping::default(), false).unwrap();
    let solve =
        |weight: &[f32], options| solve(&[Problem { weight, factor: &factor }], [2, 4], &options);
    assert!(solve(&[0.0; 8], options(4, None, true)).is_ok());
    for wrong in [f32::NAN, f32::NEG_INFINITY] {
        let weight = [0.0, 0.0, 0.0, 0.0, 0.0, wrong, 0.0, 0.0];
        assert_eq!(solve(&weight, options(4, None, true)), Err(QuantizeError::NotFinite));
    }
    assert!(matches!(solve(&[0.0; 7], options(4, None, true)), Err(QuantizeError::Length { .. })));
    assert!(matches!(
        solve(&[0.0; 8], options(4, Some(3), true)),
        Err(QuantizeError::Group { .. })
    ));
}
