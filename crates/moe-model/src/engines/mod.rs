//! What engines take of a quantized mixture of experts.
//!
//! The rules were read in the sources of the versions that they name (files are cited at each), and
//! those of transformers tried as well (`golden/quantize/exact-config.md`,
//! `scripts/interop/quantized.py`). What no rule covers is said to be not known.

mod sglang;
mod transformers;
mod vllm;

use std::collections::BTreeSet;
use std::fmt;

use moe_checkpoint::quantization::{Blocks, CompressedTensors, Integers, QUANTIZATION_KEY, Scheme};
use moe_checkpoint::{Dtype, Quantization};
use serde_json::Value;

use crate::assembly::Model;
use crate::layer::{Expert, Ffn, Layer, Moe};
use crate::quantized::module;
use crate::read::names;

/// Numbers of GPUs that tensor parallelism is asked about.
const RANKS: [usize; 4] = [1, 2, 4, 8];

/// What one engine does with a quantized checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// The engine and its version.
    pub engine: &'static str,
    /// Whether it takes the checkpoint.
    pub answer: Answer,
    /// Under which conditions, or why not and what to change.
    pub says: String,
}

/// Whether an engine takes a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It does.
    Takes,
    /// It refuses it, or reads something else.
    Refuses,
    /// No rule here says.
    NotKnown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, says, .. } = self;
        match self.answer {
            Answer::Takes if says.is_empty() => write!(f, "{engine} takes it"),
            Answer::Takes => write!(f, "{engine} takes it, {says}"),
            Answer::Refuses => write!(f, "{engine} does not take it: {says}"),
            Answer::NotKnown => write!(f, "{engine} is not known to take it: {says}"),
        }
    }
}

impl Model {
    /// What vLLM, SGLang and transformers do with this model's quantized experts; nothing for a
    /// model without any.
    pub fn engines(&self) -> Vec<Verdict> {
        let Some(experts) = Experts::of(self) else { return Vec::new() };
        let verdict = |engine: &'static str, found: EngineAnswer| {
            let (answer, says) = match found {
                Ok(says) => (Answer::Takes, says),
                Err((answer, says)) => (answer, says),
            };
            Verdict { engine, answer, says }
        };
        vec![
            verdict(vllm::VERSION, vllm::takes(&experts)),
            verdict(sglang::VERSION, sglang::takes(&experts)),
            verdict(transformers::NEWER, transformers::newer(&experts)),
            verdict(transformers::OLDER, transformers::older(&experts)),
        ]
    }
}

/// A condition under which it is taken, or the answer and its reason.
type EngineAnswer = Result<String, (Answer, String)>;

fn refuses(says: impl Into<String>) -> EngineAnswer {
    Err((Answer::Refuses, says.into()))
}

fn not_known(says: impl Into<String>) -> EngineAnswer {
    Err((Answer::NotKnown, says.into()))
}

/// What holds where each of `found` does.
fn every(found: impl Iterator<Item = EngineAnswer>) -> EngineAnswer {
    let mut says: Vec<String> = found.collect::<Result<_, _>>()?;
    says.retain(|condition| !condition.is_empty());
    says.dedup();
    Ok(says.join("; "))
}

/// What the rules look at.
struct Experts<'m> {
    quantization: &'m Quantization,
    /// What the config says of it; null for a checkpoint that is yet to be written.
    said: Value,
    /// How routed experts' matrices are encoded.
    schemes: Vec<Scheme>,
    /// Whether matrices of one layer differ in that, or some of them are not quantized.
    mixed: bool,
    /// Whether there are layers whose experts are not quantized at all.
    partial: bool,
    hidden: usize,
    /// Of routed experts, and of shared ones that are quantized.
    widths: BTreeSet<usize>,
    /// Whether tensors have the names of the first layout, which the hub has.
    hub_names: bool,
    /// The first layer whose scheme isn't the one that the config gives expert 0's projections
    /// under the hub's names, and under `gate_proj`, `up_proj` and `down_proj`.
    misnamed: [Option<usize>; 2],
    /// Rows and columns of a matrix that blocks of e4m3 codes don't divide, if there is one of more
    /// than a block.
    ragged: Option<[usize; 2]>,
    /// What the config says that weights are computed in.
    dtype: Option<Dtype>,
    scales: BTreeSet<&'static str>,
}

