//! What every pass has: a name, options, and a plan that is fixed before the first byte is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{Saved, Spill};
use moe_forward::{Batch, Calibration, Converter, DataSpec, Group, Observer, Prompts};
use moe_math::Compute;
use moe_math::statistics::Sums;
use moe_model::{Attention, Ffn, Model, Result};
use serde::Serialize;
use serde_json::Value;

use crate::calibrate::CalibrationOptions;
use crate::distill::DistilledLayer;
use crate::quantize::{ExpertRecord, LayerWidths, Pulled};
use crate::reduce::LayerTrust;
use crate::train::Training;

/// A conversion pass; its options are its fields.
pub trait Pass: std::fmt::Debug + Send + Sync {
    /// The word for it on the command line, in recipes and in receipts.
    fn name(&self) -> &'static str;

    /// Its options as recipes spell them, defaults included.
    fn options(&self) -> Value;

    /// What [`Pass::control`] is.
    fn control_name(&self) -> &'static str {
        "random choice"
    }

    /// Checkpoints that it reads beside the one that it converts.
    fn others(&self) -> &[PathBuf] {
        &[]
    }

    /// Validates the options against the models and says what will be done.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for options that cannot work, [`moe_model::Kind::Unsupported`] for a
    /// model that this pass can't take. No weight has been read then.
    fn plan(&self, sources: &Sources<'_>) -> Result<Plan>;

    /// A file of statistics that it decides from.
    fn statistics(&self) -> Option<&Path> {
        None
    }

    /// A file with decisions, instead of statistics or data.
    fn given_plan(&self) -> Option<&Path> {
        None
    }

    /// A file that decisions are written to, in the form that [`Pass::given_plan`] is read in.
    fn plan_out(&self) -> Option<&Path> {
        None
    }

    /// Decisions as a file says them; null for passes that have no such files.
    fn describe_decisions(&self, model: &Model, decisions: &Decisions) -> Value {
        let _ = (model, decisions);
        Value::Null
    }

    /// Text on which the result is measured against the original; none of it was decided on.
    fn held_out(&self) -> Option<HeldOut<'_>> {
        None
    }

    /// What the same size gives without much thought: the control that decisions are measured beside. `sources` has these.
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
    fn decide(&self, sources: &Sources<'_>) -> Result<Option<Decisions>> {
        let _ = sources;
        Ok(None)
    }

    /// How the planned model is trained before it is written, if it is.
    fn training(&self) -> Option<Training> {
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
    fn decider(&self, sources: &Sources<'_>) -> Result<Option<Box<dyn Decider>>> {
        let _ = sources;
        Ok(None)
    }
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

/// Decides layer by layer in a sweep, in which what reaches a layer has gone through the converted ones before it.
pub trait Decider: Converter + Send + Sync {
    /// The text.
    fn text(&self) -> &CalibrationOptions;

    /// Refuses so few tokens of text and pool that nothing could be decided on them.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] then.
    fn check_text(&self, text: &Calibration, pool: Option<&Calibration>) -> Result<()> {
        let _ = (text, pool);
        Ok(())
    }

    /// The model that it converts. Where another pass decides that model's layers in the same sweep, each is put there just before it
    /// is converted, and the whole model before [`Decider::finish`].
    fn model_mut(&mut self) -> &mut Model;

    /// Whether it must see the whole model before it converts the first layer.
    fn looks_ahead(&self) -> bool;

    /// Whether one sweep is all that it needs.
    fn sweeps_once(&self) -> bool {
        true
    }

    /// About how many floating-point operations deciding on `tokens` tokens in sequences of `sequence` takes.
    fn flops(&self, tokens: usize, sequence: usize) -> f64;

    /// The most bytes that it holds beside the sweep's states and a layer's weights.
    fn working_bytes(&self) -> u64 {
        0
    }

    /// Is told the tokens that are about to come.
    fn begin(&mut self, calibration: &Calibration);

    /// More text, of which some may join the calibration.
    fn pool_text(&self) -> Option<CalibrationOptions> {
        None
    }

    /// What chooses of the pool. Sequences of `all` from `own` on are the pool, those before them the calibration.
    fn pool(&self, all: &Calibration, own: usize) -> Option<Box<dyn Pool>> {
        let _ = (all, own);
        None
    }

    /// What must watch a sweep of `sample` over the original model first.
    fn survey(&mut self, sample: &Calibration) -> Option<&mut dyn Observer>;

    /// Whether all layers shall be converted once more, in a sweep of its own; asked behind each.
    fn again(&mut self) -> bool {
        false
    }

    /// What the sweep that ended did, where each of several gives a whole result that can be measured.
    fn stage(&self) -> Option<&'static str> {
        None
    }

    /// Takes back what the last of these did, since the one before measured better.
    fn take_back(&mut self) {}

    /// Whether its steps are so costly that a killed run must not take them again; [`Self::save_in`] is called then.
    fn saves(&self) -> bool {
        false
    }

    /// Is told where to save them.
    fn save_in(&mut self, saved: Saved) {
        let _ = saved;
    }

    /// What was decided; asked for at the end, and behind each [`Self::stage`] before it.
    ///
    /// # Errors
    /// What reading weights returns.
    fn finish(&mut self) -> Result<Decisions>;
}

