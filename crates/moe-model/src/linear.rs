//! Reads linear maps and feed-forward networks from named tensors, and names their tensors again.

use crate::Result;
use crate::codec::names::{bias_name, module};
use crate::codec::{Namer, TensorReader};
use crate::family::ExpertNames;
use crate::layer::{Expert, Linear};
use crate::quantized::parts;

impl TensorReader<'_> {
    /// Takes the weight `name`, of this shape, and its bias if it has one. The bias has the same
    /// name with `.bias` in place of `.weight`.
    pub fn linear(&mut self, name: &str, bias: bool, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.projection(name, shape)?;
        let bias = if bias { Some(self.take(bias_name(name), &shape[..1])?) } else { None };
        Ok(Linear { weight, bias })
    }

    pub fn expert(
        &mut self,
        prefix: &str,
        names: &ExpertNames,
        bias: bool,
        width: usize,
        hidden: usize,
    ) -> Result<Expert> {
        let prefixed = |name: &str| format!("{prefix}{name}");
        Ok(Expert {
            gate: self.linear(&prefixed(&names.gate), bias, [width, hidden])?,
            up: self.linear(&prefixed(&names.up), bias, [width, hidden])?,
            down: self.linear(&prefixed(&names.down), bias, [hidden, width])?,
        })
    }
}

impl Namer<'_> {
    pub fn linear(&mut self, name: String, linear: &Linear) {
        self.tensors.extend(parts(&name, &linear.weight, self.quantization));
        let module = module(&name).to_owned();
        match linear.weight.scheme() {
            None => self.plain.push(module),
            Some(scheme) => self.quantized.push((module, scheme)),
        }
        if let Some(bias) = &linear.bias {
            self.push(bias_name(&name), bias);
        }
    }

    pub fn expert(&mut self, prefix: &str, names: &ExpertNames, expert: &Expert) {
        self.linear(format!("{prefix}{}", names.gate), &expert.gate);
        self.linear(format!("{prefix}{}", names.up), &expert.up);
        self.linear(format!("{prefix}{}", names.down), &expert.down);
    }
}