impl<'m> Experts<'m> {
    fn of(model: &'m Model) -> Option<Self> {
        let quantization = model.quantization.as_ref()?;
        let (mut schemes, mut mixed, mut partial) = (Vec::new(), false, false);
        let (mut widths, mut scales) = (BTreeSet::new(), BTreeSet::new());
        for (_, moe) in model.moes() {
            let of_layer: Vec<_> =
                moe.experts.iter().flat_map(Expert::linears).map(|l| l.weight.scheme()).collect();
            mixed |= of_layer.iter().any(|scheme| *scheme != of_layer[0]);
            partial |= of_layer.iter().all(Option::is_none);
            for scheme in of_layer.into_iter().flatten() {
                if !schemes.contains(&scheme) {
                    schemes.push(scheme);
                }
            }
            for expert in moe.experts.iter().chain(moe.shared.iter().map(|shared| &shared.expert)) {
                if expert.gate.weight.scheme().is_some() {
                    widths.insert(expert.width());
                }
            }
            let scale =
                |l: &crate::layer::Linear| l.weight.scale().map(|scale| dtype_name(scale.dtype()));
            scales.extend(moe.experts.iter().flat_map(Expert::linears).filter_map(scale));
        }
        let dtype =
            model.config.get("dtype").or(model.config.get("torch_dtype")).and_then(Value::as_str);
        (!schemes.is_empty()).then(|| Self {
            quantization,
            said: model.config.get(QUANTIZATION_KEY).cloned().unwrap_or_default(),
            schemes,
            mixed,
            partial,
            hidden: model.hidden,
            widths,
            hub_names: model.moes().all(|(index, moe)| has_hub_names(model, index, moe)),
            misnamed: [Projections::OfHub, Projections::Plain]
                .map(|names| misnamed(model, quantization, names)),
            ragged: model.layers.iter().find_map(ragged),
            dtype: dtype.and_then(config_dtype),
            scales,
        })
    }

    /// What engines need of all experts that compare the first one's projections, which they look
    /// for by `names`, and load by the names of the hub (vLLM's `models/mixtral.py` and SGLang's
    /// `srt/models/mixtral.py`: w1, w2 and w3).
    fn served_alike(&self, names: Projections) -> EngineAnswer {
        if !self.hub_names {
            return refuses("it looks for experts under the hub's names, which `quantize` writes");
        }
        if self.mixed {
            return refuses(
                "all matrices of a layer's experts need one scheme; quantize all of them alike, as --profile engine does",
            );
        }
        if self.partial {
            return not_known(
                "layers whose experts are not quantized, beside others, are not looked at here",
            );
        }
        if let Some(layer) = self.misnamed[names as usize] {
            return refuses(format!(
                "it asks the config for the scheme of {} of expert 0 in layer {layer}, which is another there; name layers as \
                 a whole, as `quantize` does",
                names.said()
            ));
        }
        Ok(String::new())
    }

    /// Whether activations are quantized too.
    fn quantizes_activations(&self) -> bool {
        match self.quantization {
            Quantization::Compressed(said) => {
                said.groups.iter().any(|group| !group.input_activations.is_null())
            }
            Quantization::BlockFp8 { .. } | Quantization::Gptq(_) => false,
        }
    }

    /// Whether groups are of columns out of order, which files say by g_idx.
    fn shuffles_columns(&self) -> bool {
        let groups = self.said.get("config_groups").and_then(Value::as_object);
        let order = |group: &Value| {
            group.pointer("/weights/actorder").and_then(Value::as_str).map(str::to_owned)
        };
        let mut orders = groups.into_iter().flatten().filter_map(|(_, group)| order(group));
        orders.any(|order| ["group", "dynamic"].contains(&order.as_str()))
            || self.said.get("desc_act").and_then(Value::as_bool) == Some(true)
    }

    /// Whether one scheme is for all modules that aren't listed by name.
    fn targets_linear(&self) -> bool {
        match self.quantization {
            Quantization::Compressed(CompressedTensors { groups, .. }) => {
                groups.len() == 1
                    && groups[0].targets.iter().all(|target| target.text() == "Linear")
            }
            Quantization::BlockFp8 { .. } | Quantization::Gptq(_) => true,
        }
    }

    /// Up to how many GPUs share each expert's width, where `misfit` says what is wrong with a
    /// rank's part of it.
    fn tensor_parallel(&self, misfit: impl Fn(usize) -> Option<String>) -> EngineAnswer {
        let fits = |ranks: usize| {
            self.widths.iter().find_map(|width| match width % ranks {
                0 => misfit(width / ranks),
                _ => Some(format!("{ranks} don't divide {width} neurons")),
            })
        };
        let first = RANKS.iter().find_map(|ranks| fits(*ranks).map(|why| (*ranks, why)));
        match first {
            None => Ok(format!("tensor parallel up to {}", RANKS[RANKS.len() - 1])),
            Some((1, why)) => refuses(why),
            Some((2, why)) => Ok(format!("on one GPU (tensor parallel 2: {why})")),
            Some((ranks, why)) => {
                Ok(format!("tensor parallel up to {} ({ranks}: {why})", ranks / 2))
            }
        }
    }
}

