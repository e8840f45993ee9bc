//! Compares merging of layer 1 of the built-in MoE with golden/pruning/merge.py, which uses numpy
//! and scipy in float64.
//!
//! Experts are given in f32, so that merged weights aren't rounded to bf16: the test compares the
//! arithmetic.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use moe_forward::{
    Batch, ExpertRun, Group, Observer, ObserverOptions, Silent, StatisticsObserver, Sweep, Wants,
    to_f32,
};
use moe_math::Compute;
use moe_math::routing::Routing;
use moe_math::statistics::CalibrationSums;
use moe_model::{Expert, Linear, Model, Moe, Result, Weight, WeightSource};
use serde_json::Value;

use super::dern::{self, Dern};
use super::grouped::{Grouped, Groups};
use super::groups::of_layer;
use super::hc_smoe::HcSmoe;
use super::m_smoe::MSmoe;
use super::mergemoe::MergeMoe;
use super::parameters::Grouping;
use super::ream::Ream;
use crate::reduce::{LayerView, Method};

const LAYER: usize = 1;
const COUNT: usize = 12;
/// merge.py stores one neuron in this many.
const STEP: usize = 32;
/// The relative difference between sums of our f32 forward pass and of float64's.
const COEFFICIENT: f64 = 1e-6;
/// The largest difference, relative to the largest weight.
const WEIGHT: f64 = 1e-5;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn json(path: &str) -> Value {
    moe_checkpoint::json::read(&golden(path)).unwrap()
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(
        golden(&format!("pruning/merge-{name}.safetensors")),
        &Device::Cpu,
    )
    .unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

struct Bytes(Vec<u8>);

impl WeightSource for Bytes {
    fn make(&self) -> Result<Vec<u8>> {
        Ok(self.0.clone())
    }
}

fn in_f32(linear: &Linear) -> Linear {
    let values = numbers(&to_f32(&linear.weight, &Compute::cpu()).unwrap());
    let bytes = values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    let like = &linear.weight;
    let f32 = moe_checkpoint::Dtype::F32;
    Linear { weight: Weight::made(like.name(), f32, like.shape(), Bytes(bytes)), bias: None }
}

/// Statistics and inputs of the layer.
struct Watch {
    statistics: StatisticsObserver,
    inputs: Vec<Tensor>,
}

impl Observer for Watch {
    fn wants(&self) -> Wants {
        self.statistics.wants()
    }

    fn ffn_input(&mut self, _: usize, x: &Tensor) -> Result<()> {
        self.inputs.push(x.clone());
        Ok(())
    }

    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        self.statistics.routed(layer, logits, routing)
    }

    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        self.statistics.expert_ran(layer, run)
    }

    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        tokens: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        self.statistics.sampled_output(layer, expert, tokens, output)
    }
}

/// The values that golden/pruning holds for the layer's tokens.
struct Fixture {
    moe: Moe,
    groups: Vec<Group>,
    sums: Vec<CalibrationSums>,
    inputs: Vec<Tensor>,
    compute: Compute,
}

impl Fixture {
    fn new() -> Self {
        let compute = Compute::cpu();
        let model = Model::open(&golden("models/moe")).unwrap();
        let domains = json("pruning/tokens.json");
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        let (mut groups, mut group_of) = (Vec::new(), Vec::new());
        for (label, windows) in domains.as_object().unwrap() {
            let windows: Vec<Vec<u32>> = serde_json::from_value(windows.clone()).unwrap();
            for (half, ids) in windows.into_iter().enumerate() {
                group_of.extend(ids.iter().map(|_| groups.len() as u32));
                groups.push(Group {
                    label: label.clone(),
                    half: half as u8,
                    weight: None,
                    tokens: ids.len() as u64,
                });
                sequences.push(ids);
            }
        }
        let batch = Batch::new(sequences.iter().map(Vec::as_slice));
        let options = ObserverOptions {
            groups: groups.len(),
            group_of: group_of.into(),
            left_out: false,
            sample_every: 1,
        };
        let mut watch =
            Watch { statistics: StatisticsObserver::new(&model, options), inputs: Vec::new() };
        let mut sweep = Sweep::new(&model, &batch, &compute).unwrap();
        (0..LAYER).for_each(|index| sweep.layer(index, &mut Silent).unwrap());
        sweep.layer(LAYER, &mut watch).unwrap();
        let mut moe = model.layers[LAYER].ffn.moe().unwrap().clone();
        let f32 =
            |e: &Expert| Expert { gate: in_f32(&e.gate), up: in_f32(&e.up), down: in_f32(&e.down) };
        moe.experts = moe.experts.iter().map(f32).collect();
        Self {
            moe,
            groups,
            sums: watch.statistics.take().unwrap().unwrap(),
            inputs: watch.inputs,
            compute,
        }
    }

