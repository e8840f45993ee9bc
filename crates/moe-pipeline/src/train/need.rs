//! How much memory a training needs, checked before it starts.

use moe_checkpoint::{Error, Kind, Result};
use moe_forward::train::{Parameters, Part};
use moe_model::{Expert, Ffn, Layer, Model};
use moe_passes::Training;

use crate::resources::{ByteSize, available_memory_bytes};

/// What makes `training` take less memory.
pub(crate) fn less_memory(training: &Training) -> String {
    let rest = "lower --batch-tokens or --sequence-length";
    match training.parts.iter().all(|part| *part == Part::Routers) {
        true => rest.to_owned(),
        false => format!("train fewer parts of the model (--train router takes least), {rest}"),
    }
}

/// Memory that a training needs, in bytes.
pub(crate) struct Need {
    /// Values, gradients, moments and copies of what is trained.
    trained: u64,
    /// One layer's weights and graph.
    layer: u64,
    /// Layers whose graphs can be kept.
    layers: u64,
    /// What enters each layer, and logits.
    states: u64,
    /// Its state on the disk.
    saved: u64,
}

impl Need {
    /// Of training `model` so.
    pub fn of(model: &Model, training: &Training) -> Self {
        /// f32 value, gradient, sum of gradients, m, v, and what is measured and kept as best.
        const BYTES_A_PARAMETER: u64 = 28;
        /// Logits, their softmax, gradients and what is made of them.
        const LOGITS: u64 = 6 * (64 << 20);
        /// Copies of states in a layer's graph and its gradients.
        const STATES: usize = 24;
        /// f32 value, m and v, and the best as files have it; old and new while one replaces the other.
        const SAVED_BYTES_A_PARAMETER: u64 = 2 * (12 + 4);
        let elements = Parameters::elements(model, &training.parts) as u64;
        let tokens = training.options.batch_tokens.max(training.text.sequence_length);
        let length = training.text.sequence_length;
        let layer = |layer: &Layer| {
            let (width, weights) = match &layer.ffn {
                Ffn::Dense(expert) => (expert.width(), 3 * expert.width() * model.hidden),
                Ffn::Moe(moe) => {
                    let width = moe.experts.first().map_or(0, Expert::width);
                    let shared = moe.shared.as_ref().map_or(0, |shared| shared.expert.width());
                    let all = width * moe.experts.len() + shared;
                    (width * moe.router.top_k + shared, 3 * all * model.hidden)
                }
            };
            let of_token = STATES * model.hidden + 8 * width + 4 * model.heads * length;
            4 * (tokens * of_token + weights) as u64
        };
        Self {
            trained: elements * BYTES_A_PARAMETER,
            layer: model.layers.iter().map(layer).max().unwrap_or(0),
            layers: model.layers.len() as u64,
            states: (model.layers.len() * tokens * model.hidden * 4) as u64 + LOGITS,
            saved: elements * SAVED_BYTES_A_PARAMETER,
        }
    }

    /// What is saved of it on the disk, at most.
    pub fn disk_bytes(&self) -> u64 {
        self.saved
    }

    /// All of it, with the graphs of all layers or of one.
    pub fn bytes(&self, keep_graphs: bool) -> u64 {
        self.trained + self.states + self.layer * if keep_graphs { self.layers } else { 1 }
    }

    /// Whether there is room to keep all graphs of `training`, which this is the need of.
    pub fn check(&self, training: &Training, budget: Option<ByteSize>) -> Result<bool> {
        let available = available_memory_bytes();
        let room = match (budget, available) {
            (Some(budget), Some(available)) => budget.0.min(available),
            (Some(budget), None) => budget.0,
            (None, Some(available)) => available,
            (None, None) => u64::MAX,
        };
        if self.bytes(false) > room {
            let what = format!(
                "this training holds about {} in memory, there is room for {}",
                ByteSize(self.bytes(false)),
                ByteSize(room)
            );
            let larger = match budget.is_some_and(|budget| budget.0 <= room) {
                true => "raise --memory-budget",
                false => "use a larger machine",
            };
            return Err(Error::new(Kind::Usage, what).remedy(format!("{}, or {larger}", less_memory(training))));
        }
        Ok(self.bytes(true) <= room / 2)
    }
}