/// The shape of a matrix of `layer` that has several blocks of codes along a side, the last of
/// which is smaller.
fn ragged(layer: &Layer) -> Option<[usize; 2]> {
    let of_ffn: Vec<&crate::layer::Linear> = match &layer.ffn {
        Ffn::Dense(expert) => expert.linears().to_vec(),
        Ffn::Moe(moe) => {
            let shared = moe.shared.iter().map(|shared| &shared.expert);
            moe.experts.iter().chain(shared).flat_map(Expert::linears).collect()
        }
    };
    let weights = layer.attention.linears().into_iter().chain(of_ffn).map(|linear| &linear.weight);
    weights.into_iter().find_map(|weight| {
        let Some(Scheme::Fp8(Blocks::Of(block))) = weight.scheme() else { return None };
        let shape: [usize; 2] = weight.shape().try_into().ok()?;
        let is_ragged = shape
            .iter()
            .zip(block)
            .any(|(side, block)| *side > block && !side.is_multiple_of(block));
        is_ragged.then_some(shape)
    })
}

/// What a rank's part of an expert must be a multiple of, and is not.
fn misfit(rank: usize, divisor: usize, what: &str) -> Option<String> {
    (!rank.is_multiple_of(divisor))
        .then(|| format!("{what} of {divisor} don't divide {rank} neurons"))
}

/// What `quantize` can be told for groups that divide `hidden`.
fn other_groups(hidden: usize, widths: &BTreeSet<usize>) -> String {
    let fits = |group: &&usize| {
        hidden.is_multiple_of(**group) && widths.iter().all(|w| w.is_multiple_of(**group))
    };
    match [128, 64, 32].iter().find(fits) {
        Some(group) => format!("quantize with --group-size {group}"),
        None => "no --group-size that it takes divides these matrices".to_owned(),
    }
}

/// By which names of projections an engine looks for the scheme of experts.
#[derive(Clone, Copy)]
enum Projections {
    /// The names that the tensors have on the hub, such as w1, w2 and w3.
    OfHub,
    /// `gate_proj`, `up_proj` and `down_proj`, whatever the tensors are called.
    Plain,
}

impl Projections {
    fn said(self) -> &'static str {
        match self {
            Self::OfHub => "the projections",
            Self::Plain => "gate_proj, up_proj and down_proj",
        }
    }

    /// Modules of the first expert in `layer`; none where the family has no layout by expert.
    fn of(self, model: &Model, layer: usize) -> Option<[String; 3]> {
        let names = model.family.moe.as_ref()?.layouts[0].expert.as_ref()?;
        let hub = [&names.gate, &names.up, &names.down].map(|name| hub_module(name, layer, 0));
        Some(match self {
            Self::OfHub => hub,
            Self::Plain => {
                let [gate, ..] = hub;
                let expert = gate.rsplit_once('.').map_or("", |(expert, _)| expert);
                ["gate_proj", "up_proj", "down_proj"].map(|name| format!("{expert}.{name}"))
            }
        })
    }
}

fn misnamed(model: &Model, quantization: &Quantization, names: Projections) -> Option<usize> {
    let differs = |(layer, moe): (usize, &Moe)| {
        let scheme = moe.experts.first()?.gate.weight.scheme()?;
        let modules = names.of(model, layer)?;
        modules.iter().any(|module| quantization.scheme(module) != Some(scheme)).then_some(layer)
    };
    model.moes().find_map(differs)
}

/// The module of the hub that has the tensor `name` of the family's layout.
fn hub_module(name: &str, layer: usize, expert: usize) -> String {
    module(&format!("{}{layer}.{}", names::LAYERS, name.replace("{expert}", &expert.to_string())))
        .to_owned()
}

/// Files that are yet to be written will have them.
fn has_hub_names(model: &Model, layer: usize, moe: &Moe) -> bool {
    let Some(names) = model.family.moe.as_ref().and_then(|rule| rule.layouts[0].expert.as_ref())
    else {
        return true;
    };
    moe.experts.iter().enumerate().all(|(index, expert)| {
        let linears = expert.linears().into_iter().zip([&names.gate, &names.up, &names.down]);
        linears.into_iter().all(|(linear, name)| {
            let hub = hub_module(name, layer, index);
            linear
                .weight
                .stored()
                .is_none_or(|stored| stored.name().starts_with(&format!("{hub}.")))
        })
    })
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "another type",
    }
}

fn config_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| dtype_name(*dtype) == name)
}

/// Groups of columns, as a config says them.
fn group_of(integers: Integers) -> i64 {
    integers.group.map_or(-1, |group| group as i64)
}
