//! A whole model: what all layers share, and the layers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moe_checkpoint::Quantization;
use moe_checkpoint::json::is_true;
use serde_json::{Map, Value};

use crate::family::{Caveat, CaveatWhen, Family};
use crate::layer::{Expert, Ffn, LatentAttention, Layer, Linear, Moe};
use crate::mtp_layer::MtpLayer;
use crate::rope::Rope;
use crate::weight::Weight;

/// The output head.
#[derive(Debug, Clone)]
pub enum OutputHead {
    /// The embedding matrix is used again.
    Tied,
    /// A matrix of its own, `[vocab, hidden]`.
    Own(Weight),
}

/// A decoder-only language model with lazy weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// The family that names its tensors.
    pub family: &'static Family,
    /// The config that the model was read with. When the model is written, typed fields take
    /// precedence over it.
    pub config: Map<String, Value>,
    /// Where the config came from, for messages.
    pub config_file: PathBuf,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head's queries and keys.
    pub head_dim: usize,
    /// ε of the RMS norms.
    pub norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Token embedding, `[vocab, hidden]`.
    pub embed: Weight,
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// Layers for multi-token prediction, which the forward pass leaves out.
    pub mtp: Vec<MtpLayer>,
    /// RMS norm before the head, `[hidden]`.
    pub final_norm: Weight,
    /// Output head.
    pub head: OutputHead,
    /// How the quantized weights are encoded; None if no weight is quantized.
    pub quantization: Option<Quantization>,
    /// Tensors that the family doesn't know, carried byte for byte under their own names.
    pub extra: BTreeMap<String, Weight>,
}

impl Model {
    /// The matrix of the output head, `[vocab, hidden]`.
    pub fn head_weight(&self) -> &Weight {
        match &self.head {
            OutputHead::Tied => &self.embed,
            OutputHead::Own(weight) => weight,
        }
    }

    /// Every weight that the forward pass uses.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let mut weights = vec![&mut self.embed];
        weights.extend(self.layers.iter_mut().flat_map(Layer::weights_mut));
        weights.push(&mut self.final_norm);
        if let OutputHead::Own(weight) = &mut self.head {
            weights.push(weight);
        }
        weights
    }

    /// Returns sentences about what stock loaders do wrong with this model, from its family file.
    pub fn caveats(&self) -> impl Iterator<Item = &str> {
        self.applying_caveats().map(|caveat| caveat.note.as_str())
    }

    /// Returns the properties of this model that stock loaders handle wrongly.
    pub fn caveat_reasons(&self) -> impl Iterator<Item = CaveatWhen> {
        self.applying_caveats().map(|caveat| caveat.when)
    }

    fn applying_caveats(&self) -> impl Iterator<Item = &Caveat> {
        self.family.caveats.iter().filter(|caveat| self.meets(caveat.when))
    }

    fn meets(&self, condition: CaveatWhen) -> bool {
        match condition {
            CaveatWhen::SlidingWindow => self.layers.iter().any(|l| l.attention.window().is_some()),
            CaveatWhen::HeadDim => self.heads * self.head_dim != self.hidden,
            CaveatWhen::ScoreScale => self
                .layers
                .iter()
                .any(|l| l.attention.latent().is_some_and(LatentAttention::scales_scores)),
            CaveatWhen::IdleWindow => self.has_idle_window(),
            CaveatWhen::BiasedDense => self.has_biased_dense(),
        }
    }

    /// Whether the config switches on a sliding window that no layer has.
    fn has_idle_window(&self) -> bool {
        let is_on = self.config.get("use_sliding_window").is_some_and(is_true);
        let has_width = self.config.get("sliding_window").is_some_and(|window| !window.is_null());
        is_on && has_width && self.layers.iter().all(|layer| layer.attention.window().is_none())
    }

    /// Whether dense blocks or shared experts have biases and routed experts have none.
    fn has_biased_dense(&self) -> bool {
        let mut everyones = self.layers.iter().filter_map(|layer| match &layer.ffn {
            Ffn::Dense(expert) => Some(expert.as_ref()),
            Ffn::Moe(moe) => moe.shared.as_ref().map(|shared| &shared.expert),
        });
        everyones.any(is_biased) && self.moes().any(|(_, moe)| !moe.experts.iter().any(is_biased))
    }

    /// The mixtures of experts with the index of their layer.
    pub fn moes(&self) -> impl Iterator<Item = (usize, &Moe)> {
        self.layers.iter().enumerate().filter_map(|(index, layer)| Some((index, layer.ffn.moe()?)))
    }

    /// Parameters in total, and those that one token uses: all but the experts it isn't routed to.
    pub fn parameters(&self) -> Parameters {
        let head = match &self.head {
            OutputHead::Tied => 0,
            OutputHead::Own(weight) => weight.elements(),
        };
        let other =
            self.final_norm.elements() + self.extra.values().map(Weight::elements).sum::<usize>();
        let mut counts =
            Parameters { embedding: self.embed.elements(), head, other, ..Parameters::default() };
        for layer in &self.layers {
            counts.add_layer(layer);
        }
        for mtp in &self.mtp {
            let mut layer = Parameters::default();
            layer.add_layer(&mtp.layer);
            counts.multi_token +=
                layer.total() + mtp.own_weights().map(Weight::elements).sum::<usize>();
        }
        counts
    }
}

/// Number of parameters by component.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct Parameters {
    /// Token embedding.
    pub embedding: usize,
    /// Output head, 0 where it is tied.
    pub head: usize,
    /// Attention with its norms.
    pub attention: usize,
    /// Dense feed-forward blocks.
    pub dense_ffn: usize,
    /// Routers and shared experts' gates.
    pub routers: usize,
    /// Routed experts.
    pub experts: usize,
    /// The part of the routed experts that one token uses.
    pub experts_active: usize,
    /// Shared experts.
    pub shared_experts: usize,
    /// Layers for multi-token prediction, experts and all.
    pub multi_token: usize,
    /// Everything else.
    pub other: usize,
}

impl Parameters {
    fn add_layer(&mut self, layer: &Layer) {
        self.attention += elements(layer.attention.linears());
        self.attention += layer.attention.norms().into_iter().map(Weight::elements).sum::<usize>();
        self.other += layer.attention_norm.elements() + layer.ffn_norm.elements();
        match &layer.ffn {
            Ffn::Dense(ffn) => self.dense_ffn += elements(ffn.linears()),
            Ffn::Moe(moe) => {
                let each = moe.experts.first().map_or(0, |expert| elements(expert.linears()));
                self.experts += each * moe.experts.len();
                self.experts_active += each * moe.router.top_k;
                self.routers += moe.router.weights().map(Weight::elements).sum::<usize>();
                if let Some(shared) = &moe.shared {
                    self.shared_experts += elements(shared.expert.linears());
                    self.routers += shared.gate.as_ref().map_or(0, Weight::elements);
                }
            }
        }
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.active() - self.experts_active + self.experts + self.multi_token
    }

    /// The parameters that one token uses, multi-token prediction left out.
    pub fn active(&self) -> usize {
        self.embedding
            + self.head
            + self.attention
            + self.dense_ffn
            + self.routers
            + self.experts_active
            + self.shared_experts
            + self.other
    }
}

fn is_biased(expert: &Expert) -> bool {
    expert.gate.bias.is_some()
}

fn elements<'l>(linears: impl IntoIterator<Item = &'l Linear>) -> usize {
    linears.into_iter().flat_map(Linear::weights).map(Weight::elements).sum()
}
