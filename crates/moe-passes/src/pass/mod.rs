//! What every pass has: a name, options, and a plan that is fixed before the first byte is written.

mod info;
mod inputs;
mod layer_pass;
mod record;
mod survey;

use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::ScratchStore;
use moe_forward::{DataSpec, Group};
use moe_math::Compute;
use moe_math::statistics::Sums;
use moe_model::{Model, Result};
use serde::Serialize;
use serde_json::Value;

use crate::train::Training;

pub use info::{Baseline, BenchmarkedModel, PassInfo, PassOptions, ReportKind};
pub use inputs::Inputs;
pub use layer_pass::{DecidedBy, DecidedLayer, LayerEdits, LayerPass, Pool, SweptText};
pub use record::{Effect, Identity, Kept, LayerRecord};
pub use survey::{Survey, SurveyText, Surveyor, TextSource};

/// A conversion pass; its options are its fields.
pub trait Pass: std::fmt::Debug + Send + Sync {
    /// What is known of it without its options: its row of [`crate::PASSES`].
    fn info(&self) -> &'static PassInfo;

    /// The word for it on the command line, in recipes and in receipts.
    fn name(&self) -> &'static str {
        self.info().name
    }

    /// Its options as recipes spell them, defaults included.
    fn options(&self) -> Value;

    /// What it reads beside the model that it converts.
    fn inputs(&self) -> Inputs<'_>;

    /// Refuses options that can't work with any model, and ones that contradict each other. Nothing
    /// is read.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`], with a message that begins with the option where its value alone
    /// is wrong.
    fn check_options(&self) -> Result<()>;

    /// Validates the options against the models and says what will be done.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for options that cannot work, [`moe_model::Kind::Unsupported`]
    /// for a model that this pass can't take. No weight has been read then.
    fn plan(&self, sources: &Sources<'_>) -> Result<Plan>;

    /// A file that decisions are written to, in the form that [`Inputs::plan`] is read in.
    fn plan_out(&self) -> Option<&Path> {
        None
    }

    /// Decisions as a file says them; null for passes that have no such files.
    fn describe_decisions(&self, model: &Model, decisions: &LayerEdits) -> Value {
        let _ = (model, decisions);
        Value::Null
    }

    /// Text on which the result is measured against the original; none of it was decided on.
    fn held_out(&self) -> Option<HeldOut<'_>> {
        None
    }

    /// A model of the same size that was made without evidence, which decisions are measured
    /// beside: [`PassInfo::baseline`]. `sources` has these.
    ///
    /// # Errors
    /// As for [`Pass::plan`].
    fn control(&self, sources: &Sources<'_>) -> Result<Option<Model>> {
        let _ = sources;
        Ok(None)
    }

    /// Decides what needs no sweep: from statistics, or from weights alone.
    ///
    /// # Errors
    /// What reading weights and statistics returns.
    fn decide(&self, sources: &Sources<'_>) -> Result<Option<LayerEdits>> {
        let _ = sources;
        Ok(None)
    }

    /// Whether [`Pass::decide`] takes little beside the writing. A dry run decides then, too: it
    /// shows what stays, and fails where the run would.
    fn decides_at_once(&self) -> bool {
        false
    }

    /// How the planned model is trained before it is written, if it is.
    fn training(&self) -> Option<Training> {
        None
    }

    /// What so many `steps` of that training did to the function, of which the plan could only say
    /// how many there may be.
    fn trained(&self, steps: u64) -> Option<Effect> {
        let _ = steps;
        None
    }

    /// Whether it trains, before or while it decides.
    fn trains(&self) -> bool {
        self.training().is_some()
    }

    /// Whether it keeps weights that it makes on the disk until they are written.
    fn spills(&self) -> bool {
        true
    }

    /// What decides in a sweep over text, if that is how this pass decides.
    ///
    /// # Errors
    /// As for [`Pass::plan`].
    fn decider(&self, sources: &Sources<'_>) -> Result<Option<Box<dyn LayerPass>>> {
        let _ = sources;
        Ok(None)
    }
}

/// `options`, or a plan, as JSON.
///
/// # Panics
/// If they have a map whose keys aren't text, or a value that refuses to be written: none of ours
/// has.
pub(crate) fn as_value(options: &impl Serialize) -> Value {
    serde_json::to_value(options)
        .expect("options are numbers, words, paths that are written with loss, and lists of these")
}

/// Text that a result is measured on.
#[derive(Debug, Clone, Copy)]
pub struct HeldOut<'a> {
    /// The files.
    pub data: &'a [DataSpec],
    /// Tokens of a window.
    pub sequence_length: usize,
    /// Most tokens of a label.
    pub max_tokens: usize,
}

/// Statistics of a model that was observed before.
pub trait LayerStatistics: Send + Sync {
    /// The groups of tokens.
    fn groups(&self) -> &[Group];

    /// The sums of each group in layer `index`; none where it has no mixture.
    ///
    /// # Errors
    /// What reading returns.
    fn layer(&self, index: usize) -> Result<Option<Vec<Sums>>>;
}

/// What a pass reads.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The model that it converts.
    pub model: &'a Model,
    /// The models of [`Inputs::models`], in order.
    pub others: &'a [Model],
    /// Whether any of these is another checkpoint than `model`.
    pub others_differ: bool,
    /// For the model and each of the others, in this order, the place of the first that holds the
    /// same weights as far as samples of every tensor tell; empty where that isn't known.
    pub first_alike: &'a [usize],
    /// Where to compute what weights alone decide.
    pub compute: &'a Compute,
    /// The content of [`Inputs::statistics`].
    pub statistics: Option<&'a dyn LayerStatistics>,
    /// The content of [`Inputs::plan`].
    pub given_plan: Option<&'a Value>,
    /// Where made bytes are kept until they are written; decisions that make some need it.
    pub spill: Option<&'a Arc<ScratchStore>>,
    /// What was decided, once it is; a plan without them shows sizes, and stands for no result.
    pub decisions: Option<&'a LayerEdits>,
}

impl<'a> Sources<'a> {
    /// One model, and nothing beside it.
    pub fn new(model: &'a Model, compute: &'a Compute) -> Self {
        Self {
            model,
            others: &[],
            others_differ: false,
            first_alike: &[],
            compute,
            statistics: None,
            given_plan: None,
            spill: None,
            decisions: None,
        }
    }
}

/// What a pass will do: the converted model, whose weights are made when they are written, and the
/// record.
pub struct Plan {
    /// The converted model.
    pub model: Model,
    /// What the options do to the function; [`Identity::of`] sums it up.
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
