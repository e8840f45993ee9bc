//! The trained weights of a model, as f32 variables that override its weights in the forward pass.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use moe_checkpoint::{Error, Kind, Result};
use moe_math::Compute;
use moe_math::encoding::encode_f32;
use moe_model::{Expert, Ffn, Layer, Linear, Model, OutputHead, Weight, WeightSource};

use crate::context::{Context, tensor_label};
use crate::dtypes::candle_dtype;
use crate::finite;
use crate::loader::to_f32;
use crate::overrides::Overrides;

/// A kind of weight that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainedPart {
    /// Routers, and gates of shared experts. Expert correction biases have no gradient and aren't
    /// trained.
    Routers,
    /// Routed experts.
    Experts,
    /// Shared experts.
    Shared,
    /// Feed-forward networks of layers without a mixture.
    Dense,
    /// Attention's projections.
    Attention,
    /// All norms.
    Norms,
    /// The embedding and the output head.
    Embeddings,
}

impl TrainedPart {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Routers,
        Self::Experts,
        Self::Shared,
        Self::Dense,
        Self::Attention,
        Self::Norms,
        Self::Embeddings,
    ];
}

/// A part of the model whose gradients are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ParameterSlot {
    Embedding,
    Layer(usize),
    Head,
}

/// A trained weight.
pub struct Parameter {
    /// The weight of the model that it replaces.
    pub weight: Weight,
    /// Whether weight decay applies. As in transformers' Trainer, it applies to all but norms and
    /// biases.
    pub decays: bool,
    /// The current value, in f32.
    pub value: Var,
    places: Vec<ParameterSlot>,
}

impl Parameter {
    fn read(weight: &Weight, places: Vec<ParameterSlot>, compute: &Compute) -> Result<Self> {
        candle_dtype(weight)?;
        // Text may never reach this weight; then its value would be written to the result
        // unnoticed.
        finite::check_weight(weight)?;
        let value = to_f32(weight, compute)?;
        let value =
            Var::from_tensor(&value).context(|| format!("a variable of {}", weight.name()))?;
        let decays = weight.shape().len() > 1;
        Ok(Self { decays, weight: weight.clone(), value, places })
    }

    fn encoded(&self) -> Result<Arc<Vec<u8>>> {
        let dtype = candle_dtype(&self.weight)?;
        let values = self.value.flatten_all().and_then(|values| values.to_vec1::<f32>());
        let bytes = values.and_then(|values| encode_f32(&values, dtype));
        bytes.map(Arc::new).context(|| tensor_label(&self.weight))
    }
}

/// All trained weights, from the embedding to the head.
pub struct Parameters {
    /// The weights in this order.
    pub list: Vec<Parameter>,
    /// The type that matrices are rounded to before they are used.
    precision: DType,
}

/// A weight of a model, its kind, and the slots where it is used.
type FoundParameter<'m> = (&'m Weight, TrainedPart, Vec<ParameterSlot>);

impl Parameters {
    /// Reads the weights of `model` that belong to `parts`. Matrices are used in `precision`;
    /// gradients go to the values before this rounding.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for quantized weights; [`Kind::Usage`] if the model has no such
    /// weights; errors of reading.
    pub fn read(
        model: &Model,
        parts: &[TrainedPart],
        precision: DType,
        compute: &Compute,
    ) -> Result<Self> {
        let found = found(model, parts).into_iter();
        let list = found
            .map(|(weight, _, places)| Parameter::read(weight, places, compute))
            .collect::<Result<Vec<_>>>()?;
        if list.is_empty() {
            return Err(Error::new(
                Kind::Usage,
                "this model has none of the weights that are to be trained",
            )
            .file(&model.config_file)
            .remedy("choose other parts to train"));
        }
        Ok(Self { list, precision })
    }

    /// Returns the number of elements that [`Parameters::read`] would make variables of.
    pub fn elements(model: &Model, parts: &[TrainedPart]) -> usize {
        found(model, parts).iter().map(|(weight, ..)| weight.elements()).sum()
    }

    /// Returns the number of elements of the largest such weight.
    pub fn largest(model: &Model, parts: &[TrainedPart]) -> usize {
        found(model, parts).iter().map(|(weight, ..)| weight.elements()).max().unwrap_or(0)
    }

    /// Returns the size of all such weights in files, in bytes.
    pub fn stored_bytes(model: &Model, parts: &[TrainedPart]) -> u64 {
        found(model, parts).iter().map(|(weight, ..)| weight.bytes()).sum()
    }

    /// Returns the number of such elements in the layer that has most of them.
    pub fn elements_of_a_layer(model: &Model, parts: &[TrainedPart]) -> usize {
        let elements = model.layers.iter().map(|layer| {
            of_layer(layer)
                .iter()
                .filter(|(_, part)| parts.contains(part))
                .map(|(w, _)| w.elements())
                .sum()
        });
        elements.max().unwrap_or(0)
    }

    /// Returns the first slot that has parameters.
    pub(crate) fn first(&self) -> ParameterSlot {
        self.list.iter().flat_map(|p| &p.places).min().copied().unwrap_or(ParameterSlot::Head)
    }

