//! The properties of a model that the engines' rules depend on.

use std::collections::BTreeSet;

use moe_checkpoint::quantization::{Blocks, CompressedTensors, QUANTIZATION_KEY, Scheme};
use moe_checkpoint::{Dtype, Quantization};
use serde_json::Value;

use super::projections::{Projections, has_hub_names, misnamed};
use super::verdict::{EngineAnswer, not_known, refuses};
use crate::assembly::Model;
use crate::layer::{Expert, Ffn, Layer, Linear, Moe};
use crate::weight::Weight;

/// Numbers of GPUs that tensor parallelism is asked about.
const RANKS: [usize; 4] = [1, 2, 4, 8];

/// The properties of a quantized model's experts that the engines' rules depend on.
pub(super) struct QuantizedExperts<'m> {
    pub quantization: &'m Quantization,
    /// The config's `quantization_config`; null for a checkpoint that isn't written yet.
    pub said: Value,
    /// How routed experts' matrices are encoded.
    pub schemes: Vec<Scheme>,
    /// Whether matrices of one layer have different schemes, or some of them are not quantized.
    pub mixed: bool,
    /// Whether there are layers whose experts are not quantized at all.
    pub partial: bool,
    pub hidden: usize,
    /// The widths, in neurons, of quantized experts, routed or shared.
    pub widths: BTreeSet<usize>,
    /// Whether tensors have the names of the family's first layout, which checkpoints on the hub
    /// use.
    pub hub_names: bool,
    /// The first layer whose scheme isn't the one that the config gives to expert 0's projections:
    /// if they are looked up by the hub's names, and by `gate_proj`, `up_proj` and `down_proj`.
    pub misnamed: [Option<usize>; 2],
    /// The shape of a matrix with a side that is longer than a block of e4m3 codes and not a
    /// multiple of it; None if there is none.
    pub ragged: Option<[usize; 2]>,
    /// The dtype that the config gives for computing; None if it isn't F32, F16 or BF16.
    pub dtype: Option<Dtype>,
    /// The dtypes of scales, by their names in configs.
    pub scales: BTreeSet<&'static str>,
}

/// How the experts of the layers that were [added](Self::add) are encoded; the fields are those of
/// [`QuantizedExperts`].
#[derive(Default)]
struct ExpertEncodings {
    schemes: Vec<Scheme>,
    mixed: bool,
    partial: bool,
    widths: BTreeSet<usize>,
    scales: BTreeSet<&'static str>,
}

impl ExpertEncodings {
    fn add(&mut self, moe: &Moe) {
        let weights = moe.experts.iter().flat_map(Expert::linears).map(|linear| &linear.weight);
        let of_layer: Vec<_> = weights.clone().map(Weight::scheme).collect();
        self.mixed |= of_layer.iter().any(|scheme| *scheme != of_layer[0]);
        self.partial |= of_layer.iter().all(Option::is_none);
        for scheme in of_layer.into_iter().flatten() {
            if !self.schemes.contains(&scheme) {
                self.schemes.push(scheme);
            }
        }
        for expert in moe.experts.iter().chain(moe.shared.iter().map(|shared| &shared.expert)) {
            if expert.gate.weight.scheme().is_some() {
                self.widths.insert(expert.width());
            }
        }
        self.scales
            .extend(weights.filter_map(Weight::scale).map(|scale| dtype_name(scale.dtype())));
    }
}

impl<'m> QuantizedExperts<'m> {
    pub fn of(model: &'m Model) -> Option<Self> {
        let quantization = model.quantization.as_ref()?;
        let mut encodings = ExpertEncodings::default();
        model.moes().for_each(|(_, moe)| encodings.add(moe));
        let ExpertEncodings { schemes, mixed, partial, widths, scales } = encodings;
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

    /// Checks what engines require that use the scheme of expert 0's projections for all experts of
    /// a layer. They look it up by `names`, and load tensors by the names of the hub (vLLM's
    /// `models/mixtral.py` and SGLang's `srt/models/mixtral.py`: w1, w2 and w3).
    pub fn served_alike(&self, names: Projections) -> EngineAnswer {
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
    pub fn quantizes_activations(&self) -> bool {
        match self.quantization {
            Quantization::Compressed(said) => {
                said.groups.iter().any(|group| !group.input_activations.is_null())
            }
            Quantization::BlockFp8 { .. } | Quantization::Gptq(_) => false,
        }
    }

    /// Whether groups consist of columns that aren't adjacent, as g_idx in the files says.
    pub fn shuffles_columns(&self) -> bool {
        let groups = self.said.get("config_groups").and_then(Value::as_object);
        let mut orders = groups
            .into_iter()
            .flatten()
            .filter_map(|(_, group)| group.pointer("/weights/actorder")?.as_str());
        orders.any(|order| ["group", "dynamic"].contains(&order))
            || self.said.get("desc_act").and_then(Value::as_bool) == Some(true)
    }

    /// Whether one scheme applies to all modules that aren't listed by name.
    pub fn targets_linear(&self) -> bool {
        match self.quantization {
            Quantization::Compressed(CompressedTensors { groups, .. }) => {
                groups.len() == 1
                    && groups[0].targets.iter().all(|target| target.text() == "Linear")
            }
            Quantization::BlockFp8 { .. } | Quantization::Gptq(_) => true,
        }
    }

    /// Says how many GPUs at most can share each expert's width. `misfit` returns the reason why a
    /// rank can't have a part of this many neurons, or None.
    pub fn tensor_parallel(&self, misfit: impl Fn(usize) -> Option<String>) -> EngineAnswer {
        let mut refused =
            RANKS.iter().filter_map(|ranks| Some((*ranks, self.unshared(*ranks, &misfit)?)));
        match refused.next() {
            None => Ok(format!("tensor parallel up to {}", RANKS[RANKS.len() - 1])),
            Some((1, why)) => refuses(why),
            Some((2, why)) => Ok(format!("on one GPU (tensor parallel 2: {why})")),
            Some((ranks, why)) => {
                Ok(format!("tensor parallel up to {} ({ranks}: {why})", ranks / 2))
            }
        }
    }

    /// Returns why this many GPUs can't share each expert's width, or None.
    fn unshared(&self, ranks: usize, misfit: impl Fn(usize) -> Option<String>) -> Option<String> {
        self.widths.iter().find_map(|width| match width % ranks {
            0 => misfit(width / ranks),
            _ => Some(format!("{ranks} don't divide {width} neurons")),
        })
    }
}

/// Finds a matrix of `layer` that has several blocks of codes along a side, the last of them
/// smaller than the others; returns the shape of the matrix.
fn ragged(layer: &Layer) -> Option<[usize; 2]> {
    let of_ffn: Vec<&Linear> = match &layer.ffn {
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

pub(super) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "another type",
    }
}

pub(super) fn config_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| dtype_name(*dtype) == name)
}
