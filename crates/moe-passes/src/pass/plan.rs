//! What a pass will do, and what it leaves open.

use moe_model::{Model, Result};
use serde_json::Value;

use super::{Effect, LayerEdits, LayerRecord, LayerSweep, Sources, Survey};
use crate::train::Training;

/// What a pass will do, fixed before the first byte is written.
pub struct Plan {
    /// The model with all that is known of it now.
    pub planned: PlannedModel,
    /// What finds out the rest.
    pub next: Next,
    /// What makes the model again, with what was found out.
    pub transform: Box<dyn Transform>,
}

/// What a plan leaves open, and how that is found out. Surveys come before a training.
pub enum Next {
    /// Nothing, or nothing but what surveys find.
    Ready,
    /// Edits of layers, without text: from statistics, from weights, or from a given plan.
    Decide(Decide),
    /// Edits of layers, one layer after the other in a sweep over text.
    Layers(LayerSweep),
    /// Weights, by training the planned model.
    Train(Training),
}

/// Decides about all layers; its errors are those of reading weights and statistics.
pub type Decide = Box<dyn Fn(&Sources<'_>) -> Result<LayerEdits> + Send + Sync>;

/// What a pass makes of a model, once it is known that the options and the model go together.
///
/// The sources are those of the plan, but for the model: where an earlier pass of the same run makes
/// it, its layers have become by then what they were only planned to be.
pub trait Transform: Send + Sync {
    /// The converted model. [`Plan::new`] calls this without edits: layers that are yet to be
    /// decided have stand-ins of the right sizes, which stand for no result. It is called again
    /// when they are decided, and after each of several stages, whose results are measured.
    ///
    /// # Errors
    /// As for [`super::Pass::plan`].
    fn apply(&self, sources: &Sources<'_>, edits: Option<&LayerEdits>) -> Result<PlannedModel>;

    /// A model of the same size that was made without evidence, which what was decided is measured
    /// beside: [`super::PassInfo::baseline`]. Nobody asks without held-out text.
    ///
    /// # Errors
    /// What reading weights returns.
    fn baseline(&self, source: &Model, edits: &LayerEdits) -> Result<Option<Model>> {
        let _ = (source, edits);
        Ok(None)
    }

    /// What was decided about `source`, as [`super::Outputs::plan`] says it.
    fn described(&self, source: &Model, edits: &LayerEdits) -> Value {
        let _ = (source, edits);
        Value::Null
    }
}

/// The converted model, whose weights are made when they are written, and the record.
pub struct PlannedModel {
    /// The converted model.
    pub model: Model,
    /// What the options do to the function; [`super::Identity::of`] sums it up.
    pub effects: Vec<Effect>,
    /// How each layer is made.
    pub layers: Vec<LayerRecord>,
    /// What the user should know before it runs.
    pub warnings: Vec<String>,
    /// What must be found out from text before the first weight is made.
    pub surveys: Vec<Survey>,
    /// Experts that are chosen together, as the shards of one network; 1 if each stands alone.
    pub group: usize,
    /// What is held while it is found out how a layer's weights are made, beside these.
    pub working_bytes: u64,
}

impl Plan {
    /// What `transform` makes of `sources`, and what is still to come.
    ///
    /// # Errors
    /// As for [`Transform::apply`].
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
