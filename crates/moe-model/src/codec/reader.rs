//! Takes tensors by their names.

use std::collections::BTreeMap;

use moe_checkpoint::{Dtype, Quantization};

use super::config::Config;
use super::names;
use crate::weight::Weight;
use crate::{Error, Kind, Result};

/// Takes tensors out of a map, so that the tensors left over are those that the family doesn't
/// know.
pub(crate) struct TensorReader<'a> {
    pub config: Config<'a>,
    pub tensors: BTreeMap<String, Weight>,
    pub quantization: Option<Quantization>,
}

impl TensorReader<'_> {
    /// Takes a tensor whose elements aren't codes.
    pub fn take(&mut self, name: impl AsRef<str>, shape: &[usize]) -> Result<Weight> {
        let weight = self.take_encoded(name.as_ref(), shape)?;
        if matches!(weight.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Ok(weight);
        }
        let (what, remedy) = match weight.dtype() {
            Dtype::F64 => (
                "F64 weights are not read here, though transformers loads them".to_owned(),
                "convert them as transformers does: from_pretrained(DIR, dtype=\"float32\"), then save_pretrained(OTHER)",
            ),
            dtype => (
                format!("{dtype} weights are not supported here"),
                "supported: F32, F16, BF16; in projections also what quantization_config describes",
            ),
        };
        Err(Error::new(Kind::Unsupported, what)
            .tensor(name.as_ref())
            .file(weight.stored().map_or(self.config.file, |s| s.path()))
            .remedy(remedy))
    }

    pub fn take_encoded(&mut self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.tensors.remove(name).ok_or_else(|| {
            Error::new(Kind::Missing, "a tensor that the config calls for is missing")
                .tensor(name)
                .file(self.config.file)
                .remedy(match name {
                    names::HEAD => "if the head is the embedding, set \"tie_word_embeddings\": true in config.json",
                    _ => "the checkpoint is incomplete, or config.json is of another model",
                })
        })?;
        if weight.shape() != shape {
            let file = weight.stored().map_or(self.config.file, |s| s.path());
            return Err(Error::new(
                Kind::Mismatch,
                format!("shape {:?}, but the config calls for {shape:?}", weight.shape()),
            )
            .tensor(name)
            .file(file)
            .remedy("the checkpoint and config.json don't belong together"));
        }
        Ok(weight)
    }

    pub fn take_if_there(&mut self, name: &str, shape: &[usize]) -> Result<Option<Weight>> {
        self.tensors.contains_key(name).then(|| self.take(name, shape)).transpose()
    }
}
