//! Estimates the memory and disk space of a training before it starts.

use moe_checkpoint::{Error, Kind, Result};
use moe_forward::train::{Parameters, TeacherKind, TrainedPart};
use moe_forward::{LOGIT_BYTES, Storage};
use moe_math::Compute;
use moe_model::{Expert, Ffn, Layer, Model};
use moe_passes::{Precision, Training};

use super::state::ELEMENTS_AT_ONCE;
use crate::budget;
use crate::live::live_bytes;
use crate::memory::{self, Text, Watched};
use crate::needs::{self, StageMemory};
use crate::resources::{ByteSize, available_memory_bytes};

/// The f32 value and AdamW's moments m and v, which are always in memory.
const BYTES_A_PARAMETER: u64 = 12;
/// Bytes of a parameter's summed gradient.
const GRADIENT_BYTES: u64 = 4;
/// The f32 value, m, v and the best value so far, which takes at most as much as an f32. The new
/// state is written before the old one is removed, hence twice.
const SAVED_BYTES_A_PARAMETER: u64 = 2 * (12 + 4);
/// Number of `[tokens, hidden]` tensors in a layer's graph and its gradients.
const STATES: usize = 20;
/// Number of tensors of the logits' size in the loss and its backward pass.
const LOGIT_COPIES: usize = 8;
/// States that a layer's graph keeps for each choice of an expert by a token: the expert's input,
/// its output, the reordered output, and the weighted one.
const ROUTED_STATES: usize = 4;
/// Number of tokens that a cached teacher runs on at once.
const TEACHER_TOKENS: usize = 4096;

/// Live bytes that a training needs, by what holds them.
pub(crate) struct TrainingMemory {
    /// Values and moments of the trained parameters.
    trained: u64,
    gradients: u64,
    /// Sums of gradients of a step's earlier batches, which stay until the step is taken.
    summed: u64,
    /// Gradients of one layer, if they are held together with the sums of earlier batches.
    arriving: u64,
    /// The weights at the best evaluation so far.
    best: u64,
    /// Weights in the files' encoding, which are evaluated.
    encoded: u64,
    /// Values that are copied at once in order to save them.
    saved: u64,
    /// The graph of one layer, and its frozen weights.
    layer: u64,
    /// Number of layers whose graphs can be kept; not a number of bytes.
    layers: u64,
    /// The inputs of all layers.
    states: u64,
    /// The head, with logits and their gradients.
    head: u64,
    /// Memory of the teacher or an evaluation, while no graph is held.
    teacher_or_evaluation: u64,
}

/// A training whose memory is computed.
pub(super) struct PlannedTraining<'a> {
    pub model: &'a Model,
    pub teacher: Option<&'a Model>,
    pub training: &'a Training,
    /// The maximum length of a sequence.
    pub length: usize,
    /// Live bytes of an evaluation of the model.
    pub measured: u64,
    pub compute: &'a Compute,
}

impl PlannedTraining<'_> {
    /// The tokens of a batch.
    fn tokens(&self) -> usize {
        self.training.options.batch_tokens.max(self.length)
    }

    /// Parameters of one layer that are trained.
    fn elements_of_a_layer(&self) -> u64 {
        Parameters::elements_of_a_layer(self.model, &self.training.parts) as u64
    }

    /// Bytes of values that are copied at once in order to save them.
    fn saved_bytes(&self, elements: u64) -> u64 {
        let largest = Parameters::largest(self.model, &self.training.parts);
        elements.min(largest.max(ELEMENTS_AT_ONCE) as u64) * BYTES_A_PARAMETER
    }

    /// Live bytes of running the teacher; 0 without one.
    fn taught_bytes(&self) -> u64 {
        let Some((teacher, options)) = self.teacher.zip(self.training.teacher) else { return 0 };
        let is_run_for_each_batch = options.kind == TeacherKind::Logits;
        let together =
            if is_run_for_each_batch { self.tokens() } else { TEACHER_TOKENS.max(self.length) };
        let text = Text { tokens: together, longest: self.length, storage: Storage::default() };
        let sweep = text.sweep(teacher, Watched::default(), self.compute);
        sweep.max(head_bytes(teacher, together, 3))
    }

    /// Bytes of the largest layer's graph, with its frozen weights.
    fn layer_bytes(&self) -> u64 {
        let Training { parts, options, .. } = self.training;
        let layers = self.model.layers.iter().map(|layer| {
            graph_bytes(self.model, layer, self.tokens(), self.length)
                + untrained_bytes(layer, parts, self.compute)
        });
        // Rounded copies of matrices, in addition to those that are trained.
        let is_rounded = options.precision == Precision::Bf16;
        let rounded = if is_rounded { 2 * self.elements_of_a_layer() } else { 0 };
        layers.max().unwrap_or(0) + rounded
    }

    /// Bytes of the head, with logits and their gradients.
    fn head_bytes(&self) -> u64 {
        let embeddings = [TrainedPart::Embeddings];
        let is_trained = self.training.parts.contains(&TrainedPart::Embeddings);
        let trained = if is_trained { Parameters::elements(self.model, &embeddings) } else { 0 };
        head_bytes(self.model, self.tokens(), LOGIT_COPIES) + 8 * trained as u64
    }
}