    fn view<'a>(&'a self, protected: &'a [usize]) -> LayerView<'a> {
        LayerView {
            index: LAYER,
            moe: &self.moe,
            count: COUNT,
            protected,
            groups: &self.groups,
            sums: &self.sums,
            inputs: &self.inputs,
            seed: 0,
            compute: &self.compute,
        }
    }

    fn pooled(&self) -> CalibrationSums {
        CalibrationSums::pooled(self.sums.iter().map(|sums| (sums, 1.0)))
    }
}

const REAM: Ream = Ream { grouping: Grouping::Pseudo, group_cap: 16 };
const HC_SMOE: HcSmoe = HcSmoe { sample_every: 1, is_plain: false };
const DERN: Dern = Dern { threshold: 0.3 };

fn decided(algorithm: &dyn Grouped, fixture: &Fixture, view: &LayerView<'_>) -> Groups {
    Groups::decide(algorithm, view, &fixture.pooled()).unwrap()
}

fn groups_of(value: &Value) -> Vec<Vec<usize>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Compares the merged experts that the golden holds, and returns how many there are.
fn assert_weights(name: &str, centroids: &[usize], experts: &[Expert]) {
    let golden = tensors(name);
    let mut compared = 0;
    for (centroid, expert) in centroids.iter().zip(experts) {
        for (part, linear) in ["gate", "up", "down"].into_iter().zip(expert.linears()) {
            let key = format!("experts.{centroid}.{part}");
            if !golden.contains_key(&key) {
                continue;
            }
            let w = to_f32(&linear.weight, &Compute::cpu()).unwrap().to_dtype(DType::F64).unwrap();
            let (rows, columns) = w.dims2().unwrap();
            let every = |n: usize| {
                Tensor::from_vec(
                    (0..n).step_by(STEP).map(|i| i as u32).collect(),
                    n.div_ceil(STEP),
                    &Device::Cpu,
                )
                .unwrap()
            };
            let some = if part == "down" {
                w.index_select(&every(columns), 1)
            } else {
                w.index_select(&every(rows), 0)
            };
            for (key, found) in [
                (key.clone(), some.unwrap()),
                (format!("{key}.row_sums"), w.sum(1).unwrap()),
                (format!("{key}.column_sums"), w.sum(0).unwrap()),
            ] {
                let expected = numbers(&golden[&key]);
                let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
                let off = numbers(&found)
                    .iter()
                    .zip(&expected)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0f64, f64::max);
                assert!(off < WEIGHT * largest, "{name} {key}: {off:e} of {largest}");
                compared += 1;
            }
        }
    }
    let stored = golden.keys().filter(|key| key.starts_with("experts.")).count();
    assert!(stored > 0 && compared == stored, "{name}: {compared} of {stored} parts are compared");
}

