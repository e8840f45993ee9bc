//! Declares a model under its family: layers become named tensors and a config again.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::quantization::QUANTIZATION_KEY;
use moe_checkpoint::{Dtype, EXPLICIT_KEY, Quantization};
use serde_json::{Map, Value, json};

use crate::assembly::{Model, OutputHead};
use crate::base_config::{AUTO_MAP_KEY, is_of_model};
use crate::codec::names::module;
use crate::codec::{Namer, cannot, declare_bias, names, uniform};
use crate::family::{Family, family};
use crate::refused::{DTYPE_KEYS, is_dtype, mend};
use crate::weight::Weight;
use crate::{Result, attention, decoder_layer, mixture, mtp};

/// A model as files hold it: named tensors in the order in which they are written, and the config.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// The content of `config.json`.
    pub config: Map<String, Value>,
    /// Names and weights: embedding, layer by layer, final norm, head, the rest.
    pub tensors: Vec<(String, Weight)>,
}

impl Declaration {
    /// Reads the declared names back through the family, as loaders will. No weights are read.
    ///
    /// # Errors
    /// As for [`Model::read`]; an error means that the declaration contradicts itself.
    pub fn reread(&self) -> Result<Model> {
        let tensors: BTreeMap<_, _> = self.tensors.iter().cloned().collect();
        Model::assemble(
            self.config.clone(),
            std::path::Path::new(moe_checkpoint::CONFIG_FILE),
            tensors,
        )
    }

    /// Total size in bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, w)| w.bytes()).sum()
    }
}

impl Model {
    /// Names every tensor and writes the config for this model's family.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] if the family can't express the model; the error says what and
    /// why.
    pub fn declare(&self) -> Result<Declaration> {
        let mut config = self.declare_config()?;
        let namer = self.named()?;
        declare_quantization(self.quantization.as_ref(), &namer, &mut config);
        let mut tensors = namer.tensors;
        tensors.extend(self.extra.iter().map(|(n, w)| (n.clone(), w.clone())));
        Ok(Declaration { config, tensors })
    }

    /// Returns the modules whose matrix isn't quantized although `quantization_config` says that it
    /// is: transformers initializes them randomly. Routers are left out: in transformers 5 they
    /// aren't modules that `quantization_config` applies to.
    ///
    /// # Errors
    /// As for [`Self::declare`].
    pub fn plain_unlisted(&self) -> Result<Vec<String>> {
        let Some(quantization @ Quantization::Compressed(said)) = &self.quantization else {
            return Ok(Vec::new());
        };
        if said.ignore.iter().any(|target| target.text() == "Linear") {
            return Ok(Vec::new());
        }
        let layouts = self.family.moe.iter().flat_map(|rule| &rule.layouts);
        let routers: Vec<&str> = layouts.map(|layout| module(&layout.router)).collect();
        let mut plain = self.named()?.plain;
        plain.retain(|name| {
            let is_router = routers.iter().any(|router| name.ends_with(router));
            !is_router && quantization.scheme(name).is_some()
        });
        Ok(plain)
    }