/// Watches a sweep of the original model over a calibration and the pool of text behind it.
pub trait Pool: Observer {
    /// The sequences of the pool that join the calibration, ascending, and what is said of it.
    fn choose(&mut self) -> (Vec<usize>, Pulled);
}

/// What decisions rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// On weights, or by chance: no data.
    Weights,
    /// On statistics of the original model.
    OriginalStatistics,
    /// On data, layer by layer, through the original's layers.
    OriginalText,
    /// On data, layer by layer, through the converted layers.
    Sequence,
    /// On a plan that was given.
    GivenPlan,
}

/// What was decided for each layer that changes.
pub struct Decisions {
    /// What it rests on.
    pub by: DecidedBy,
    /// By layer.
    pub layers: BTreeMap<usize, DecidedLayer>,
    /// Attention that changes, by layer.
    pub attention: BTreeMap<usize, Attention>,
}

/// What becomes of one layer; layers for multi-token prediction are numbered behind the others.
#[derive(Clone)]
pub struct DecidedLayer {
    /// Its feed-forward block.
    pub ffn: Ffn,
    /// How it is made.
    pub record: LayerRecord,
    /// For each expert that is left: the one whose router row it keeps, then what was merged into it.
    pub clusters: Vec<Vec<usize>>,
    /// What experts were ranked by.
    pub saliency: Vec<f64>,
}

/// What a pass reads.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The model that it converts.
    pub model: &'a Model,
    /// The models of [`Pass::others`], in order.
    pub others: &'a [Model],
    /// Whether any of these is another checkpoint than `model`.
    pub others_differ: bool,
    /// Where to compute what weights alone decide.
    pub compute: &'a Compute,
    /// The content of [`Pass::statistics`].
    pub statistics: Option<&'a dyn LayerStatistics>,
    /// The content of [`Pass::given_plan`].
    pub given_plan: Option<&'a Value>,
    /// Where made bytes are kept until they are written; decisions that make some need it.
    pub spill: Option<&'a Arc<Spill>>,
    /// What was decided, once it is; a plan without them shows sizes, and stands for no result.
    pub decisions: Option<&'a Decisions>,
}

impl<'a> Sources<'a> {
    /// One model, and nothing beside it.
    pub fn new(model: &'a Model, compute: &'a Compute) -> Self {
        Self {
            model,
            others: &[],
            others_differ: false,
            compute,
            statistics: None,
            given_plan: None,
            spill: None,
            decisions: None,
        }
    }
}

/// What a pass will do: the converted model, whose weights are made when they are written, and the record.
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
}

/// One sweep over the original model, from which weights of the converted one follow.
pub struct Survey {
    /// The text.
    pub text: TextSource,
    /// What watches the sweep.
    pub surveyor: Box<dyn Surveyor>,
}

/// Text for a survey.
#[derive(Debug, Clone, PartialEq)]
pub enum TextSource {
    /// Files that the user names.
    Data {
        /// The files.
        specs: Vec<DataSpec>,
        /// Tokens of a window.
        sequence_length: usize,
        /// Most tokens of a label.
        max_tokens: usize,
    },
    /// A file of prompts.
    Prompts {
        /// The file.
        path: PathBuf,
        /// How many sets of prompts it must have.
        sets: usize,
    },
}