fn assert_same<A: Grouped + Method>(fixture: &Fixture, name: &str, algorithm: &A) {
    let golden = json(&format!("pruning/merge-{name}.json"));
    let view = fixture.view(&[]);
    let decided = decided(algorithm, fixture, &view);
    assert_eq!(decided.members, groups_of(&golden["groups"]), "{name}");
    let expected: Vec<Vec<f64>> = serde_json::from_value(golden["coefficients"].clone()).unwrap();
    for (found, expected) in decided.coefficients.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < COEFFICIENT, "{name}: {found} is not {expected}");
    }
    let permutations: HashMap<String, Tensor> =
        tensors(name).into_iter().filter(|(key, _)| key.starts_with("permutations.")).collect();
    assert_eq!(permutations.len(), decided.permutations.len(), "{name}");
    for (member, found) in &decided.permutations {
        let expected = numbers(&permutations[&format!("permutations.{member}")]);
        assert_eq!(
            found.iter().map(|p| f64::from(*p)).collect::<Vec<_>>(),
            expected,
            "{name}, member {member}"
        );
    }
    let reduced = algorithm.reduce(&view).unwrap();
    assert_eq!(reduced.clusters, decided.members);
    assert_eq!(
        reduced.carried(fixture.moe.experts.len()),
        [1.0; 24],
        "{name}: every expert goes on"
    );
    let experts = reduced.experts.as_ref().unwrap();
    for (group, expert) in reduced.clusters.iter().zip(experts) {
        assert_eq!(
            group.len() == 1,
            expert.same_source(&fixture.moe.experts[group[0]]),
            "{name}: one stays as it is"
        );
    }
    assert_weights(name, &reduced.kept(), experts);
}

#[test]
fn means_of_groups_are_those_of_numpy() {
    let fixture = Fixture::new();
    assert_same(&fixture, "ream", &REAM);
    assert_same(&fixture, "ream-nearest", &Ream { grouping: Grouping::Nearest, ..REAM });
    assert_same(&fixture, "hc-smoe", &HC_SMOE);
    assert_same(&fixture, "m-smoe", &MSmoe);
    assert_same(&fixture, "average", &HcSmoe { is_plain: true, ..HC_SMOE });
}

#[test]
fn fitted_projections_are_those_of_numpy() {
    assert_same(&Fixture::new(), "mergemoe", &MergeMoe);
}

#[test]
fn neurons_go_where_numpy_sends_them() {
    let fixture = Fixture::new();
    let golden = json("pruning/merge-dern.json");
    let view = fixture.view(&[]);
    let reduced = DERN.reduce(&view).unwrap();
    let kept = reduced.kept();
    assert_eq!(serde_json::to_value(&kept).unwrap(), golden["kept"]);
    let width = fixture.moe.experts[0].width();
    let targets = dern::targets(&view, &kept, 0.3).unwrap();
    let place = |target: &Option<dern::MergeTarget>| {
        target.map_or(-1.0, |t| (kept[t.kept] * width + t.neuron) as f64)
    };
    let found: Vec<f64> =
        targets.iter().flat_map(|(_, targets)| targets.iter().map(place)).collect();
    let expected = numbers(&tensors("dern")["targets"]);
    assert_eq!(found, expected);
    let dropped = (0..fixture.moe.experts.len()).filter(|e| !kept.contains(e));
    let carried = reduced.carried(fixture.moe.experts.len());
    for (expert, targets) in dropped.zip(expected.chunks(width)) {
        let placed = targets.iter().filter(|target| **target >= 0.0).count();
        assert_eq!(carried[expert], placed as f64 / width as f64, "{expert}");
    }
    assert!(
        kept.iter().all(|e| carried[*e] == 1.0) && carried.iter().any(|share| *share < 1.0),
        "{carried:?}"
    );
    assert_weights("dern", &kept, reduced.experts.as_ref().unwrap());
}

