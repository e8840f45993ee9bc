//! From layers back to names: the tensors and the config of a model under its family.

use std::collections::{BTreeMap, BTreeSet};

use moe_checkpoint::Dtype;
use serde_json::{Map, Value, json};

use crate::assembly::{Head, Model};
use crate::config::Config;
use crate::family::{ExpertNames, Family, Flag, MoeRule, QkNormKind, family};
use crate::layer::{Attention, Expert, Ffn, Layer, Linear, Moe, QkNorm};
use crate::read::{bias_name, is_sparse, names};
use crate::weight::Weight;
use crate::{Error, Kind, Result};

/// A model as files have it: named tensors in the order they are written, and the config.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// The content of `config.json`.
    pub config: Map<String, Value>,
    /// Names and weights: embedding, layer by layer, final norm, head, the rest.
    pub tensors: Vec<(String, Weight)>,
}

impl Declaration {
    /// Reads the declared names back through the family: what loaders will find. No weights are read.
    ///
    /// # Errors
    /// As for [`Model::read`]; an error means that the declaration contradicts itself.
    pub fn reread(&self) -> Result<Model> {
        let tensors: BTreeMap<_, _> = self.tensors.iter().cloned().collect();
        Model::assemble(self.config.clone(), std::path::Path::new(moe_checkpoint::CONFIG_FILE), tensors)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, w)| w.bytes()).sum()
    }
}

impl Model {
    /// Names every tensor and writes the config for this model's family.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the family cannot express the model; it says what and why.
    pub fn declare(&self) -> Result<Declaration> {
        let config = self.declare_config()?;
        let mut namer = Namer { family: self.family, tensors: Vec::new() };
        namer.push(names::EMBED, &self.embed);
        for (index, layer) in self.layers.iter().enumerate() {
            namer.layer(index, layer)?;
        }
        namer.push(names::FINAL_NORM, &self.final_norm);
        if let Head::Own(weight) = &self.head {
            namer.push(names::HEAD, weight);
        }
        let mut tensors = namer.tensors;
        tensors.extend(self.extra.iter().map(|(n, w)| (n.clone(), w.clone())));
        Ok(Declaration { config, tensors })
    }

