//! Reads attention from named tensors and config keys, and declares it again.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::assembly::Model;
use crate::codec::{Config, Namer, TensorReader, cannot, declare_bias, declare_flag, uniform};
use crate::family::{LatentRule, QkNormKind};
use crate::layer::{Attention, GroupedAttention, LatentAttention, QkNorm, QueryLatent};
use crate::rope::Rope;
use crate::shape::{Heads, ModelShape};
use crate::weight::Weight;

/// Tensor names that all families share.
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

pub(crate) fn read(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    shape: &ModelShape,
    window: Option<usize>,
) -> Result<Attention> {
    Ok(match &reader.config.family.attention.latent {
        Some(rule) => Attention::Latent(Box::new(read_latent(reader, prefix, shape, rule)?)),
        None => Attention::Grouped(Box::new(read_grouped(reader, prefix, shape, window)?)),
    })
}

fn read_grouped(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    shape: &ModelShape,
    window: Option<usize>,
) -> Result<GroupedAttention> {
    let config = reader.config;
    let clip = &config.family.attention.clip;
    let [qkv_bias, o_bias] = biases(&config)?;
    let q = shape.heads.heads * shape.heads.head_dim;
    let kv = shape.heads.kv_heads * shape.heads.head_dim;
    let prefixed = |name: &str| format!("{prefix}{name}");
    // Rust evaluates fields in this order, so it decides which of several errors is reported.
    Ok(GroupedAttention {
        qk_norm: read_qk_norm(reader, prefix, shape.heads)?,
        clip: clip.as_deref().map(|key| config.optional_f64(key)).transpose()?.flatten(),
        q: reader.linear(&prefixed(names::Q), qkv_bias, [q, shape.hidden])?,
        k: reader.linear(&prefixed(names::K), qkv_bias, [kv, shape.hidden])?,
        v: reader.linear(&prefixed(names::V), qkv_bias, [kv, shape.hidden])?,
        o: reader.linear(&prefixed(names::O), o_bias, [shape.hidden, q])?,
        window,
    })
}

/// Whether the projections of the hidden state, and that of the output, have biases.
fn biases(config: &Config<'_>) -> Result<[bool; 2]> {
    let rule = &config.family.attention;
    Ok([config.flag(&rule.qkv_bias)?, config.flag(&rule.o_bias)?])
}

fn read_qk_norm(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    heads: Heads,
) -> Result<Option<QkNorm>> {
    let Heads { heads, kv_heads, head_dim } = heads;
    Ok(match qk_norm(&reader.config)? {
        QkNormKind::None => None,
        QkNormKind::PerHead => {
            let [q, k] = read_norms(reader, prefix, [head_dim, head_dim])?;
            Some(QkNorm::PerHead { q, k })
        }
        QkNormKind::FullWidth => {
            let [q, k] = read_norms(reader, prefix, [heads * head_dim, kv_heads * head_dim])?;
            Some(QkNorm::FullWidth { q, k })
        }
    })
}

/// Reads the norms of queries and of keys, which have these widths.
fn read_norms(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    [q, k]: [usize; 2],
) -> Result<[Weight; 2]> {
    let q = reader.take(format!("{prefix}{}", names::Q_NORM), &[q])?;
    let k = reader.take(format!("{prefix}{}", names::K_NORM), &[k])?;
    Ok([q, k])
}

/// The widths of latent attention in a config.
struct LatentWidths {
    nope: usize,
    rope: usize,
    value: usize,
    /// The width of the latent of keys and values.
    rank: usize,
    /// The width of the latent of queries; None if queries have no latent.
    q_rank: Option<usize>,
}

impl LatentWidths {
    fn read(config: Config<'_>, rule: &LatentRule) -> Result<Self> {
        Ok(Self {
            nope: config.usize(&rule.nope)?,
            rope: config.positive(&rule.rope)?,
            value: config.positive(&rule.value)?,
            rank: config.positive(&rule.kv_rank)?,
            q_rank: config.optional_usize(&rule.q_rank)?,
        })
    }
}

fn read_latent(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    shape: &ModelShape,
    rule: &LatentRule,
) -> Result<LatentAttention> {
    let [a_bias, o_bias] = biases(&reader.config)?;
    let LatentWidths { nope, rope, value, rank, q_rank } = LatentWidths::read(reader.config, rule)?;
    let (heads, hidden) = (shape.heads.heads, shape.hidden);
    let prefixed = |name: &str| format!("{prefix}{name}");
    let q_name = if q_rank.is_some() { names::Q_B } else { names::Q };
    Ok(LatentAttention {
        q_latent: read_query_latent(reader, prefix, hidden, q_rank)?,
        q: reader.linear(
            &prefixed(q_name),
            false,
            [heads * (nope + rope), q_rank.unwrap_or(hidden)],
        )?,
        kv_a: reader.linear(&prefixed(names::KV_A), a_bias, [rank + rope, hidden])?,
        kv_a_norm: reader.take(prefixed(names::KV_A_NORM), &[rank])?,
        kv_b: reader.linear(&prefixed(names::KV_B), false, [heads * (nope + value), rank])?,
        o: reader.linear(&prefixed(names::O), o_bias, [hidden, heads * value])?,
        nope,
        rope,
        value,
        scale: Rope::score_factor(reader.config)? / ((nope + rope) as f64).sqrt(),
        norm_eps: rule.norm_eps,
    })
}

/// Reads the latent of queries, of width `rank`; None if queries have no latent.
fn read_query_latent(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    hidden: usize,
    rank: Option<usize>,
) -> Result<Option<QueryLatent>> {
    let Some(rank) = rank else { return Ok(None) };
    let [bias, _] = biases(&reader.config)?;
    let projection = reader.linear(&format!("{prefix}{}", names::Q_A), bias, [rank, hidden])?;
    let norm = reader.take(format!("{prefix}{}", names::Q_A_NORM), &[rank])?;
    Ok(Some(QueryLatent { projection, norm }))
}

