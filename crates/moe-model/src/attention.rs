//! Attention between names and types: reading it, and declaring it again.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::assembly::Model;
use crate::config::Config;
use crate::declare::{Namer, cannot, declare_bias, declare_flag, uniform};
use crate::family::{LatentRule, QkNormKind};
use crate::layer::{Attention, GroupedAttention, LatentAttention, QkNorm, QueryLatent};
use crate::read::{Reader, Shape};
use crate::rope::{Rope, RopeShape};

/// Names that the families share.
mod names {
    pub const Q: &str = "self_attn.q_proj.weight";
    pub const K: &str = "self_attn.k_proj.weight";
    pub const V: &str = "self_attn.v_proj.weight";
    pub const O: &str = "self_attn.o_proj.weight";
    pub const Q_NORM: &str = "self_attn.q_norm.weight";
    pub const K_NORM: &str = "self_attn.k_norm.weight";
    pub const Q_A: &str = "self_attn.q_a_proj.weight";
    pub const Q_A_NORM: &str = "self_attn.q_a_layernorm.weight";
    pub const Q_B: &str = "self_attn.q_b_proj.weight";
    pub const KV_A: &str = "self_attn.kv_a_proj_with_mqa.weight";
    pub const KV_A_NORM: &str = "self_attn.kv_a_layernorm.weight";
    pub const KV_B: &str = "self_attn.kv_b_proj.weight";
}

/// Heads and their widths.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    pub fn read(config: Config<'_>, hidden: usize) -> Result<Self> {
        let heads = config.positive("num_attention_heads")?;
        let kv_heads = config.optional_usize("num_key_value_heads")?.unwrap_or(heads);
        let rule = &config.family.attention;
        if let Some(latent) = &rule.latent {
            if kv_heads != heads {
                return Err(config.error(
                    "num_key_value_heads",
                    &format!("is {kv_heads}, but there are {heads} heads"),
                ));
            }
            let head_dim = config.usize(&latent.nope)? + config.positive(&latent.rope)?;
            return Ok(Self { heads, kv_heads, head_dim });
        }
        let head_dim = config.optional_usize("head_dim")?.unwrap_or(hidden / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(config.error(
                "num_key_value_heads",
                &format!("is {kv_heads}, which doesn't divide {heads} heads"),
            ));
        }
        if head_dim == 0 || (head_dim % 2 == 1 && !rule.partial_rotary) {
            return Err(config.error(
                "head_dim",
                &format!("is {head_dim}; rotary embeddings need an even number"),
            ));
        }
        Ok(Self { heads, kv_heads, head_dim })
    }

    pub fn rope(self, config: Config<'_>) -> Result<Rope> {
        let rule = &config.family.attention;
        let width = match &rule.latent {
            Some(latent) => config.positive(&latent.rope)?,
            None => self.head_dim,
        };
        let shape = RopeShape {
            width,
            partial: rule.partial_rotary,
            interleaved: config.flag(&rule.interleaved)?,
        };
        Rope::decode(config, shape)
    }
}

