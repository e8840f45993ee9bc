//! Tensors that replace weights, as training needs them.

use std::collections::HashMap;

use candle_core::Tensor;
use moe_model::Weight;

/// Tensors by the weight that they replace. They are looked up before a file is read.
#[derive(Default)]
pub(crate) struct Overrides {
    /// Overrides by tensor name. Several weights may have the same one, as slices of a fused tensor
    /// do.
    tensors: HashMap<String, Vec<(Weight, Tensor)>>,
}

impl Overrides {
    pub fn find(&self, weight: &Weight) -> Option<&Tensor> {
        let named = self.tensors.get(weight.name())?;
        named.iter().find(|(replaced, _)| replaced.same_source(weight)).map(|(_, tensor)| tensor)
    }
}

impl FromIterator<(Weight, Tensor)> for Overrides {
    fn from_iter<I: IntoIterator<Item = (Weight, Tensor)>>(overrides: I) -> Self {
        let mut tensors: HashMap<String, Vec<(Weight, Tensor)>> = HashMap::new();
        for (weight, tensor) in overrides {
            tensors.entry(weight.name().to_owned()).or_default().push((weight, tensor));
        }
        Self { tensors }
    }
}
