//! Compares a forward pass with a reference from another implementation.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use moe_math::routing::Routing;
use moe_model::Model;

use crate::batch::Batch;
use crate::context::Context;
use crate::observer::Observer;
use crate::sweep::{LmHead, Sweep};

/// Selections must agree where the margin of the reference's decision, p_k − p_{k+1} of the scores
/// that it selects by, is larger than this.
const MARGIN: f32 = 1e-5;

/// The distance between a forward pass and its reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Parity {
    /// Largest absolute error of a logit.
    pub logits: f32,
    /// Largest absolute error of an applied gate; 0 if the reference has none.
    pub weights: f32,
    /// Number of (layer, token) pairs that are routed to other experts than in the reference.
    pub misrouted: usize,
}

/// Runs `model` on the tokens in `tokens` (JSON), and compares it with the safetensors file
/// `reference`. This has "logits", and for each sparse layer "router_logits.N", "selected.N" and
/// optionally "weights.N" and "choice.N", the scores that experts are selected by if these aren't
/// softmax(router_logits).
///
/// # Errors
/// Errors of reading and computing; [`Kind::Mismatch`] if the reference is of another model.
pub fn parity(model: &Model, tokens: &Path, reference: &Path, compute: &Compute) -> Result<Parity> {
    let batch = Batch::from_json(tokens)?;
    let reference = ParityReference { file: reference, tensors: load(reference)? };
    let mut recorder = Recorder::default();
    let mut sweep = Sweep::new(model, &batch, compute)?;
    sweep.run(&mut recorder)?;
    let logits = LmHead::load(model, compute)?.logits(&sweep.hidden(0..batch.tokens())?)?;
    let mut parity =
        Parity { logits: max_difference(&logits, reference.get("logits")?)?, ..Parity::default() };
    for (layer, _) in model.moes() {
        let routing = Recorder::join(&recorder.0, layer);
        parity.misrouted += reference.misrouted(layer, &routing)?;
        if let Ok(weights) = reference.get(&format!("weights.{layer}")) {
            let ours = Tensor::from_slice(&routing.weights, weights.dims(), &Device::Cpu);
            parity.weights =
                parity.weights.max(max_difference(&ours.context(|| "weights".into())?, weights)?);
        }
    }
    Ok(parity)
}

/// Returns the largest absolute difference of two tensors of the same shape; NaN if any value is
/// NaN.
///
/// # Errors
/// [`Kind::Mismatch`] for different shapes.
pub fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    if a.dims() != b.dims() {
        return Err(Error::new(
            Kind::Mismatch,
            format!("shapes {:?} and {:?} differ", a.dims(), b.dims()),
        ));
    }
    let differences = absolute_differences(a, b).context(|| "a difference".into())?;
    // f32::max would skip a NaN.
    Ok(differences.into_iter().fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max }))
}

fn absolute_differences(a: &Tensor, b: &Tensor) -> CandleResult<Vec<f32>> {
    (a.to_device(&Device::Cpu)? - b)?.abs()?.flatten_all()?.to_vec1()
}

fn load(path: &Path) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| Error::new(Kind::Malformed, "cannot read this reference").source(e).file(path))
}

struct ParityReference<'a> {
    file: &'a Path,
    tensors: HashMap<String, Tensor>,
}

impl ParityReference<'_> {
    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::new(Kind::Mismatch, "the reference has no such tensor")
                .tensor(name)
                .file(self.file)
        })
    }

    /// Counts the tokens that `routing` sends to other experts, among those with a clear decision.
    fn misrouted(&self, layer: usize, routing: &Routing) -> Result<usize> {
        let selected = self.get(&format!("selected.{layer}"))?;
        let choice = self.tensors.get(&format!("choice.{layer}"));
        let logits = self.get(&format!("router_logits.{layer}"))?;
        let p = match choice {
            Some(choice) => choice.to_vec2(),
            None => probabilities(logits),
        };
        let p = p.context(|| "a reference".into())?;
        let selected = selected.to_dtype(DType::U32).and_then(|selected| selected.to_vec2::<u32>());
        let selected = selected.context(|| "a reference".into())?;
        if selected.len() != routing.tokens() {
            return Err(
                Error::new(Kind::Mismatch, "the reference has other tokens").file(self.file)
            );
        }
        let ours = routing.selected.chunks_exact(routing.top_k);
        Ok(ours
            .zip(selected.iter().zip(&p))
            .filter(|(ours, (theirs, p))| differ(ours, theirs, p))
            .count())
    }
}

fn differ(ours: &[u32], theirs: &[u32], p: &[f32]) -> bool {
    let k = theirs.len();
    let mut sorted = p.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let clear = k == p.len() || sorted[k - 1] - sorted[k] > MARGIN;
    clear && (ours.len() != k || ours.iter().any(|expert| !theirs.contains(expert)))
}

#[derive(Default)]
struct Recorder(Vec<(usize, Routing)>);

impl Recorder {
    /// Joins all parts of one layer's routing.
    fn join(parts: &[(usize, Routing)], layer: usize) -> Routing {
        let mut parts =
            parts.iter().filter(|(index, _)| *index == layer).map(|(_, routing)| routing.clone());
        let mut whole = parts.next().unwrap_or(Routing {
            experts: 0,
            top_k: 1,
            selected: vec![],
            weights: vec![],
            scores: vec![],
        });
        for part in parts {
            whole.selected.extend(part.selected);
            whole.weights.extend(part.weights);
            whole.scores.extend(part.scores);
        }
        whole
    }
}

impl Observer for Recorder {
    fn routed(&mut self, layer: usize, _: &Tensor, routing: &Routing) -> Result<()> {
        self.0.push((layer, routing.clone()));
        Ok(())
    }
}

fn probabilities(logits: &Tensor) -> CandleResult<Vec<Vec<f32>>> {
    let logits = logits.to_dtype(DType::F32)?.contiguous()?;
    candle_nn::ops::softmax_last_dim(&logits)?.to_vec2()
}