impl Reader<'_> {
    pub fn attention(
        &mut self,
        prefix: &str,
        shape: &Shape,
        window: Option<usize>,
    ) -> Result<Attention> {
        Ok(match &self.config.family.attention.latent {
            Some(rule) => Attention::Latent(Box::new(self.latent(prefix, shape, rule)?)),
            None => Attention::Grouped(Box::new(self.grouped(prefix, shape, window)?)),
        })
    }

    fn grouped(
        &mut self,
        prefix: &str,
        shape: &Shape,
        window: Option<usize>,
    ) -> Result<GroupedAttention> {
        let rule = &self.config.family.attention;
        let (qkv_bias, o_bias) =
            (self.config.flag(&rule.qkv_bias)?, self.config.flag(&rule.o_bias)?);
        let Heads { heads, kv_heads, head_dim } = shape.heads;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let at = |name: &str| format!("{prefix}{name}");
        let kind = self.config.qk_norm()?;
        let mut norms = |q, k| -> Result<_> {
            Ok((self.take(at(names::Q_NORM), &[q])?, self.take(at(names::K_NORM), &[k])?))
        };
        let qk_norm = match kind {
            QkNormKind::None => None,
            QkNormKind::PerHead => {
                let (q, k) = norms(head_dim, head_dim)?;
                Some(QkNorm::PerHead { q, k })
            }
            QkNormKind::FullWidth => {
                let (q, k) = norms(q, kv)?;
                Some(QkNorm::FullWidth { q, k })
            }
        };
        let clip =
            rule.clip.as_deref().map(|key| self.config.optional_f64(key)).transpose()?.flatten();
        Ok(GroupedAttention {
            q: self.linear(&at(names::Q), qkv_bias, [q, shape.hidden])?,
            k: self.linear(&at(names::K), qkv_bias, [kv, shape.hidden])?,
            v: self.linear(&at(names::V), qkv_bias, [kv, shape.hidden])?,
            o: self.linear(&at(names::O), o_bias, [shape.hidden, q])?,
            qk_norm,
            clip,
            window,
        })
    }

    fn latent(
        &mut self,
        prefix: &str,
        shape: &Shape,
        rule: &LatentRule,
    ) -> Result<LatentAttention> {
        let config = self.config;
        let attention = &config.family.attention;
        let (a_bias, o_bias) = (config.flag(&attention.qkv_bias)?, config.flag(&attention.o_bias)?);
        let (nope, rope, value) = (
            config.usize(&rule.nope)?,
            config.positive(&rule.rope)?,
            config.positive(&rule.value)?,
        );
        let (heads, hidden, rank) =
            (shape.heads.heads, shape.hidden, config.positive(&rule.kv_rank)?);
        let at = |name: &str| format!("{prefix}{name}");
        let mut q_latent = |rank| -> Result<_> {
            let projection = self.linear(&at(names::Q_A), a_bias, [rank, hidden])?;
            Ok(QueryLatent { projection, norm: self.take(at(names::Q_A_NORM), &[rank])? })
        };
        let q_rank = config.optional_usize(&rule.q_rank)?;
        let q_latent = q_rank.map(&mut q_latent).transpose()?;
        let q_name = if q_latent.is_some() { names::Q_B } else { names::Q };
        Ok(LatentAttention {
            q_latent,
            q: self.linear(
                &at(q_name),
                false,
                [heads * (nope + rope), q_rank.unwrap_or(hidden)],
            )?,
            kv_a: self.linear(&at(names::KV_A), a_bias, [rank + rope, hidden])?,
            kv_a_norm: self.take(at(names::KV_A_NORM), &[rank])?,
            kv_b: self.linear(&at(names::KV_B), false, [heads * (nope + value), rank])?,
            o: self.linear(&at(names::O), o_bias, [hidden, heads * value])?,
            nope,
            rope,
            value,
            scale: Rope::score_factor(config)? / ((nope + rope) as f64).sqrt(),
            norm_eps: rule.norm_eps,
        })
    }
}

impl Config<'_> {
    /// The normalisation of queries and keys that this model has.
    fn qk_norm(&self) -> Result<QkNormKind> {
        let rule = &self.family.attention;
        match &rule.qk_norm_key {
            Some(key) if !self.bool(key)? => Ok(QkNormKind::None),
            _ => Ok(rule.qk_norm),
        }
    }
}

impl Model {
    /// The config keys of attention, but for windows.
    pub(crate) fn declare_attention(&self, raw: &mut Map<String, Value>) -> Result<()> {
        let mut set = |key: &str, value: Value| _ = raw.insert(key.to_owned(), value);
        set("num_attention_heads", json!(self.heads));
        set("num_key_value_heads", json!(self.kv_heads));
        let rule = &self.family.attention;
        let latents: Vec<_> = self.layers.iter().filter_map(|l| l.attention.latent()).collect();
        match &rule.latent {
            Some(rule) if latents.len() == self.layers.len() => {
                declare_latent(rule, &latents, raw)?
            }
            None if latents.is_empty() => self.declare_grouped(raw)?,
            Some(_) => return Err(cannot("attention without latents")),
            None => return Err(cannot("latent attention")),
        }
        declare_flag(
            raw,
            &rule.interleaved,
            self.rope.interleaved,
            "this order of rotary dimensions",
        )?;
        let outputs = self.layers.iter().map(|l| l.attention.output());
        declare_bias(raw, &rule.o_bias, outputs, "an output projection's bias")?;
        if !rule.partial_rotary && rule.latent.is_none() && self.rope.dims != self.head_dim {
            return Err(cannot("heads that are rotated in part"));
        }
        self.rope.encode(rule.partial_rotary.then_some(self.head_dim), raw);
        Ok(())
    }

