//! Collects the names of a model's tensors, in the order in which they are written.

use moe_checkpoint::Quantization;
use moe_checkpoint::quantization::Scheme;

use super::names::module;
use crate::family::Family;
use crate::weight::Weight;

/// Collects names and weights in the order in which they are written.
pub(crate) struct Namer<'m> {
    pub family: &'static Family,
    pub quantization: Option<&'m Quantization>,
    pub tensors: Vec<(String, Weight)>,
    /// Names of modules with a matrix that isn't quantized.
    pub plain: Vec<String>,
    /// Names of modules with a quantized matrix, and how it is encoded.
    pub quantized: Vec<(String, Scheme)>,
}

impl<'m> Namer<'m> {
    pub fn new(family: &'static Family, quantization: Option<&'m Quantization>) -> Self {
        Self { family, quantization, tensors: vec![], plain: vec![], quantized: vec![] }
    }

    pub fn push(&mut self, name: impl Into<String>, weight: &Weight) {
        self.tensors.push((name.into(), weight.clone()));
    }

    /// Adds a matrix that is never quantized.
    pub fn matrix(&mut self, name: impl Into<String>, weight: &Weight) {
        let name = name.into();
        self.plain.push(module(&name).to_owned());
        self.push(name, weight);
    }
}
