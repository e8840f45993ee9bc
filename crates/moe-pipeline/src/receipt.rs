//! The receipt: what was done to which bytes, and what came of it. The same run gives the same
//! receipt.

use std::collections::BTreeMap;

use moe_forward::Difference;
use moe_model::Parameters;
use moe_passes::distill::DistilledLayer;
use moe_passes::quantize::ExpertRecord;
use moe_passes::{DecidedBy, Effect, Identity, LayerRecord, PassInfo, PoolStats, ReportKind};
use serde::Serialize;

use crate::build::{BUILD, VERSION};
use crate::file_names::REPORT_FILE;
use crate::train::TrainingRecord;
use crate::trust::HeldOutReport;
use crate::writing::WritingOptions;

pub use crate::file_names::{RECEIPT_FILE, RUN_FILE};

/// What `moe-convert.json` says.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// Program and version.
    pub tool: Tool,
    /// Passes that ran before it in the same run, with no checkpoint between them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<EarlierPass>,
    /// The pass, or the last one.
    pub pass: &'static PassInfo,
    /// Its options, defaults included.
    pub options: serde_json::Value,
    /// What it read.
    pub source: SourceRecord,
    /// Further checkpoints that it read, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<SourceRecord>,
    /// SHA-256 of text, statistics and plans that it read, by file name, with the folders that tell
    /// it from others of that name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub texts: BTreeMap<String, String>,
    /// SHA-256 of the text that statistics which it read were gathered on, as far as they say so,
    /// by name likewise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub observed: BTreeMap<String, String>,
    /// SHA-256 of plans that it wrote beside, by name likewise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<String, String>,
    /// What it computed in.
    pub dtype: &'static str,
    /// The kind of device that it computed on: cpu, cuda or metal.
    pub device: &'static str,
    /// How it was written.
    pub writing: WritingOptions,
    /// What routers computed in, where that was not f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_dtype: Option<&'static str>,
    /// What it wrote.
    pub result: ResultRecord,
    /// Whether the result computes the same function, as the options promise it.
    pub identity: Identity,
    /// What each option does to the function.
    pub effects: Vec<Effect>,
    /// The same, as measured on the weights that were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What it costs on held-out text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutReport>,
    /// How it was trained, where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingRecord>,
    /// What decisions about experts rest on, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedBy>,
    /// What a pool of text gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStats>,
    /// How each layer was made.
    pub layers: Vec<LayerRecord>,
    /// What the user was warned of.
    pub warnings: Vec<String>,
    /// What lay beside the source's weights and didn't come along, by name, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, &'static str>,
    /// SHA-256 of what was written, by name: all that the manifest lists but this receipt and the
    /// model card, of which a copy under another name has its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

impl Receipt {
    /// The passes in order, with arrows between them.
    pub fn passes(&self) -> String {
        let names = self.before.iter().map(|earlier| earlier.pass.name).chain([self.pass.name]);
        names.collect::<Vec<_>>().join(" → ")
    }

    /// What each of the earlier passes did, as a receipt of its own would say it short of what was
    /// measured: that is known of all passes together.
    pub fn earlier(&self) -> Vec<Self> {
        let mut source = self.source.clone();
        let mut receipts = Vec::new();
        for EarlierPass { pass, options, decided, pool, result, layers } in
            self.before.iter().cloned()
        {
            let made = SourceRecord {
                name: format!("{}, after {pass}", source.name),
                model_type: result.model_type.clone(),
                total_parameters: result.total_parameters,
                active_parameters: result.active_parameters,
                bytes: result.bytes,
                sha256: BTreeMap::new(),
            };
            receipts.push(Self {
                before: Vec::new(),
                source: std::mem::replace(&mut source, made),
                training: self.training.clone().filter(|_| pass.report == ReportKind::Training),
                measured: None,
                held_out: None,
                warnings: Vec::new(),
                pass,
                options,
                decided,
                pool,
                result,
                layers,
                ..self.clone()
            });
        }
        receipts
    }

    /// The first layer that was converted, and how its router was made.
    pub fn first_converted(&self) -> Option<(&LayerRecord, &str)> {
        self.layers.iter().find_map(|layer| Some((layer, layer.router.as_deref()?)))
    }

    /// How experts were made, in a few lines; none where no layer was converted.
    pub fn experts(&self) -> Vec<String> {
        let Some((first, _)) = self.first_converted() else { return Vec::new() };
        let converted = || self.layers.iter().filter(|l| l.router.is_some());
        let dense = match self.layers.len() - converted().count() {
            0 => String::new(),
            dense => format!(", {dense} stay dense"),
        };
        let count =
            format!("{} in each of {} layers{dense}", first.experts.len(), converted().count());
        if self.decided.is_some() {
            let say = match self.no_figures() {
                None => format!("{RECEIPT_FILE} and {REPORT_FILE} say"),
                Some(_) => format!("{RECEIPT_FILE} says"),
            };
            return vec![format!("{count}, chosen layer by layer ({say} which)")];
        }
        let mut kinds = first.experts_by_kind();
        kinds[0] = format!("{count}: {}", kinds[0]);
        kinds
    }