    /// Returns the parameters of `place`, with their indices in the list.
    pub(crate) fn of(&self, place: ParameterSlot) -> impl Iterator<Item = (usize, &Parameter)> {
        self.list.iter().enumerate().filter(move |(_, p)| p.places.contains(&place))
    }

    /// Returns the overrides for the forward pass at `place`; tracked if gradients are wanted.
    pub(crate) fn lend(&self, place: ParameterSlot, tracked: bool) -> Result<Overrides> {
        let overridden = self.of(place).map(|(_, p)| {
            let value =
                if tracked { p.value.as_tensor().clone() } else { p.value.as_detached_tensor() };
            let is_matrix = value.rank() > 1;
            let value = if is_matrix { value.to_dtype(self.precision) } else { Ok(value) };
            Ok((p.weight.clone(), value.context(|| tensor_label(&p.weight))?))
        });
        overridden.collect()
    }

    /// Encodes all values in their weights' encodings, as in files.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn encoded(&self) -> Result<Vec<Arc<Vec<u8>>>> {
        self.list.iter().map(Parameter::encoded).collect()
    }

    /// Returns `model` with its trained weights replaced by these bytes, as [`Parameters::encoded`]
    /// returns them.
    pub fn applied(&self, model: &Model, encoded: &[Arc<Vec<u8>>]) -> Model {
        let mut replaced: std::collections::HashMap<&str, Vec<(Weight, Weight)>> =
            Default::default();
        for (Parameter { weight, .. }, bytes) in self.list.iter().zip(encoded) {
            let bytes = TrainedBytes(bytes.clone());
            let trained = Weight::made(weight.name(), weight.dtype(), weight.shape(), bytes);
            replaced.entry(weight.name()).or_default().push((weight.clone(), trained));
        }
        let mut model = model.clone();
        for weight in model.weights_mut() {
            let named = replaced.get(weight.name()).into_iter().flatten();
            if let Some((_, made)) = named.into_iter().find(|(of, _)| of.same_source(weight)) {
                *weight = made.clone();
            }
        }
        model
    }
}

struct TrainedBytes(Arc<Vec<u8>>);

impl WeightSource for TrainedBytes {
    fn make(&self) -> Result<Vec<u8>> {
        Ok(self.0.to_vec())
    }
}

/// Finds the weights of `model` that belong to `parts`.
fn found<'m>(model: &'m Model, parts: &[TrainedPart]) -> Vec<FoundParameter<'m>> {
    let mut all: Vec<FoundParameter<'m>> = Vec::new();
    let tied = matches!(model.head, OutputHead::Tied);
    let embedding = if tied {
        vec![ParameterSlot::Embedding, ParameterSlot::Head]
    } else {
        vec![ParameterSlot::Embedding]
    };
    all.push((&model.embed, TrainedPart::Embeddings, embedding));
    for (index, layer) in model.layers.iter().enumerate() {
        all.extend(
            of_layer(layer)
                .into_iter()
                .map(|(weight, part)| (weight, part, vec![ParameterSlot::Layer(index)])),
        );
    }
    all.push((&model.final_norm, TrainedPart::Norms, vec![ParameterSlot::Head]));
    if let OutputHead::Own(weight) = &model.head {
        all.push((weight, TrainedPart::Embeddings, vec![ParameterSlot::Head]));
    }
    all.retain(|(_, part, _)| parts.contains(part));
    all
}

fn of_layer(layer: &Layer) -> Vec<(&Weight, TrainedPart)> {
    let linears = layer.attention.linears().into_iter().flat_map(Linear::weights);
    let mut all = vec![(&layer.attention_norm, TrainedPart::Norms)];
    all.extend(linears.map(|weight| (weight, TrainedPart::Attention)));
    all.extend(layer.attention.norms().into_iter().map(|weight| (weight, TrainedPart::Norms)));
    all.push((&layer.ffn_norm, TrainedPart::Norms));
    match &layer.ffn {
        Ffn::Dense(expert) => all.extend(network(expert, TrainedPart::Dense)),
        Ffn::Moe(moe) => {
            all.push((&moe.router.weight, TrainedPart::Routers));
            moe.experts.iter().for_each(|expert| all.extend(network(expert, TrainedPart::Experts)));
            if let Some(shared) = &moe.shared {
                all.extend(shared.gate.as_ref().map(|gate| (gate, TrainedPart::Routers)));
                all.extend(network(&shared.expert, TrainedPart::Shared));
            }
        }
    }
    all
}

fn network(expert: &Expert, part: TrainedPart) -> impl Iterator<Item = (&Weight, TrainedPart)> {
    expert.linears().into_iter().flat_map(Linear::weights).map(move |weight| (weight, part))
}

/// Sums of gradients, one for each parameter in its list.
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// Creates empty sums for `parameters`.
    pub fn new(parameters: &Parameters) -> Self {
        Self(vec![None; parameters.list.len()])
    }

    /// Returns the gradient of the parameter at `index`; None if nothing depended on it.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.0[index].as_ref()
    }

    pub(crate) fn add(&mut self, index: usize, gradient: &Tensor) -> candle_core::Result<()> {
        self.0[index] = Some(match self.0[index].take() {
            Some(sum) => (sum + gradient)?,
            None => gradient.clone(),
        });
        Ok(())
    }
}