/// Returns the normalization of queries and keys that this model has.
fn qk_norm(config: &Config<'_>) -> Result<QkNormKind> {
    let rule = &config.family.attention;
    match &rule.qk_norm_key {
        Some(key) if !config.bool(key)? => Ok(QkNormKind::None),
        _ => Ok(rule.qk_norm),
    }
}

/// Writes the config keys of attention, except those of windows.
pub(crate) fn declare(model: &Model, raw: &mut Map<String, Value>) -> Result<()> {
    raw.insert("num_attention_heads".into(), json!(model.heads));
    raw.insert("num_key_value_heads".into(), json!(model.kv_heads));
    let rule = &model.family.attention;
    let latents: Vec<_> = model.layers.iter().filter_map(|l| l.attention.latent()).collect();
    match &rule.latent {
        Some(rule) if latents.len() == model.layers.len() => declare_latent(rule, &latents, raw)?,
        None if latents.is_empty() => declare_grouped(model, raw)?,
        Some(_) => return Err(cannot("attention without latents")),
        None => return Err(cannot("latent attention")),
    }
    declare_flag(
        raw,
        &rule.interleaved,
        model.rope.interleaved,
        "this order of rotary dimensions",
    )?;
    let outputs = model.layers.iter().map(|l| l.attention.output());
    declare_bias(raw, &rule.o_bias, outputs, "an output projection's bias")?;
    if !rule.partial_rotary && rule.latent.is_none() && model.rope.dims != model.head_dim {
        return Err(cannot("heads that are rotated in part"));
    }
    model.rope.encode(rule.partial_rotary.then_some(model.head_dim), raw);
    Ok(())
}

fn declare_grouped(model: &Model, raw: &mut Map<String, Value>) -> Result<()> {
    raw.insert("head_dim".into(), json!(model.head_dim));
    let (rule, layers) =
        (&model.family.attention, || model.layers.iter().filter_map(|l| l.attention.grouped()));
    declare_bias(raw, &rule.qkv_bias, layers().map(|a| &a.q), "query, key and value biases")?;
    if let Some(key) = &rule.qk_norm_key {
        let normed: Vec<_> = layers().map(|a| a.qk_norm.is_some()).collect();
        let normed =
            uniform(&normed).ok_or_else(|| cannot("query and key norms in some layers only"))?;
        raw.insert(key.clone(), json!(normed));
    }
    declare_clip(rule.clip.as_ref(), layers().map(|a| a.clip).collect(), raw)
}

/// Writes the clamp of queries, keys and values, which all of `clips` must share, if the family has
/// a `key` for it.
fn declare_clip(
    key: Option<&String>,
    clips: Vec<Option<f64>>,
    raw: &mut Map<String, Value>,
) -> Result<()> {
    match key {
        Some(key) => {
            let clip = uniform(&clips).ok_or_else(|| cannot("clips that differ by layer"))?;
            raw.insert(key.clone(), json!(clip));
            Ok(())
        }
        None if clips.iter().any(Option::is_some) => {
            Err(cannot("clipped queries, keys and values"))
        }
        None => Ok(()),
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
    // If it is missing, transformers uses the width of the rotary part.
    if raw.contains_key("head_dim") {
        raw.insert("head_dim".to_owned(), json!(rope));
    }
    Ok(())
}

pub(crate) fn name(namer: &mut Namer<'_>, prefix: &str, attention: &Attention) -> Result<()> {
    match attention {
        Attention::Grouped(attention) => name_grouped(namer, prefix, attention),
        Attention::Latent(attention) => {
            name_latent(namer, prefix, attention);
            Ok(())
        }
    }
}

fn name_grouped(namer: &mut Namer<'_>, prefix: &str, attention: &GroupedAttention) -> Result<()> {
    for (name, linear) in [
        (names::Q, &attention.q),
        (names::K, &attention.k),
        (names::V, &attention.v),
        (names::O, &attention.o),
    ] {
        namer.linear(format!("{prefix}{name}"), linear);
    }
    let rule = &namer.family.attention;
    match (&attention.qk_norm, rule.qk_norm) {
        (None, QkNormKind::None) => {}
        (None, _) if rule.qk_norm_key.is_some() => {}
        (Some(QkNorm::PerHead { q, k }), QkNormKind::PerHead)
        | (Some(QkNorm::FullWidth { q, k }), QkNormKind::FullWidth) => {
            namer.push(format!("{prefix}{}", names::Q_NORM), q);
            namer.push(format!("{prefix}{}", names::K_NORM), k);
        }
        (Some(_), _) => return Err(cannot("these query and key norms")),
        (None, _) => return Err(cannot("attention without query and key norms")),
    }
    Ok(())
}

fn name_latent(namer: &mut Namer<'_>, prefix: &str, attention: &LatentAttention) {
    let prefixed = |name: &str| format!("{prefix}{name}");
    match &attention.q_latent {
        None => namer.linear(prefixed(names::Q), &attention.q),
        Some(latent) => {
            namer.linear(prefixed(names::Q_A), &latent.projection);
            namer.push(prefixed(names::Q_A_NORM), &latent.norm);
            namer.linear(prefixed(names::Q_B), &attention.q);
        }
    }
    namer.linear(prefixed(names::KV_A), &attention.kv_a);
    namer.push(prefixed(names::KV_A_NORM), &attention.kv_a_norm);
    namer.linear(prefixed(names::KV_B), &attention.kv_b);
    namer.linear(prefixed(names::O), &attention.o);
}