    /// The layers that became dense, with their indices.
    pub fn dense_layers(&self) -> impl Iterator<Item = (usize, &DistilledLayer)> {
        self.layers.iter().filter_map(|layer| Some((layer.layer, layer.distilled.as_ref()?)))
    }

    /// How layers became dense, in a few words; none where none did.
    pub fn distilled(&self) -> Option<String> {
        let (_, first) = self.dense_layers().next()?;
        let fitted = self.dense_layers().filter(|(_, layer)| layer.fit.is_some()).count();
        let fit = if fitted > 0 {
            format!(", down projections of {fitted} fitted")
        } else {
            String::new()
        };
        Some(format!(
            "{} layers became one network of {} neurons each{fit}",
            self.dense_layers().count(),
            first.width
        ))
    }

    /// How each expert was quantized, the one with the fewest tokens of its own first: layer,
    /// expert, record.
    pub fn coldest(&self) -> Vec<(usize, usize, &ExpertRecord)> {
        let records = self
            .layers
            .iter()
            .flat_map(|l| l.quantized.iter().enumerate().map(|(e, r)| (l.layer, e, r)));
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|(layer, expert, record)| (record.counts.routed, *layer, *expert));
        records
    }

    /// Why no layer has figures that tell how far decisions about its experts can be trusted; none
    /// where one has, and where nothing was decided.
    pub fn no_figures(&self) -> Option<&'static str> {
        let has_others = matches!(self.pass.report, ReportKind::Quantized | ReportKind::Dense);
        if has_others || self.layers.iter().any(|layer| layer.trust.is_some()) {
            return None;
        }
        Some(match self.decided? {
            DecidedBy::Weights => {
                "no figures by layer (load, mass kept, errors): this method doesn't look at data"
            }
            DecidedBy::GivenPlan => {
                "no figures by layer (load, mass kept, errors): a given plan comes without data"
            }
            DecidedBy::OriginalStatistics | DecidedBy::OriginalText | DecidedBy::Sequence => {
                "no figures by layer (load, mass kept, errors): no layer was observed"
            }
        })
    }
}

/// A pass that ran before the last one, on the way to the same result.
#[derive(Debug, Clone, Serialize)]
pub struct EarlierPass {
    /// The pass.
    pub pass: &'static PassInfo,
    /// Its options, defaults included.
    pub options: serde_json::Value,
    /// What its decisions about experts rest on, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<DecidedBy>,
    /// What a pool of text gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolStats>,
    /// What it made, which the next pass converted.
    pub result: ResultRecord,
    /// How it made each layer.
    pub layers: Vec<LayerRecord>,
}

/// The program that wrote a receipt.
#[derive(Debug, Clone, Serialize)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// A hash of the sources that it was built from: results of other builds are not reused.
    pub build: &'static str,
}

impl Tool {
    /// This program.
    pub(crate) fn this() -> Self {
        Self { name: "moe-convert", version: VERSION, build: BUILD }
    }
}

/// The checkpoint that was read.
#[derive(Debug, Clone, Serialize)]
pub struct SourceRecord {
    /// Name of its directory.
    pub name: String,
    /// Its family.
    pub model_type: String,
    /// Parameters in total.
    pub total_parameters: usize,
    /// Parameters that one token uses.
    pub active_parameters: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// SHA-256 of config, weights, tokenizer and what else goes along, by file name.
    pub sha256: BTreeMap<String, String>,
}

/// The checkpoint that was written.
#[derive(Debug, Clone, Serialize)]
pub struct ResultRecord {
    /// Its family.
    pub model_type: String,
    /// Parameters by component.
    pub parameters: Parameters,
    /// Parameters in total.
    pub total_parameters: usize,
    /// Parameters that one token uses.
    pub active_parameters: usize,
    /// Tensors.
    pub tensors: usize,
    /// Tensors whose bytes are the source's.
    pub tensors_copied: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Of all pairs of a token and a layer, those in which two groups of experts tie for the last place
/// among the chosen ones. A runtime that breaks ties otherwise than by index then mixes the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GroupTies {
    /// Pairs looked at.
    pub routings: u64,
    /// Ties of probabilities in f32.
    pub in_f32: u64,
    /// Ties where router logits are computed in bf16.
    pub in_bf16: u64,
}

/// Logits of the result beside the source's, on seeded random tokens.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Seed of the tokens.
    pub seed: u64,
    /// Numbers.
    #[serde(flatten)]
    pub difference: Difference,
    /// Where experts come in groups that are chosen together: how often groups tie for the last
    /// place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_ties: Option<GroupTies>,
}