    fn declare_config(&self) -> Result<Map<String, Value>> {
        let mut raw = self.config.clone();
        let source = raw.get("model_type").and_then(Value::as_str).map(family).transpose()?;
        if let Some(source) = source.filter(|s| s.model_type != self.family.model_type) {
            leave_family(source, &mut raw);
        }
        let mut set = |key: &str, value: Value| raw.insert(key.to_owned(), value);
        set("model_type", json!(self.family.model_type));
        set("architectures", json!([self.family.architecture]));
        set("hidden_size", json!(self.hidden));
        set("vocab_size", json!(self.vocab));
        set("num_hidden_layers", json!(self.layers.len()));
        set("num_attention_heads", json!(self.heads));
        set("num_key_value_heads", json!(self.kv_heads));
        set("head_dim", json!(self.head_dim));
        set("rms_norm_eps", json!(self.norm_eps));
        set("tie_word_embeddings", json!(matches!(self.head, Head::Tied)));
        self.rope.encode(&mut raw);
        let windows: Vec<_> = self.layers.iter().map(|l| l.attention.window).collect();
        self.family.attention.window.encode(&windows, &mut raw)?;
        self.declare_attention(&mut raw)?;
        self.declare_dense(&mut raw)?;
        if let Some(rule) = &self.family.moe {
            self.declare_moe(rule, &mut raw)?;
        }
        for (key, value) in &self.family.written {
            raw.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self.declare_dtype(&mut raw);
        Ok(raw)
    }

    fn declare_attention(&self, raw: &mut Map<String, Value>) -> Result<()> {
        let rule = &self.family.attention;
        declare_bias(raw, &rule.qkv_bias, self.layers.iter().map(|l| &l.attention.q), "query, key and value biases")?;
        declare_bias(raw, &rule.o_bias, self.layers.iter().map(|l| &l.attention.o), "an output projection's bias")?;
        let clips: Vec<_> = self.layers.iter().map(|l| l.attention.clip).collect();
        match &rule.clip {
            Some(key) => {
                raw.insert(key.clone(), json!(uniform(&clips).ok_or_else(|| cannot("clips that differ by layer"))?));
            }
            None if clips.iter().any(Option::is_some) => return Err(cannot("clipped queries, keys and values")),
            None => {}
        }
        Ok(())
    }

    fn declare_dense(&self, raw: &mut Map<String, Value>) -> Result<()> {
        let dense: Vec<_> =
            self.layers.iter().filter_map(|l| if let Ffn::Dense(e) = &l.ffn { Some(e) } else { None }).collect();
        if dense.is_empty() {
            return Ok(());
        }
        let rule = self.family.dense.as_ref().ok_or_else(|| cannot("dense layers"))?;
        let widths: Vec<_> = dense.iter().map(|e| e.width()).collect();
        let width = uniform(&widths).ok_or_else(|| cannot("dense layers of several widths"))?;
        raw.insert(rule.width.clone(), json!(width));
        declare_bias(raw, &rule.bias, dense.iter().map(|e| &e.gate), "feed-forward biases")
    }

    fn declare_moe(&self, rule: &MoeRule, raw: &mut Map<String, Value>) -> Result<()> {
        let moes: Vec<&Moe> = self.moes().map(|(_, moe)| moe).collect();
        let Some(first) = moes.first() else { return Err(cannot("a model without experts")) };
        let same = |what: &str, value: &dyn Fn(&Moe) -> usize| -> Result<usize> {
            let values: Vec<_> = moes.iter().map(|m| value(m)).collect();
            uniform(&values).ok_or_else(|| cannot(&format!("layers that differ in {what}")))
        };
        let experts = same("the number of experts", &|m| m.experts.len())?;
        for key in &rule.experts {
            raw.insert(key.clone(), json!(experts));
        }
        // A second name of the same count must not contradict the first.
        for key in &rule.experts_also {
            raw.entry(key.clone()).and_modify(|count| *count = json!(experts));
        }
        raw.insert(rule.top_k.clone(), json!(same("top-k", &|m| m.router.top_k)?));
        raw.insert(rule.width.clone(), json!(same("expert width", &|m| m.experts[0].width())?));
        same("normalisation", &|m| usize::from(m.router.normalize))?;
        declare_flag(raw, &rule.normalize, first.router.normalize, "this normalisation of routing weights")?;
        let shared = same("shared experts", &|m| m.shared.as_ref().map_or(0, |s| s.expert.width()))?;
        match (&rule.shared, shared) {
            (Some(rule), 1..) => {
                raw.insert(rule.width.clone(), json!(shared));
            }
            (None, 0) => {}
            (Some(_), 0) => return Err(cannot("layers without a shared expert")),
            (None, 1..) => return Err(cannot("a shared expert")),
        }
        self.declare_sparsity(rule, raw)
    }

    /// Says which layers are sparse, in the keys that the source used where they still say it.
    fn declare_sparsity(&self, rule: &MoeRule, raw: &mut Map<String, Value>) -> Result<()> {
        let sparse: BTreeSet<usize> = self.moes().map(|(index, _)| index).collect();
        let config = Config { raw, family: self.family, file: &self.config_file };
        let said = (0..self.layers.len()).map(|l| is_sparse(&config, rule, l)).collect::<Result<Vec<_>>>()?;
        if said.iter().enumerate().all(|(layer, said)| sparse.contains(&layer) == *said) {
            // Explicit, since the loaders' defaults have changed before.
            for key in rule.sparse_step.iter().chain(&rule.dense_layers) {
                let default = self.family.defaults.get(key).cloned().unwrap_or_default();
                raw.entry(key.clone()).or_insert(default);
            }
            return Ok(());
        }
        let key = rule.dense_layers.as_ref().ok_or_else(|| cannot("dense layers among sparse ones"))?;
        let dense: Vec<usize> = (0..self.layers.len()).filter(|l| !sparse.contains(l)).collect();
        raw.insert(key.clone(), json!(dense));
        if let Some(step) = &rule.sparse_step {
            raw.insert(step.clone(), json!(1));
        }
        Ok(())
    }

    /// `dtype` is transformers 5's key, `torch_dtype` everyone else's.
    fn declare_dtype(&self, raw: &mut Map<String, Value>) {
        let of_weights = match self.embed.dtype() {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            _ => "bfloat16",
        };
        let said = raw.get("dtype").or(raw.get("torch_dtype")).filter(|v| v.is_string()).cloned();
        let dtype = said.unwrap_or_else(|| json!(of_weights));
        raw.insert("dtype".into(), dtype.clone());
        raw.insert("torch_dtype".into(), dtype);
    }
}

/// Makes the source family's implied values explicit, since the target's defaults may differ, and drops
/// the keys that mean nothing elsewhere.
fn leave_family(source: &Family, raw: &mut Map<String, Value>) {
    for (key, value) in source.defaults.iter().filter(|(_, v)| !v.is_null()) {
        raw.entry(key.clone()).or_insert_with(|| value.clone());
    }
    raw.retain(|key, _| !source.own_keys.contains(key) && key != "auto_map");
}

fn declare_bias<'a>(
    raw: &mut Map<String, Value>,
    flag: &Flag,
    linears: impl Iterator<Item = &'a Linear>,
    what: &str,
) -> Result<()> {
    let present: Vec<bool> = linears.map(|l| l.bias.is_some()).collect();
    let present = uniform(&present).ok_or_else(|| cannot(&format!("{what} in some layers only")))?;
    declare_flag(raw, flag, present, &if present { what.to_owned() } else { format!("layers without {what}") })
}

