//! Compares gradients with PyTorch's through transformers' models, and distill's ridge regression
//! with numpy in float64 (golden/training).

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use moe_checkpoint::Result;
use moe_forward::Batch;
use moe_forward::train::{
    BatchWeight, Goal, Gradients, Objective, Parameters, TrainedPart, Trainee,
};
use moe_math::Compute;
use moe_math::ridge::Ridge;
use moe_model::Model;
use serde_json::Value;

use super::goldens::{Goldens, named};
use super::{CaseError, Check, apart, check, golden, numbers, numeric};

/// Maximum error of a parameter's gradient, relative to its norm.
const GRADIENT: f64 = 1e-4;
/// Maximum error of a fitted matrix, relative to its largest element.
const RIDGE: f64 = 1e-6;

pub fn checks(goldens: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    let about = goldens.json("training/gradients.json")?;
    let about: HashMap<String, Value> = golden(&about)?;
    let mut families: Vec<_> = about.keys().collect();
    families.sort();
    let gradients =
        families.into_iter().map(|family| gradients(goldens, family, &about[family], compute));
    let mut checks = gradients.collect::<Result<Vec<_>>>()?;
    checks.push(ridge(goldens, compute)?);
    Ok(checks)
}

/// Compares gradients of the loss of next tokens: for each parameter its norm, its sum, and a sum
/// with a different weight for each entry.
fn gradients(goldens: &Goldens, family: &str, about: &Value, compute: &Compute) -> Result<Check> {
    let dir = goldens.path("families").join(family).join("base");
    let (model, batch) =
        (Model::open(&dir.join("model"))?, Batch::from_json(&dir.join("tokens.json"))?);
    let parameters = Parameters::read(&model, &TrainedPart::ALL, DType::F32, compute)?;
    let mut gradients = Gradients::new(&parameters);
    let trainee = Trainee { model: &model, parameters: &parameters, compute, keep_graphs: false };
    let goal = Goal {
        objective: &Objective::NEXT_TOKENS,
        teacher: None,
        weight: BatchWeight::over([&batch]),
    };
    trainee.accumulate(&batch, goal, &mut gradients)?;
    let mut found = HashMap::new();
    for (index, parameter) in parameters.list.iter().enumerate() {
        let gradient = gradients.get(index).map(numbers).transpose()?;
        let gradient = gradient.unwrap_or_else(|| vec![0.0; parameter.weight.elements()]);
        found.insert(parameter.weight.name().to_owned(), gradient);
    }
    let sampled = goldens.tensors(&format!("training/gradients/{family}.safetensors"))?;
    let named: Vec<(String, usize)> = golden(&about["parameters"])?;
    let sums = sampled.get("ce.sums").map(numbers).transpose()?.unwrap_or_default();
    let mut outcomes: Vec<CaseError> = Vec::new();
    for ((name, _), expected) in named.iter().zip(sums.chunks_exact(3)) {
        let Some(gradient) = found.get(name) else { continue };
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let waves = gradient.iter().enumerate().map(|(i, g)| g * (i as f64).cos()).sum();
        // A sum of n entries may be off by √n times the error of an entry.
        let room = expected[0].max(f64::MIN_POSITIVE) * (gradient.len() as f64).sqrt();
        let apart = [norm, gradient.iter().sum(), waves]
            .into_iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs() / room);
        outcomes.push((apart.fold(0.0, f64::max), 0));
    }
    Ok(check(format!("gradients {family}"), GRADIENT, &outcomes))
}

fn ridge(goldens: &Goldens, compute: &Compute) -> Result<Check> {
    let tensors = goldens.tensors("training/ridge.safetensors")?;
    let get = |name: &str| named(&tensors, name);
    let figures: HashMap<String, Value> = golden(&goldens.json("training/ridge.json")?)?;
    let start = get("W0")?.to_dtype(DType::F64).map_err(|e| numeric("a start", e))?;
    let mut outcomes = Vec::new();
    for (name, case) in figures {
        let (h, y) = (get(&format!("{name}.H"))?, get(&format!("{name}.Y"))?);
        // With fewer samples than inputs and a small λ, f32 isn't enough.
        let on_device = |t: &Tensor| t.to_dtype(DType::F64)?.to_device(&compute.device);
        let sums = || {
            let mut ridge = Ridge::new(h.dim(1)?, y.dim(1)?)?;
            ridge.add(&on_device(h)?, &on_device(y)?)?;
            Ok(ridge)
        };
        let ridge = sums().map_err(|e| numeric("ridge sums", e))?;
        let rows: Vec<Value> = golden(&case["solutions"])?;
        let solutions = numbers(get(&format!("{name}.W"))?)?;
        for (row, expected) in
            rows.iter().zip(solutions.chunks_exact((solutions.len() / rows.len().max(1)).max(1)))
        {
            let relative: f64 = golden(&row["relative"])?;
            let found =
                ridge.solve(relative, &start).map_err(|e| numeric("a ridge solution", e))?;
            outcomes.push((apart(&numbers(&found)?, expected), 0));
        }
    }
    Ok(check("distill: ridge".to_owned(), RIDGE, &outcomes))
}
