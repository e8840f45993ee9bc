//! Compares the closed forms of distillation with numpy in float64 (golden/training).

use std::collections::HashMap;
use std::path::PathBuf;

use crate::common::{difference, numbers};
use candle_core::{DType, Device, Tensor};
use moe_math::determinantal::{greedy, kernel, lambda};
use moe_math::ridge::Ridge;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(format!("{}/../../golden/training/{name}", env!("CARGO_MANIFEST_DIR")))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(values) => values.iter().flat_map(floats).collect(),
        None => vec![value.as_f64().unwrap()],
    }
}

#[test]
fn do_acp_takes_the_experts_that_numpy_takes() {
    let cases = json("do-acp.json");
    for (name, case) in cases.as_object().unwrap() {
        let importance = floats(&case["importance"]);
        let (n, kernel) = (importance.len(), kernel(&importance, &floats(&case["products"])));
        let selections = case["selections"].as_array().unwrap();
        assert_eq!(selections.len(), n);
        for selection in selections {
            let k = selection["k"].as_u64().unwrap() as usize;
            let found = lambda(&kernel, n, k);
            assert!((found / selection["lambda"].as_f64().unwrap() - 1.0).abs() < 1e-12);
            let order: Vec<f64> =
                greedy(&kernel, n, found)[..k].iter().map(|e| *e as f64).collect();
            assert_eq!(order, floats(&selection["order"]), "{name}, {k}");
        }
    }
}

#[test]
fn ridge_solutions_and_held_out_errors_are_numpys() {
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(golden("ridge.safetensors"), &Device::Cpu).unwrap();
    let get = |name: &str| tensors[name].to_dtype(DType::F64).unwrap();
    let sums = |h: &Tensor, y: &Tensor| {
        let mut ridge = Ridge::new(h.dim(1).unwrap(), y.dim(1).unwrap()).unwrap();
        ridge.add(h, y).unwrap();
        ridge
    };
    let (held_out, start) = (sums(&get("H_held"), &get("Y_held")), get("W0"));
    let figures = json("ridge.json");
    for (name, case) in figures.as_object().unwrap() {
        let ridge = sums(&get(&format!("{name}.H")), &get(&format!("{name}.Y")));
        let number = |value: &Value| value.as_f64().unwrap();
        let same = |found: f64, wanted: &Value| (found / number(wanted) - 1.0).abs() < 1e-8;
        assert!(same(ridge.mean_diagonal().unwrap(), &case["mean_diagonal"]));
        assert!(same(
            held_out.relative_error(&start).unwrap().powi(2),
            &case["start_held_out_error"]
        ));
        let solutions = numbers(&get(&format!("{name}.W")));
        let rows = case["solutions"].as_array().unwrap();
        let mut errors = Vec::new();
        for (row, wanted) in rows.iter().zip(solutions.chunks_exact(solutions.len() / rows.len())) {
            let w = ridge.solve(number(&row["relative"]), &start).unwrap();
            let off = difference(&numbers(&w), wanted);
            assert!(off < 1e-6, "{name}, {}: {off}", row["relative"]);
            errors.push(held_out.relative_error(&w).unwrap().powi(2));
            assert!((errors[errors.len() - 1] / number(&row["held_out_error"]) - 1.0).abs() < 1e-6);
        }
        let best = (0..errors.len()).min_by(|a, b| errors[*a].total_cmp(&errors[*b])).unwrap();
        assert_eq!(best as u64, case["best"].as_u64().unwrap());
    }
}