    fn declare_grouped(&self, raw: &mut Map<String, Value>) -> Result<()> {
        raw.insert("head_dim".into(), json!(self.head_dim));
        let (rule, layers) =
            (&self.family.attention, || self.layers.iter().filter_map(|l| l.attention.grouped()));
        declare_bias(raw, &rule.qkv_bias, layers().map(|a| &a.q), "query, key and value biases")?;
        if let Some(key) = &rule.qk_norm_key {
            let normed: Vec<_> = layers().map(|a| a.qk_norm.is_some()).collect();
            let normed = uniform(&normed)
                .ok_or_else(|| cannot("query and key norms in some layers only"))?;
            raw.insert(key.clone(), json!(normed));
        }
        let clips: Vec<_> = layers().map(|a| a.clip).collect();
        match &rule.clip {
            Some(key) => {
                raw.insert(
                    key.clone(),
                    json!(uniform(&clips).ok_or_else(|| cannot("clips that differ by layer"))?),
                );
            }
            None if clips.iter().any(Option::is_some) => {
                return Err(cannot("clipped queries, keys and values"));
            }
            None => {}
        }
        Ok(())
    }
}

fn declare_latent(
    rule: &LatentRule,
    layers: &[&LatentAttention],
    raw: &mut Map<String, Value>,
) -> Result<()> {
    let shapes: Vec<_> =
        layers.iter().map(|a| (a.q_rank(), a.kv_rank(), a.nope, a.rope, a.value)).collect();
    let shape = uniform(&shapes).ok_or_else(|| cannot("latent attention of several widths"))?;
    let (q_rank, kv_rank, nope, rope, value) = shape;
    raw.insert(rule.q_rank.clone(), json!(q_rank));
    for (key, width) in
        [(&rule.kv_rank, kv_rank), (&rule.nope, nope), (&rule.rope, rope), (&rule.value, value)]
    {
        raw.insert(key.clone(), json!(width));
    }
    // Without it, transformers takes the width of what rotates.
    if raw.contains_key("head_dim") {
        raw.insert("head_dim".to_owned(), json!(rope));
    }
    Ok(())
}

impl Namer<'_> {
    pub fn attention(&mut self, prefix: &str, attention: &Attention) -> Result<()> {
        match attention {
            Attention::Grouped(attention) => self.grouped(prefix, attention),
            Attention::Latent(attention) => {
                self.latent(prefix, attention);
                Ok(())
            }
        }
    }

    fn grouped(&mut self, prefix: &str, attention: &GroupedAttention) -> Result<()> {
        for (name, linear) in [
            (names::Q, &attention.q),
            (names::K, &attention.k),
            (names::V, &attention.v),
            (names::O, &attention.o),
        ] {
            self.linear(format!("{prefix}{name}"), linear);
        }
        let rule = &self.family.attention;
        match (&attention.qk_norm, rule.qk_norm) {
            (None, QkNormKind::None) => {}
            (None, _) if rule.qk_norm_key.is_some() => {}
            (Some(QkNorm::PerHead { q, k }), QkNormKind::PerHead)
            | (Some(QkNorm::FullWidth { q, k }), QkNormKind::FullWidth) => {
                self.push(format!("{prefix}{}", names::Q_NORM), q);
                self.push(format!("{prefix}{}", names::K_NORM), k);
            }
            (Some(_), _) => return Err(cannot("these query and key norms")),
            (None, _) => return Err(cannot("attention without query and key norms")),
        }
        Ok(())
    }

    fn latent(&mut self, prefix: &str, attention: &LatentAttention) {
        let at = |name: &str| format!("{prefix}{name}");
        match &attention.q_latent {
            None => self.linear(at(names::Q), &attention.q),
            Some(latent) => {
                self.linear(at(names::Q_A), &latent.projection);
                self.push(at(names::Q_A_NORM), &latent.norm);
                self.linear(at(names::Q_B), &attention.q);
            }
        }
        self.linear(at(names::KV_A), &attention.kv_a);
        self.push(at(names::KV_A_NORM), &attention.kv_a_norm);
        self.linear(at(names::KV_B), &attention.kv_b);
        self.linear(at(names::O), &attention.o);
    }
}
