//! Losses, gradients and a run of training beside PyTorch's, through transformers' own models:
//! golden/training.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use moe_forward::Batch;
use moe_forward::train::{
    BalanceOver, BatchWeight, Goal, Gradients, Objective, Parameters, Targets, TrainedPart, Trainee,
};
use moe_math::Compute;
use moe_math::adamw::{AdamW, AdamWStep, Moments, clipping, cosine, square_norm};
use moe_model::Model;
use serde_json::Value;

use crate::common::golden;

/// Largest error of a parameter's gradient, relative to its norm.
const TOLERANCE: f64 = 1e-4;

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).unwrap()).unwrap()
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap()
}

fn opened(family: &str) -> (Model, Batch) {
    let dir = golden("families").join(family).join("base");
    (Model::open(&dir.join("model")).unwrap(), Batch::from_json(&dir.join("tokens.json")).unwrap())
}

const NOTHING: Objective = Objective { cross_entropy: 0.0, ..Objective::NEXT_TOKENS };

fn objective(loss: &str) -> Objective {
    let term = |name: &str| match name {
        "ce" => Objective { cross_entropy: 1.0, ..NOTHING },
        "balance" => Objective { balance: 1.0, over: BalanceOver::Model, ..NOTHING },
        "balance_by_layer" => Objective { balance: 1.0, ..NOTHING },
        "z" => Objective { z: 1.0, ..NOTHING },
        "kl" => Objective { teacher: 1.0, ..NOTHING },
        other => panic!("unknown loss {other}"),
    };
    match loss.split_once('+') {
        None => term(loss),
        Some((_, "z")) => Objective { cross_entropy: 1.0, z: 1e-3, ..NOTHING },
        Some((_, other)) => Objective { cross_entropy: 1.0, balance: 0.01, ..term(other) },
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// By the tensor's name in the checkpoint; zeros where the loss doesn't reach it.
fn by_name(parameters: &Parameters, gradients: &Gradients) -> HashMap<String, Vec<f64>> {
    let of = |(index, p): (usize, &moe_forward::train::Parameter)| {
        let gradient = gradients.get(index).map_or_else(|| vec![0.0; p.weight.elements()], values);
        (p.weight.name().to_owned(), gradient)
    };
    parameters.list.iter().enumerate().map(of).collect()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Norm, sum, and the sum with weights that tell entries apart.
fn sums(g: &[f64]) -> [f64; 3] {
    [
        norm(g.iter().copied()),
        g.iter().sum(),
        g.iter().enumerate().map(|(i, g)| g * (i as f64).cos()).sum(),
    ]
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let about = json("training/gradients.json");
    let mut checked = 0;
    for (family, about) in about.as_object().unwrap() {
        let (model, batch) = opened(family);
        let compute = Compute::cpu();
        let parameters = Parameters::read(&model, &TrainedPart::ALL, DType::F32, &compute).unwrap();
        let sampled = tensors(&format!("training/gradients/{family}.safetensors"));
        for (loss, value) in about["losses"].as_object().unwrap() {
            let objective = objective(loss);
            let teacher =
                sampled.get("teacher_logits").map(|logits| Targets::Logits(logits.clone()));
            let mut gradients = Gradients::new(&parameters);
            let trainee = Trainee {
                model: &model,
                parameters: &parameters,
                compute: &compute,
                keep_graphs: false,
            };
            let goal = Goal {
                objective: &objective,
                teacher: teacher.as_ref(),
                weight: BatchWeight::over([&batch]),
            };
            let losses = trainee.accumulate(&batch, goal, &mut gradients).unwrap();
            let (found, expected) = (losses.total(&objective), value.as_f64().unwrap());
            let tolerance = if loss == "kl" { 2e-5 } else { 2e-6 };
            assert!(
                (found - expected).abs() < tolerance * expected,
                "{family} {loss}: {found} instead of {expected}"
            );
            let gradients = by_name(&parameters, &gradients);
            checked += compare_sampled(family, loss, about, &sampled, &gradients);
            if loss == "ce"
                && golden(&format!("training/gradients/{family}.ce.safetensors")).exists()
            {
                compare_whole(
                    family,
                    &tensors(&format!("training/gradients/{family}.ce.safetensors")),
                    &gradients,
                );
            }
        }
    }
    assert!(checked > 1000, "only {checked} gradients were compared");
}

fn compare_whole(
    family: &str,
    expected: &HashMap<String, Tensor>,
    found: &HashMap<String, Vec<f64>>,
) {
    assert_eq!(expected.len(), found.len(), "{family}");
    for (name, expected) in expected {
        let expected = values(expected);
        let apart = norm(expected.iter().zip(&found[name]).map(|(a, b)| a - b));
        let size = norm(expected.iter().copied());
        assert!(apart <= TOLERANCE * size, "{family} {name}: {apart} of {size}");
    }
}

/// How many parameters were compared.
fn compare_sampled(
    family: &str,
    loss: &str,
    about: &Value,
    sampled: &HashMap<String, Tensor>,
    found: &HashMap<String, Vec<f64>>,
) -> usize {
    let Some(sums_of) = sampled.get(&format!("{loss}.sums")) else { return 0 };
    let sums_of = sums_of.to_vec2::<f64>().unwrap();
    let indices = values(&sampled["indices"]);
    let entries = sampled.get(&format!("{loss}.entries")).map(values);
    // A KL is the small difference of two distributions.
    let tolerance = if loss == "kl" { 5.0 * TOLERANCE } else { TOLERANCE };
    let mut at = 0;
    let parameters = about["parameters"].as_array().unwrap();
    for (parameter, expected) in parameters.iter().zip(&sums_of) {
        let (name, count) =
            (parameter[0].as_str().unwrap(), parameter[1].as_u64().unwrap() as usize);
        let gradient = &found[name];
        let size = expected[0];
        for (found, expected) in sums(gradient).iter().zip(expected) {
            // A sum of n entries may be off by √n times what an entry is.
            let room = tolerance * size * (gradient.len() as f64).sqrt().max(1.0);
            assert!(
                (found - expected).abs() <= room,
                "{family} {loss} {name}: {found} instead of {expected}"
            );
        }
        for position in at..at + count {
            let Some(expected) = entries.as_ref().and_then(|entries| entries.get(position)) else {
                break;
            };
            let found = gradient[indices[position] as usize];
            assert!(
                (found - expected).abs() <= tolerance * size,
                "{family} {loss} {name}: {found}, {expected}"
            );
        }
        at += count;
    }
    parameters.len()
}

#[test]
fn a_run_is_that_of_pytorch() {
    let about = json("training/run.json");
    let (model, batch) = opened("qwen3_moe");
    let compute = Compute::cpu();
    let parameters = Parameters::read(&model, &TrainedPart::ALL, DType::F32, &compute).unwrap();
    let start: HashMap<String, Vec<f64>> =
        parameters.list.iter().map(|p| (p.weight.name().to_owned(), values(&p.value))).collect();
    let mut moments: Vec<Moments> =
        parameters.list.iter().map(|p| Moments::new(&p.value).unwrap()).collect();
    let objective = Objective { cross_entropy: 1.0, balance: 0.01, ..NOTHING };
    let steps = about["steps"].as_array().unwrap();
    for (t, expected) in steps.iter().enumerate() {
        let sequence = expected["sequence"].as_u64().unwrap() as usize;
        let batch = Batch::new([&batch.ids[batch.spans[sequence].clone()]]);
        let mut gradients = Gradients::new(&parameters);
        let trainee = Trainee {
            model: &model,
            parameters: &parameters,
            compute: &compute,
            keep_graphs: true,
        };
        let goal =
            Goal { objective: &objective, teacher: None, weight: BatchWeight::over([&batch]) };
        let losses = trainee.accumulate(&batch, goal, &mut gradients).unwrap();
        let squares = (0..parameters.list.len())
            .filter_map(|i| gradients.get(i))
            .map(|g| square_norm(g).unwrap());
        let norm = squares.sum::<f64>().sqrt();
        let learning_rate = 1e-3 * cosine(t as u64, 1, steps.len() as u64);
        let close = |found: f64, key: &str| {
            let expected = expected[key].as_f64().unwrap();
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs(),
                "step {t}: {key} {found} instead of {expected}"
            );
        };
        close(losses.total(&objective), "loss");
        close(losses.cross_entropy, "ce");
        close(losses.balance, "balance");
        close(norm, "norm");
        close(learning_rate, "learning_rate");
        let step = AdamWStep {
            number: t as u64 + 1,
            learning_rate,
            weight_decay: 0.01,
            scale: clipping(norm, Some(1.0)),
        };
        for (index, parameter) in parameters.list.iter().enumerate() {
            let zeros = parameter.value.as_tensor().zeros_like().unwrap().detach();
            let gradient = gradients.get(index).unwrap_or(&zeros);
            AdamW::default().step(&parameter.value, gradient, &mut moments[index], &step).unwrap();
        }
    }
    let golden = tensors("training/run.safetensors");
    let change = golden["change.sums"].to_vec2::<f64>().unwrap();
    let (entries, indices) = (values(&golden["final.entries"]), values(&golden["indices"]));
    let end: HashMap<String, Vec<f64>> =
        parameters.list.iter().map(|p| (p.weight.name().to_owned(), values(&p.value))).collect();
    let mut at = 0;
    for (parameter, change) in about["parameters"].as_array().unwrap().iter().zip(&change) {
        let (name, count) =
            (parameter[0].as_str().unwrap(), parameter[1].as_u64().unwrap() as usize);
        let moved: Vec<f64> =
            end[name].iter().zip(&start[name]).map(|(end, start)| end - start).collect();
        let [size, ..] = sums(&moved);
        assert!(
            (size - change[0]).abs() <= 1e-3 * change[0],
            "{name}: moved by {size} instead of {}",
            change[0]
        );
        for position in at..at + count {
            let found = end[name][indices[position] as usize];
            assert!(
                (found - entries[position]).abs() < 3e-6,
                "{name}: {found} instead of {}",
                entries[position]
            );
        }
        at += count;
    }
}
