//! The parts that every pass has: a name, options, and a plan that is fixed before the first byte
//! is written.

mod details;
mod edits;
mod identity;
mod info;
mod inputs;
mod layer_pass;
mod plan;
mod pool;
mod record;
mod survey;

use std::sync::Arc;

use moe_checkpoint::ScratchStore;
use moe_forward::Group;
use moe_math::Compute;
use moe_math::statistics::CalibrationSums;
use moe_model::{Model, Result};
use serde::Serialize;
use serde_json::Value;

pub use details::{Details, DetailsType, LayerDetails};
pub use edits::{
    EncodingEdit, Encodings, Network, NetworkEdit, NetworkSource, Neurons, NoiseEdit,
    ProjectionScale, Rounding, RouterEdit, RouterRows, SharedEdit,
};
pub use identity::{Effect, Identity, Kept};
pub use info::{Baseline, BenchmarkedModel, Choice, PassInfo, PassOptions, ReportKind};
pub use inputs::{Inputs, Outputs};
pub use layer_pass::{
    DecidedBy, DecidedLayer, LayerEdits, LayerPass, LayerStage, LayerSweep, SweptText,
};
pub use plan::{Decide, Next, Plan, PlannedModel, Transform};
pub use pool::{Pool, PoolStats};
pub use record::LayerRecord;
pub use survey::{Survey, SurveyText, Surveyor, TextSource};

/// A conversion pass, whose options are its fields.
///
/// [`Pass::check_options`] is called before anything is opened. The files that [`Pass::inputs`]
/// names are read, and [`Pass::plan`] is called once with them: the [`Plan`] has the planned model,
/// and says as a value how the rest is found out. [`Transform::apply`] then puts the findings in
/// place.
pub trait Pass: std::fmt::Debug + Send + Sync {
    /// Returns the row of [`crate::PASSES`] for this pass, which holds for all of its options.
    fn info(&self) -> &'static PassInfo;

    /// The name of the pass on the command line, in recipes and in receipts.
    fn name(&self) -> &'static str {
        self.info().name
    }

    /// Returns the options as recipes spell them, in one spelling whatever was given: with the
    /// defaults that follow from options alone, and without those that say the same as another.
    /// An option is null or left out if it isn't in use, or if its default follows from the models
    /// or the text.
    fn options(&self) -> Value;

    /// Files that it reads besides the model that it converts.
    fn inputs(&self) -> Inputs<'_>;

    /// Files that it writes besides its result.
    fn outputs(&self) -> Outputs<'_> {
        Outputs::default()
    }

    /// Refuses options that can't work with any model, and options that contradict each other. It
    /// reads nothing.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`], with a message that begins with the option where its value alone
    /// is wrong.
    fn check_options(&self) -> Result<()>;

    /// Validates the options against the models, and plans the conversion.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for options that cannot work, [`moe_model::Kind::Unsupported`]
    /// for a model that this pass can't take. No weight has been read then.
    fn plan(&self, sources: &Sources<'_>) -> Result<Plan>;
}

/// Options or a plan as JSON.
///
/// # Panics
/// Panics if they have a map whose keys aren't text, or a value that can't be serialized. No
/// options and plans of passes have any.
pub(crate) fn as_value(options: &impl Serialize) -> Value {
    serde_json::to_value(options)
        .expect("options are numbers, words, paths that are written with loss, and lists of these")
}

/// Statistics that were observed of a model before this run.
pub trait LayerStatistics: Send + Sync {
    /// The groups of tokens that sums are kept for.
    fn groups(&self) -> &[Group];

    /// The sums of each group in layer `index`; None where the layer has no mixture.
    ///
    /// # Errors
    /// Errors of reading the file.
    fn layer(&self, index: usize) -> Result<Option<Vec<CalibrationSums>>>;
}

/// The files that a pass reads: models, statistics, a plan, text.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The model that it converts.
    pub model: &'a Model,
    /// The models of [`Inputs::models`], in order.
    pub others: &'a [Model],
    /// Whether any of these is another checkpoint than `model`.
    pub others_differ: bool,
    /// For the model and each of the others, in this order, the position of the first one with the
    /// same weights, as far as samples of every tensor tell. Empty where that isn't known.
    pub first_alike: &'a [usize],
    /// The device on which weights are compared and computed.
    pub compute: &'a Compute,
    /// The content of [`Inputs::statistics`].
    pub statistics: Option<&'a dyn LayerStatistics>,
    /// The content of [`Inputs::plan`].
    pub given_plan: Option<&'a Value>,
    /// The store where made bytes are kept until they are written. Decisions that make bytes need
    /// it.
    pub scratch: Option<&'a Arc<ScratchStore>>,
}

impl<'a> Sources<'a> {
    /// The sources of a pass that reads only this model.
    pub fn new(model: &'a Model, compute: &'a Compute) -> Self {
        Self {
            model,
            others: &[],
            others_differ: false,
            first_alike: &[],
            compute,
            statistics: None,
            given_plan: None,
            scratch: None,
        }
    }
}
