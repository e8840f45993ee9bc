//! Gradients of whole models.

use candle_core::{DType, Tensor};
use moe_forward::Batch;
use moe_forward::train::{
    BalanceOver, BatchWeight, Goal, Gradients, Losses, Objective, Parameter, Parameters,
    TrainedPart, Trainee,
};
use moe_math::Compute;
use moe_model::Model;

use crate::common::golden;

const PLAIN: Objective = Objective::NEXT_TOKENS;

struct Case {
    model: Model,
    batch: Batch,
    compute: Compute,
}

impl Case {
    fn new(family: &str) -> Self {
        let dir = golden("families").join(family).join("base");
        let model = Model::open(&dir.join("model")).unwrap();
        let batch = Batch::from_json(&dir.join("tokens.json")).unwrap();
        Self { model, batch, compute: Compute::cpu() }
    }

    fn parameters(&self, parts: &[TrainedPart]) -> Parameters {
        Parameters::read(&self.model, parts, DType::F32, &self.compute).unwrap()
    }

    fn gradients(
        &self,
        parameters: &Parameters,
        objective: &Objective,
        keep_graphs: bool,
    ) -> (Losses, Gradients) {
        let trainee =
            Trainee { model: &self.model, parameters, compute: &self.compute, keep_graphs };
        let mut gradients = Gradients::new(parameters);
        let goal = Goal { objective, teacher: None, weight: BatchWeight::over([&self.batch]) };
        let losses = trainee.accumulate(&self.batch, goal, &mut gradients).unwrap();
        (losses, gradients)
    }

    /// How fast the loss changes when `parameter` moves along its gradient, by central differences.
    fn slope(
        &self,
        parameters: &Parameters,
        objective: &Objective,
        parameter: &Parameter,
        gradient: &Tensor,
    ) -> f64 {
        let start = parameter.value.as_detached_tensor().copy().unwrap();
        let norm = norm(gradient);
        // A step that changes the loss by about 0.002.
        let step = 2e-3 / norm;
        let moved = |factor: f64| {
            let change = (gradient * (factor * step / norm)).unwrap();
            parameter.value.set(&(&start + change).unwrap()).unwrap();
            self.gradients(parameters, objective, false).0.total(objective)
        };
        let change = moved(1.0) - moved(-1.0);
        parameter.value.set(&start).unwrap();
        change / (2.0 * step)
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn norm(gradient: &Tensor) -> f64 {
    values(gradient).iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
}

/// The families that golden/training has no gradients of. Along each parameter's own gradient the
/// loss changes by its square norm: a directional derivative, in which rounding is small beside the
/// change.
#[test]
fn the_loss_changes_along_every_gradient_as_it_says() {
    let objective = Objective { balance: 0.01, z: 0.001, ..PLAIN };
    for family in ["glm4_moe", "deepseek_v2"] {
        let case = Case::new(family);
        let parameters = case.parameters(&TrainedPart::ALL);
        let (_, gradients) = case.gradients(&parameters, &objective, false);
        let mut checked = 0;
        for (index, parameter) in parameters.list.iter().enumerate() {
            let Some(gradient) = gradients.get(index) else { continue };
            let norm = norm(gradient);
            if norm < 1e-4 {
                continue;
            }
            let slope = case.slope(&parameters, &objective, parameter, gradient);
            let name = parameter.weight.name();
            // Tokens on the border between experts change sides on the way.
            assert!(
                (slope / norm - 1.0).abs() < 0.05,
                "{family} {name}: {slope} along a gradient of norm {norm}"
            );
            checked += 1;
        }
        let all = parameters.list.len();
        assert!(checked > all / 2, "{family}: {checked} of {all}");
    }
}

/// Running a layer again gives the same bits as keeping its graph, and what is frozen changes
/// nothing.
#[test]
fn gradients_do_not_depend_on_what_is_kept_or_frozen() {
    let objective = Objective { balance: 0.01, over: BalanceOver::Model, z: 0.001, ..PLAIN };
    for family in ["qwen2_moe", "deepseek_v3"] {
        let case = Case::new(family);
        let all = case.parameters(&TrainedPart::ALL);
        let (losses, again) = case.gradients(&all, &objective, false);
        let (same, kept) = case.gradients(&all, &objective, true);
        assert_eq!(losses, same);
        let routers = case.parameters(&[TrainedPart::Routers]);
        let (_, of_routers) = case.gradients(&routers, &objective, true);
        let mut found = 0;
        for (index, parameter) in all.list.iter().enumerate() {
            let name = parameter.weight.name();
            let bits = |g: Option<&Tensor>| g.map(values);
            assert_eq!(bits(again.get(index)), bits(kept.get(index)), "{name}");
            let alone = routers.list.iter().position(|p| p.weight.same_source(&parameter.weight));
            if let Some(alone) = alone {
                found += 1;
                assert_eq!(bits(of_routers.get(alone)), bits(kept.get(index)), "{name}");
            }
        }
        assert!(found > 0 && found == routers.list.len());
    }
}

/// Batches that are added up give the gradient of all of them together.
#[test]
fn gradients_of_batches_add_up() {
    let case = Case::new("qwen3_moe");
    let parameters = case.parameters(&TrainedPart::ALL);
    let (losses, whole) = case.gradients(&parameters, &PLAIN, true);
    let parts: Vec<Batch> =
        case.batch.spans.iter().map(|s| Batch::new([&case.batch.ids[s.clone()]])).collect();
    assert!(parts.len() > 1);
    let trainee = Trainee {
        model: &case.model,
        parameters: &parameters,
        compute: &case.compute,
        keep_graphs: false,
    };
    let mut sum = Gradients::new(&parameters);
    let mut loss = 0.0;
    for part in &parts {
        let goal = Goal { objective: &PLAIN, teacher: None, weight: BatchWeight::over(&parts) };
        let found = trainee.accumulate(part, goal, &mut sum).unwrap();
        loss += found.cross_entropy * found.predictions as f64 / losses.predictions as f64;
    }
    assert!((loss - losses.cross_entropy).abs() < 1e-6);
    for index in 0..parameters.list.len() {
        let (Some(a), Some(b)) = (whole.get(index), sum.get(index)) else { continue };
        let (a, b) = (values(a), values(b));
        let largest = a.iter().fold(1e-6f32, |most, g| most.max(g.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * largest));
    }
}

/// With little room, every expert takes so many tokens and no more.
#[test]
fn capacity_drops_choices() {
    let case = Case::new("mixtral");
    let parameters = case.parameters(&[TrainedPart::Routers]);
    let (all, _) = case.gradients(&parameters, &PLAIN, true);
    let tight = Objective { capacity_factor: Some(0.5), ..PLAIN };
    let (limited, _) = case.gradients(&parameters, &tight, true);
    assert!(all.load.iter().all(|layer| layer.dropped == 0));
    for layer in &limited.load {
        let choices: u64 = layer.counts.iter().sum();
        let room = (0.5 * choices as f64 / layer.counts.len() as f64).ceil() as u64;
        let kept: u64 = layer.counts.iter().map(|count| (*count).min(room)).sum();
        assert_eq!(layer.dropped, choices - kept);
        assert!(layer.dropped >= choices / 2 - layer.counts.len() as u64);
    }
    assert!(limited.cross_entropy != all.cross_entropy);
}