fn declare_flag(raw: &mut Map<String, Value>, flag: &Flag, value: bool, what: &str) -> Result<()> {
    match flag {
        Flag::Key(key) => {
            raw.insert(key.clone(), json!(value));
            Ok(())
        }
        Flag::Fixed(fixed) if *fixed == value => Ok(()),
        Flag::Fixed(_) => Err(cannot(what)),
    }
}

fn uniform<T: PartialEq + Clone>(values: &[T]) -> Option<T> {
    let first = values.first()?;
    values.iter().all(|v| v == first).then(|| first.clone())
}

fn cannot(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the target family cannot express {what}"))
        .remedy("choose another --target where inspect lists one")
}

struct Namer {
    family: &'static Family,
    tensors: Vec<(String, Weight)>,
}

impl Namer {
    fn push(&mut self, name: impl Into<String>, weight: &Weight) {
        self.tensors.push((name.into(), weight.clone()));
    }

    fn linear(&mut self, name: String, linear: &Linear) {
        self.push(name.as_str(), &linear.weight);
        if let Some(bias) = &linear.bias {
            self.push(bias_name(&name), bias);
        }
    }

    fn layer(&mut self, index: usize, layer: &Layer) -> Result<()> {
        let prefix = format!("{}{index}.", names::LAYERS);
        self.push(format!("{prefix}{}", names::ATTENTION_NORM), &layer.attention_norm);
        self.attention(&prefix, &layer.attention)?;
        self.push(format!("{prefix}{}", names::FFN_NORM), &layer.ffn_norm);
        match &layer.ffn {
            Ffn::Dense(expert) => {
                let rule = self.family.dense.as_ref().ok_or_else(|| cannot("dense layers"))?;
                self.expert(&prefix, &rule.names, expert);
            }
            Ffn::Moe(moe) => {
                let rule = self.family.moe.as_ref().ok_or_else(|| cannot("experts"))?;
                self.moe(&prefix, rule, moe);
            }
        }
        Ok(())
    }

    fn attention(&mut self, prefix: &str, attention: &Attention) -> Result<()> {
        for (name, linear) in
            [(names::Q, &attention.q), (names::K, &attention.k), (names::V, &attention.v), (names::O, &attention.o)]
        {
            self.linear(format!("{prefix}{name}"), linear);
        }
        match (&attention.qk_norm, self.family.attention.qk_norm) {
            (None, QkNormKind::None) => {}
            (Some(QkNorm::PerHead { q, k }), QkNormKind::PerHead)
            | (Some(QkNorm::FullWidth { q, k }), QkNormKind::FullWidth) => {
                self.push(format!("{prefix}{}", names::Q_NORM), q);
                self.push(format!("{prefix}{}", names::K_NORM), k);
            }
            (have, _) => {
                return Err(cannot(if have.is_some() {
                    "these query and key norms"
                } else {
                    "attention without query and key norms"
                }));
            }
        }
        Ok(())
    }

    fn expert(&mut self, prefix: &str, names: &ExpertNames, expert: &Expert) {
        self.linear(format!("{prefix}{}", names.gate), &expert.gate);
        self.linear(format!("{prefix}{}", names.up), &expert.up);
        self.linear(format!("{prefix}{}", names.down), &expert.down);
    }

    fn moe(&mut self, prefix: &str, rule: &MoeRule, moe: &Moe) {
        let layout = &rule.layouts[0];
        self.push(format!("{prefix}{}", layout.router), &moe.router.weight);
        let names = layout.expert.as_ref().expect("the written layout has tensors per expert");
        // All gates, all ups, all downs: what experts share lies side by side, and is read once.
        type Part = fn(&Expert) -> &Linear;
        let parts: [(&String, Part); 3] =
            [(&names.gate, |e| &e.gate), (&names.up, |e| &e.up), (&names.down, |e| &e.down)];
        for (name, part) in parts {
            for (e, expert) in moe.experts.iter().enumerate() {
                self.linear(format!("{prefix}{}", name.replace("{expert}", &e.to_string())), part(expert));
            }
        }
        if let (Some(rule), Some(shared)) = (&rule.shared, &moe.shared) {
            self.expert(prefix, &rule.expert, &shared.expert);
            self.push(format!("{prefix}{}", rule.gate), &shared.gate);
        }
    }
}