#[test]
fn caps_bind_as_in_numpy() {
    let fixture = Fixture::new();
    let golden = json("pruning/merge-ream-nearest.json");
    for (name, grouping) in [("pseudo", Grouping::Pseudo), ("nearest", Grouping::Nearest)] {
        for (cap, expected) in golden["groups_by_cap"][name].as_object().unwrap() {
            let ream = Ream { grouping, group_cap: cap.parse().unwrap() };
            let decided = decided(&ream, &fixture, &fixture.view(&[]));
            assert_eq!(decided.members, groups_of(expected), "{name}, {cap}");
        }
    }
    let golden = json("pruning/merge-hc-smoe.json");
    for (count, expected) in golden["groups_by_count"].as_object().unwrap() {
        let view = LayerView { count: count.parse().unwrap(), ..fixture.view(&[]) };
        let decided = decided(&HC_SMOE, &fixture, &view);
        assert_eq!(decided.members, groups_of(expected), "{count}");
    }
}

#[test]
fn protected_experts_stand_alone() {
    let fixture = Fixture::new();
    let average = HcSmoe { is_plain: true, ..HC_SMOE };
    let algorithms: [&dyn Grouped; 4] = [&REAM, &HC_SMOE, &MSmoe, &average];
    for algorithm in algorithms {
        let protected = [4, 5, 6];
        let groups = decided(algorithm, &fixture, &fixture.view(&protected)).members;
        assert_eq!(groups.len(), COUNT);
        assert!(protected.iter().all(|e| groups.contains(&vec![*e])), "{groups:?}");
        let all: Vec<usize> = (0..COUNT).collect();
        let groups = decided(algorithm, &fixture, &fixture.view(&all)).members;
        assert_eq!(groups.len(), COUNT, "as many protected as kept: none is");
    }
    let view = fixture.view(&[5]);
    let reduced = DERN.reduce(&view).unwrap();
    assert!(reduced.clusters.contains(&vec![5]), "{:?}", reduced.clusters);
}

#[test]
fn routing_groups_keep_as_many_each() {
    let mut fixture = Fixture::new();
    fixture.moe.router.groups =
        Some(moe_model::Groups { count: 4, kept: 2, score: moe_model::GroupScore::Max });
    let algorithms: [&dyn Grouped; 3] = [&REAM, &HC_SMOE, &MSmoe];
    for algorithm in algorithms {
        let groups = decided(algorithm, &fixture, &fixture.view(&[])).members;
        assert!(groups.iter().all(|group| group.iter().all(|e| e / 6 == group[0] / 6)));
        assert!((0..4).all(|g| groups.iter().filter(|group| group[0] / 6 == g).count() == 3));
    }
    let alone = |division: &super::groups::Division| {
        division.experts.iter().take(division.count).map(|e| vec![*e]).collect()
    };
    assert_eq!(of_layer(&fixture.moe, 8, &[], alone).concat(), [0, 1, 6, 7, 12, 13, 18, 19]);
}

/// No token chose experts 20 to 23.
#[test]
fn experts_without_tokens_have_no_weight_beside_others() {
    use moe_math::statistics::Quantity;
    let mut fixture = Fixture::new();
    for sums in &mut fixture.sums {
        for quantity in [
            Quantity::Tokens,
            Quantity::Gates,
            Quantity::GatedNorms,
            Quantity::GatedOutputs,
            Quantity::Activations,
        ] {
            (20..24).for_each(|expert| sums.of_mut(quantity, expert).fill(0.0));
        }
    }
    let algorithms: [&dyn Grouped; 3] = [&REAM, &MSmoe, &HC_SMOE];
    for algorithm in algorithms {
        let decided = decided(algorithm, &fixture, &fixture.view(&[]));
        for (group, weights) in decided.members.iter().zip(&decided.coefficients) {
            let has_tokens = group.iter().any(|e| *e < 20);
            for (expert, weight) in group.iter().zip(weights) {
                let expected_zero = has_tokens && *expert >= 20;
                assert_eq!(*weight == 0.0, expected_zero, "{group:?} {weights:?}");
            }
            assert!(!algorithm.is_ranked() || group[0] < 20, "{group:?}: a centroid has tokens");
        }
    }
    let reduced = DERN.reduce(&fixture.view(&[])).unwrap();
    assert!(reduced.kept().iter().all(|e| *e < 20));
}
