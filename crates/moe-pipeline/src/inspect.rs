//! `inspect`: an overview of a checkpoint, from headers alone.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{Checkpoint, Quantization, Result, SourceFile, Stored};
use moe_model::{Ffn, Groups, Model, OutputHead, Parameters, Scoring};
use serde::Serialize;

use crate::applicable::{Applicable, applicable};

/// An overview of a checkpoint.
#[derive(Debug, Clone, Default, Serialize, schemars::JsonSchema)]
pub struct Inspection {
    /// The family.
    pub model_type: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head's queries and keys.
    pub head_dim: usize,
    /// Dimensions of a head that are rotated.
    pub rotary_dims: usize,
    /// The widths of latent attention. None for other attention.
    pub latent: Option<LatentSummary>,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Number of layers with a sliding window.
    pub sliding_layers: usize,
    /// The widest sliding window in tokens.
    pub window: Option<usize>,
    /// Number of layers with one feed-forward network.
    pub dense_layers: usize,
    /// The width of these networks. None if all layers have experts.
    pub dense_width: Option<usize>,
    /// The mixtures of experts. None for a dense model.
    pub moe: Option<MoeSummary>,
    /// Parameters by component.
    pub parameters: Parameters,
    /// Parameters in total.
    pub total_parameters: usize,
    /// Parameters that one token uses.
    pub active_parameters: usize,
    /// Number of layers for multi-token prediction.
    pub multi_token_layers: usize,
    /// The encoding of quantized weights. None if none are quantized.
    pub quantization: Option<String>,
    /// Bytes by element type.
    pub dtypes: BTreeMap<String, u64>,
    /// Number of tensors.
    pub tensors: usize,
    /// Weight files with their size in bytes.
    pub files: Vec<(String, u64)>,
    /// Tensors outside the layers that the family doesn't know.
    pub unknown_tensors: Vec<String>,
    /// Warnings, such as of other weights in the same folder.
    pub warnings: Vec<String>,
    /// Each pass, with whether it accepts this model.
    pub passes: Vec<Applicable>,
}

/// Widths of latent attention.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct LatentSummary {
    /// Width of the queries' latent. None if queries have none.
    pub queries: Option<usize>,
    /// Width of the latent of keys and values.
    pub keys_and_values: usize,
    /// Width of a head's values.
    pub value: usize,
}

/// The mixtures of experts of a model.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct MoeSummary {
    /// Number of layers that have one.
    pub sparse_layers: usize,
    /// Number of experts in each.
    pub experts: usize,
    /// Number of experts that a token goes to.
    pub top_k: usize,
    /// Width of an expert.
    pub expert_width: usize,
    /// Width of the shared expert. None without one.
    pub shared_width: Option<usize>,
    /// Whether the shared expert is behind a sigmoid gate.
    pub shared_gated: bool,
    /// The function that turns a router's logits into scores.
    pub scoring: Scoring,
    /// Whether an expert correction bias takes part in the choice of experts.
    pub bias: bool,
    /// Groups of experts that limit the choice. None without groups.
    pub groups: Option<Groups>,
    /// Whether routing weights are divided by their sum.
    pub normalized: bool,
    /// Factor of all routing weights.
    pub scale: f64,
}

/// Inspects the checkpoint in `dir` without reading weights.
///
/// # Errors
/// Errors of opening the checkpoint.
pub fn inspect(dir: &Path) -> Result<Inspection> {
    let checkpoint = Checkpoint::open(dir)?;
    let model = Model::read(&checkpoint)?;
    let mut dtypes = BTreeMap::<String, u64>::new();
    for tensor in checkpoint.tensors().values() {
        *dtypes.entry(tensor.dtype().to_string()).or_default() += tensor.bytes();
    }
    Ok(Inspection {
        quantization: model.quantization.as_ref().map(Quantization::to_string),
        dtypes,
        tensors: checkpoint.tensors().values().filter(|t: &&Stored| t.bytes() > 0).count(),
        files: checkpoint.files().iter().map(|file| named_size(file)).collect(),
        unknown_tensors: model.extra.keys().cloned().collect(),
        warnings: checkpoint.warnings().to_vec(),
        passes: applicable(&model),
        ..Inspection::of_layers(&model)
    })
}

/// The name of `file`, and its size in bytes.
fn named_size(file: &SourceFile) -> (String, u64) {
    let name = file.path().file_name().unwrap_or_default();
    (name.to_string_lossy().into_owned(), file.bytes())
}

impl Inspection {
    /// Summarizes the layers of `model`, their parameters and the sizes that they share; other
    /// fields are left at their defaults.
    fn of_layers(model: &Model) -> Self {
        let parameters = model.parameters();
        let windows = || model.layers.iter().filter_map(|layer| layer.attention.window());
        let dense = || model.layers.iter().filter_map(|layer| dense_width(&layer.ffn));
        Self {
            layers: model.layers.len(),
            sliding_layers: windows().count(),
            window: windows().max(),
            dense_layers: dense().count(),
            dense_width: dense().max(),
            moe: MoeSummary::of(model),
            total_parameters: parameters.total(),
            active_parameters: parameters.active(),
            parameters,
            multi_token_layers: model.mtp.len(),
            ..Self::of_sizes(model)
        }
    }

    /// Summarizes the sizes that all layers of `model` share; other fields are left at their
    /// defaults.
    fn of_sizes(model: &Model) -> Self {
        Self {
            model_type: model.family.model_type.clone(),
            hidden: model.hidden,
            vocab: model.vocab,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            rotary_dims: model.rope.dims,
            latent: LatentSummary::of(model),
            tied: matches!(model.head, OutputHead::Tied),
            ..Self::default()
        }
    }
}

/// The width of a dense network; None for a mixture.
fn dense_width(ffn: &Ffn) -> Option<usize> {
    match ffn {
        Ffn::Dense(network) => Some(network.width()),
        Ffn::Moe(_) => None,
    }
}

impl LatentSummary {
    /// The latent attention of the first layer that has it.
    fn of(model: &Model) -> Option<Self> {
        let latent = model.layers.iter().find_map(|layer| layer.attention.latent())?;
        let (queries, keys_and_values) = (latent.q_rank(), latent.kv_rank());
        Some(Self { queries, keys_and_values, value: latent.value })
    }
}

impl MoeSummary {
    /// The mixtures of `model`, which are all like the first.
    fn of(model: &Model) -> Option<Self> {
        let (_, first) = model.moes().next()?;
        let shared = first.shared.as_ref();
        Some(Self {
            sparse_layers: model.moes().count(),
            experts: first.experts.len(),
            top_k: first.router.top_k,
            expert_width: first.experts[0].width(),
            shared_width: shared.map(|shared| shared.expert.width()),
            shared_gated: shared.is_some_and(|shared| shared.gate.is_some()),
            scoring: first.router.scoring,
            bias: first.router.bias.is_some(),
            groups: first.router.groups,
            normalized: first.router.normalize,
            scale: first.router.scale,
        })
    }
}
