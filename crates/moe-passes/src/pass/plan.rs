//! The plan of a pass, and what it leaves open.

use moe_model::{Model, Result};
use serde_json::Value;

use super::{Effect, LayerEdits, LayerRecord, LayerSweep, Sources, Survey};
use crate::train::Training;

/// The plan of a pass, fixed before the first byte is written.
pub struct Plan {
    /// The model, as far as it is known now.
    pub planned: PlannedModel,
    /// The step that finds out the rest.
    pub next: Next,
    /// Makes the model again, from what was found out.
    pub transform: Box<dyn Transform>,
}

/// The part that a plan leaves open, and how it is found out. Surveys run before a training.
pub enum Next {
    /// Nothing is open, except what surveys find.
    Ready,
    /// Edits of layers, without text: from statistics, from weights, or from a given plan.
    Decide(Decide),
    /// Edits of layers, one layer after the other in a sweep over text.
    Layers(LayerSweep),
    /// Weights, by training the planned model.
    Train(Training),
}

/// Decides about all layers. Its errors are those of reading weights and statistics.
pub type Decide = Box<dyn Fn(&Sources<'_>) -> Result<LayerEdits> + Send + Sync>;

/// The transformation of a model by a pass whose options suit it.
///
/// The sources are those of the plan except for the model: where an earlier pass of the same run
/// makes it, its layers are by then the decided ones, and not the planned ones.
pub trait Transform: Send + Sync {
    /// The converted model. [`Plan::new`] calls this without edits: layers that aren't decided yet
    /// get stand-ins of the right sizes, which aren't results. It is called again with the
    /// decisions, and after each of several stages, whose results are measured.
    ///
    /// # Errors
    /// Errors of [`super::Pass::plan`].
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel>;

    /// The baseline of [`super::PassInfo::baseline`]: a model of the same size that was made
    /// without evidence. It is called only with held-out text.
    ///
    /// # Errors
    /// If a weight can't be read.
    fn baseline(&self, source: &Model, edits: &LayerEdits) -> Result<Option<Model>> {
        let _ = (source, edits);
        Ok(None)
    }

    /// The decisions about `source`, in the format of [`super::Outputs::plan`].
    fn described(&self, source: &Model, edits: &LayerEdits) -> Value {
        let _ = (source, edits);
        Value::Null
    }
}

/// The converted model, whose weights are made when they are written, and its record.
pub struct PlannedModel {
    /// The converted model.
    pub model: Model,
    /// The effects of options on the function; [`super::Identity::of`] sums them up.
    pub effects: Vec<Effect>,
    /// How each layer is made.
    pub layers: Vec<LayerRecord>,
    /// Warnings for the user before the run.
    pub warnings: Vec<String>,
    /// Sweeps over text that must run before the first weight is made.
    pub surveys: Vec<Survey>,
    /// The number of experts that are chosen together, as shards of one network; 1 where each is
    /// chosen alone.
    pub group: usize,
    /// The number of bytes held while the making of a layer's weights is worked out, in addition to
    /// those of the surveys.
    pub working_bytes: u64,
}

impl Plan {
    /// The plan of `transform` for `sources`, with `next` as the open step.
    ///
    /// # Errors
    /// Errors of [`Transform::apply`].
    pub fn new(
        transform: impl Transform + 'static,
        sources: &Sources<'_>,
        next: Next,
    ) -> Result<Self> {
        let planned = transform.apply(sources, None)?;
        Ok(Self { planned, next, transform: Box::new(transform) })
    }
}

impl PlannedModel {
    /// A model that no survey is needed for.
    pub(crate) fn new(
        model: Model,
        effects: Vec<Effect>,
        layers: Vec<LayerRecord>,
        warnings: Vec<String>,
    ) -> Self {
        Self { model, effects, layers, warnings, surveys: Vec::new(), group: 1, working_bytes: 0 }
    }
}