impl TextSource {
    /// The files that it is read from.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::Data { specs, .. } => specs.iter().map(|spec| spec.path.as_path()).collect(),
            Self::Prompts { path, .. } => vec![path],
        }
    }
}

/// Tokens of a survey.
#[derive(Debug, Clone)]
pub enum SurveyText {
    /// Of files.
    Data(Batch),
    /// Of prompts.
    Prompts(Prompts),
}

impl SurveyText {
    /// All sequences.
    pub fn batch(&self) -> &Batch {
        match self {
            Self::Data(batch) => batch,
            Self::Prompts(prompts) => &prompts.batch,
        }
    }
}

/// Watches a sweep over the original model, and makes weights of what it sees.
pub trait Surveyor: Observer + Send + Sync {
    /// Is told what is about to come.
    ///
    /// # Errors
    /// What reading weights returns.
    fn begin(&mut self, text: &SurveyText) -> Result<()>;

    /// What it found, by layer, for the receipt.
    fn found(&self) -> BTreeMap<usize, Value>;
}

/// Whether a converted model computes the function of its original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Identity {
    /// It does, up to the rounding of the computation: every stored weight is exact.
    Exact,
    /// It does, up to what is named here.
    Approximate {
        /// Why it isn't exact.
        reason: String,
    },
    /// It doesn't, by design.
    Changed {
        /// What changes it.
        reason: String,
    },
}

impl Identity {
    /// What `effects` come to.
    pub fn of(effects: &[Effect]) -> Self {
        let reason = |kept: Kept| {
            let reasons: Vec<_> = effects.iter().filter(|e| e.kept == kept).map(|e| e.why.as_str()).collect();
            (!reasons.is_empty()).then(|| reasons.join("; "))
        };
        match (reason(Kept::No), reason(Kept::Approximately)) {
            (Some(reason), _) => Self::Changed { reason },
            (None, Some(reason)) => Self::Approximate { reason },
            (None, None) => Self::Exact,
        }
    }
}

/// Whether an option keeps the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Up to the rounding of the computation.
    Exactly,
    /// Up to what the effect says.
    Approximately,
    /// By design.
    No,
}

/// What one option does to the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// The option.
    pub option: String,
    /// Whether it keeps the function.
    pub kept: Kept,
    /// Why.
    pub why: String,
}

impl Effect {
    pub(crate) fn new(option: impl Into<String>, kept: Kept, why: impl Into<String>) -> Self {
        Self { option: option.into(), kept, why: why.into() }
    }
}

/// How one layer was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerRecord {
    /// The layer's index.
    pub layer: usize,
    /// How the router was made; none where the layer stays as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// How each expert was made, in order.
    pub experts: Vec<String>,
    /// How the shared expert was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// How attention was made, where it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// How far the decision about the layer can be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<LayerTrust>,
    /// The widths that its weights got, and what others cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub widths: Option<LayerWidths>,
    /// How each expert was quantized on its samples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quantized: Vec<ExpertRecord>,
    /// How its mixture became one network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distilled: Option<DistilledLayer>,
    /// What surveys of the layer's inputs found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<Value>,
}

impl LayerRecord {
    /// How experts were made, those that were made alike together; a few kinds, the others counted.
    pub fn experts_by_kind(&self) -> Vec<String> {
        const SHOWN: usize = 8;
        let mut kinds: Vec<(&str, usize)> = Vec::new();
        for expert in &self.experts {
            match kinds.iter_mut().find(|(kind, _)| kind == expert) {
                Some((_, count)) => *count += 1,
                None => kinds.push((expert, 1)),
            }
        }
        if let [(kind, _)] = kinds.as_slice() {
            return vec![(*kind).to_owned()];
        }
        let mut lines: Vec<String> =
            kinds.iter().take(SHOWN).map(|(kind, count)| format!("{count} × {kind}")).collect();
        if kinds.len() > SHOWN {
            lines.push(format!("and {} other kinds", kinds.len() - SHOWN));
        }
        lines
    }
}