impl TrainingMemory {
    /// The memory of the training `trained`.
    pub(super) fn of(trained: &PlannedTraining<'_>) -> Self {
        let PlannedTraining { model, training, .. } = trained;
        let elements = Parameters::elements(model, &training.parts) as u64;
        let encoded = Parameters::stored_bytes(model, &training.parts);
        let gradients = elements * GRADIENT_BYTES;
        let accumulates = training.options.accumulate > 1;
        let of_a_layer = trained.elements_of_a_layer() * GRADIENT_BYTES;
        Self {
            trained: elements * BYTES_A_PARAMETER,
            gradients,
            summed: if accumulates { gradients } else { 0 },
            // The old sum is held while the new one is computed.
            arriving: if accumulates { 2 * of_a_layer } else { 0 },
            best: if training.text.held_out.is_empty() { 0 } else { encoded },
            encoded,
            saved: trained.saved_bytes(elements),
            layer: trained.layer_bytes(),
            layers: model.layers.len() as u64,
            states: (model.layers.len() * trained.tokens() * model.hidden * 4) as u64,
            head: trained.head_bytes(),
            teacher_or_evaluation: trained.taught_bytes().max(trained.measured),
        }
    }

    /// Maximum disk space of the saved state when training `model`, in bytes.
    pub fn disk_bytes(model: &Model, training: &Training) -> u64 {
        Parameters::elements(model, &training.parts) as u64 * SAVED_BYTES_A_PARAMETER
    }

    /// The total, with the graphs of all layers or of one.
    pub fn bytes(&self, keep_graphs: bool) -> u64 {
        let kept = if keep_graphs { self.layer * self.layers } else { 0 };
        // A layer's gradients take about as much as its graph. Gradients of weights are added with
        // each layer, whose graph is then freed.
        let coming = self.summed.max(self.gradients / self.layers.max(1));
        let first = kept.max(self.layer) + self.layer + coming;
        let back = first.max(2 * self.layer + self.gradients) + self.arriving;
        let between = (self.encoded + self.teacher_or_evaluation).max(self.saved);
        self.trained
            + self.best
            + self.states
            + (kept + self.head + self.summed).max(back).max(between)
    }

    /// The total under `budget`.
    pub fn planned(&self, budget: Option<ByteSize>) -> u64 {
        self.bytes(self.keeps_graphs(budget))
    }

    /// Returns whether a training that keeps all graphs takes at most half of the room under
    /// `budget`.
    fn keeps_graphs(&self, budget: Option<ByteSize>) -> bool {
        budget::fits(self.bytes(true), ByteSize(room(budget) / 2))
    }

    /// Returns whether there is room to keep all graphs. `ways` names options that lower the need.
    ///
    /// # Errors
    /// [`Kind::Usage`] where there isn't even room for one.
    pub fn check(&self, ways: &StageMemory, budget: Option<ByteSize>) -> Result<bool> {
        let (needed, room) = (
            budget::most_resident(self.bytes(false) + live_bytes().unwrap_or(0)),
            ByteSize(room(budget)),
        );
        if needed > room {
            let what =
                format!("this training holds about {needed} in memory, there is room for {room}");
            let is_budget = budget.is_some_and(|budget| budget <= room);
            let larger = if is_budget { "raise --memory-budget" } else { "use a larger machine" };
            let ways = needs::ways(std::slice::from_ref(ways), room)
                .map_or(String::new(), |ways| format!("{ways}, or "));
            return Err(Error::new(Kind::Usage, what).remedy(format!("{ways}{larger}")));
        }
        Ok(self.keeps_graphs(budget))
    }
}

fn room(budget: Option<ByteSize>) -> u64 {
    let available = available_memory_bytes().unwrap_or(u64::MAX);
    budget.map_or(available, |budget| budget.0.min(available))
}

/// The head of `model` for `tokens` tokens, with `copies` copies of their logits.
fn head_bytes(model: &Model, tokens: usize, copies: usize) -> u64 {
    let rows = (LOGIT_BYTES / 4 / model.vocab.max(1)).clamp(1, tokens);
    // As it is stored, and widened for the forward and the backward pass.
    model.head_weight().bytes()
        + (4 * (2 * model.vocab * model.hidden + copies * rows * model.vocab)) as u64
}

/// Weights of a layer that aren't trained.
fn untrained_bytes(layer: &Layer, parts: &[TrainedPart], compute: &Compute) -> u64 {
    let attention = memory::attention_bytes(layer, compute);
    let networks = memory::layer_bytes(layer, compute) - attention;
    let of = |part: TrainedPart, bytes| if parts.contains(&part) { 0 } else { bytes };
    let network =
        if matches!(layer.ffn, Ffn::Dense(_)) { TrainedPart::Dense } else { TrainedPart::Experts };
    of(TrainedPart::Attention, attention) + of(network, networks)
}

/// A layer's graph for `tokens` tokens in sequences of `length`.
fn graph_bytes(model: &Model, layer: &Layer, tokens: usize, length: usize) -> u64 {
    let width = match &layer.ffn {
        Ffn::Dense(expert) => expert.width(),
        Ffn::Moe(moe) => {
            let width = moe.experts.first().map_or(0, Expert::width);
            width * moe.router.top_k + moe.shared.as_ref().map_or(0, |shared| shared.expert.width())
        }
    };
    let routed = if let Ffn::Moe(moe) = &layer.ffn {
        ROUTED_STATES * moe.router.top_k * model.hidden
    } else {
        0
    };
    // Raw scores, masked scores, and weights.
    let scores = 3 * model.heads * memory::mean_keys(&layer.attention, length);
    // Gate, activated gate, up, and the product of the two.
    let of_token = STATES * model.hidden + routed + 4 * width + scores;
    4 * (tokens * of_token) as u64
}