    /// Collects the names of all tensors, and of modules by whether they are quantized.
    fn named(&self) -> Result<Namer<'_>> {
        let mut namer = Namer::new(self.family, self.quantization.as_ref());
        namer.push(names::EMBED, &self.embed);
        for (index, layer) in self.layers.iter().enumerate() {
            decoder_layer::name(&mut namer, index, layer)?;
        }
        for (index, layer) in self.mtp.iter().enumerate() {
            mtp::name(&mut namer, self.layers.len() + index, layer)?;
        }
        namer.push(names::FINAL_NORM, &self.final_norm);
        match &self.head {
            OutputHead::Own(weight) => namer.matrix(names::HEAD, weight),
            // Loaders nevertheless create a module for it.
            OutputHead::Tied => namer.plain.push(module(names::HEAD).to_owned()),
        }
        // A layer that loaders build after the others may share modules with the model.
        let mut seen = BTreeSet::new();
        namer.plain.retain(|module| seen.insert(module.clone()));
        Ok(namer)
    }

    fn declare_config(&self) -> Result<Map<String, Value>> {
        let mut raw = self.source_config()?;
        self.declare_sizes(&mut raw);
        let windows: Vec<_> = self.layers.iter().map(|l| l.attention.window()).collect();
        self.family.attention.window.encode(&windows, &mut raw)?;
        attention::declare(self, &mut raw)?;
        self.declare_dense(&mut raw)?;
        if let Some(rule) = &self.family.moe {
            mixture::declare(self, rule, &mut raw)?;
        }
        match &self.family.mtp {
            Some(rule) => _ = raw.insert(rule.count.clone(), json!(self.mtp.len())),
            None if self.mtp.is_empty() => {}
            None => return Err(cannot("layers for multi-token prediction")),
        }
        self.family.strict.mend(&mut raw, &self.family.defaults);
        mend(&mut raw, self.vocab);
        for (key, value) in &self.family.written {
            raw.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self.declare_dtype(&mut raw);
        // The result's weights have the usual names.
        raw.remove(EXPLICIT_KEY);
        Ok(raw)
    }

    /// Returns the config that the model was read with, converted to this model's family.
    fn source_config(&self) -> Result<Map<String, Value>> {
        let source = self.config.get("model_type").and_then(Value::as_str);
        let Some(source) = source.map(family).transpose()? else { return Ok(self.config.clone()) };
        let mut raw = source.strict.meant(&self.config);
        if source.model_type != self.family.model_type {
            leave_family(source, &mut raw);
        }
        Ok(raw)
    }

    /// Writes the keys that name the family, and the sizes that all families have a key for.
    fn declare_sizes(&self, raw: &mut Map<String, Value>) {
        raw.insert("model_type".into(), json!(self.family.model_type));
        raw.insert("architectures".into(), json!([self.family.architecture]));
        raw.insert("hidden_size".into(), json!(self.hidden));
        raw.insert("vocab_size".into(), json!(self.vocab));
        raw.insert("num_hidden_layers".into(), json!(self.layers.len()));
        raw.insert("rms_norm_eps".into(), json!(self.norm_eps));
        raw.insert("tie_word_embeddings".into(), json!(matches!(self.head, OutputHead::Tied)));
    }

    fn declare_dense(&self, raw: &mut Map<String, Value>) -> Result<()> {
        let dense: Vec<_> = self.layers.iter().filter_map(|layer| layer.ffn.dense()).collect();
        if dense.is_empty() {
            return Ok(());
        }
        let rule = self.family.dense.as_ref().ok_or_else(|| cannot("dense layers"))?;
        let widths: Vec<_> = dense.iter().map(|e| e.width()).collect();
        let width = uniform(&widths).ok_or_else(|| cannot("dense layers of several widths"))?;
        raw.insert(rule.width.clone(), json!(width));
        declare_bias(raw, &rule.bias, dense.iter().map(|e| &e.gate), "feed-forward biases")
    }

    /// `dtype` is transformers 5's key, `torch_dtype` everyone else's.
    fn declare_dtype(&self, raw: &mut Map<String, Value>) {
        let of_weights = match self.embed.dtype() {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            _ => "bfloat16",
        };
        let said = DTYPE_KEYS.iter().find_map(|key| raw.get(*key));
        let said = said.filter(|value| value.is_string() && is_dtype(value)).cloned();
        let dtype = said.unwrap_or_else(|| json!(of_weights));
        for key in DTYPE_KEYS {
            raw.insert(key.to_owned(), dtype.clone());
        }
    }
}

/// Writes which modules are quantized, or removes the key if none is.
fn declare_quantization(
    quantization: Option<&Quantization>,
    namer: &Namer<'_>,
    config: &mut Map<String, Value>,
) {
    let said = config.get(QUANTIZATION_KEY).cloned();
    let declared = match (quantization, said) {
        (Some(_), Some(_)) if namer.quantized.is_empty() => None,
        (Some(quantization), Some(said)) => {
            Some(quantization.relisted(&said, &namer.plain, &namer.quantized))
        }
        (Some(quantization), None) => Some(quantization.declared(&namer.plain, &namer.quantized)),
        (None, _) => None,
    };
    match declared {
        Some(declared) => _ = config.insert(QUANTIZATION_KEY.to_owned(), declared),
        // transformers before 5 fails at null.
        None => _ = config.remove(QUANTIZATION_KEY),
    }
}

/// Makes the source family's implied values explicit, since the target's defaults may differ, and
/// drops the keys that mean nothing elsewhere.
fn leave_family(source: &Family, raw: &mut Map<String, Value>) {
    for (key, value) in source.defaults.iter().filter(|(_, v)| !v.is_null()) {
        raw.entry(key.clone()).or_insert_with(|| value.clone());
    }
    raw.retain(|key, _| !source.own_keys.contains(key));
    // Code of the source's model can't load the target's; the tokenizer doesn't change.
    let code = raw
        .remove(AUTO_MAP_KEY)
        .and_then(|code| if let Value::Object(code) = code { Some(code) } else { None });
    let mut code = code.unwrap_or_default();
    code.retain(|class, _| !is_of_model(class));
    if !code.is_empty() {
        raw.insert(AUTO_MAP_KEY.to_owned(), Value::Object(code));
    }
}
