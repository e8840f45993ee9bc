//! Writes the config keys of mixtures of experts.

use moe_math::routing::Groups;
use serde_json::Value;
use serde_json::{Map, json};

use super::groups::groups;
use super::sparsity::declare_sparsity;
use crate::Result;
use crate::assembly::Model;
use crate::codec::{Config, cannot, declare_flag, uniform};
use crate::family::{GroupsRule, KeyIs, MoeRule, SharedRule, SharedWidth};
use crate::layer::Moe;

/// Writes the config keys of experts and routers, and of which layers have them.
pub(crate) fn declare(model: &Model, rule: &MoeRule, raw: &mut Map<String, Value>) -> Result<()> {
    // One config describes all mixtures, including those for multi-token prediction.
    let predicting = model.mtp.iter().filter_map(|mtp| mtp.layer.ffn.moe());
    let moes: Vec<&Moe> = model.moes().map(|(_, moe)| moe).chain(predicting).collect();
    if moes.is_empty() {
        // The config's keys of experts then apply to no layer.
        return declare_sparsity(model, rule, raw);
    }
    let experts = same(&moes, "the number of experts", |m| m.experts.len())?;
    for key in &rule.experts {
        raw.insert(key.clone(), json!(experts));
    }
    // A second name of the same count must not contradict the first.
    for key in &rule.experts_also {
        raw.entry(key.clone()).and_modify(|count| *count = json!(experts));
    }
    let width = same(&moes, "expert width", |m| m.experts[0].width())?;
    raw.insert(rule.width.clone(), json!(width));
    declare_router(model, rule, &moes, raw)?;
    declare_shared(rule.shared.as_ref(), &moes, width, raw)?;
    declare_sparsity(model, rule, raw)
}

fn declare_router(
    model: &Model,
    rule: &MoeRule,
    moes: &[&Moe],
    raw: &mut Map<String, Value>,
) -> Result<()> {
    raw.insert(rule.top_k.clone(), json!(same(moes, "top-k", |m| m.router.top_k)?));
    let normalize = same(moes, "normalisation", |m| m.router.normalize)?;
    declare_flag(raw, &rule.normalize, normalize, "this normalisation of routing weights")?;
    if same(moes, "scoring", |m| m.router.scoring)? != rule.scoring {
        return Err(cannot("this scoring of experts"));
    }
    declare_scale(rule, moes, raw)?;
    if same(moes, "router biases", |m| m.router.bias.is_some())? != rule.layouts[0].bias.is_some() {
        return Err(cannot("routers with (or without) this bias"));
    }
    let declared = same(moes, "groups of experts", |m| m.router.groups)?;
    match (&rule.groups, declared) {
        (Some(rule), declared) => declare_groups(model, rule, declared, moes[0].experts.len(), raw),
        (None, None) => Ok(()),
        (None, Some(_)) => Err(cannot("groups of experts")),
    }
}

fn declare_scale(rule: &MoeRule, moes: &[&Moe], raw: &mut Map<String, Value>) -> Result<()> {
    match (&rule.scale, same(moes, "the scale of routing weights", |m| m.router.scale)?) {
        (Some(key), scale) => _ = raw.insert(key.clone(), json!(scale)),
        (None, 1.0) => {}
        (None, _) => return Err(cannot("a scale on routing weights")),
    }
    Ok(())
}

/// Writes the config keys of groups of experts. Keys that already describe the same groups are
/// kept.
fn declare_groups(
    model: &Model,
    rule: &GroupsRule,
    declared: Option<Groups>,
    experts: usize,
    raw: &mut Map<String, Value>,
) -> Result<()> {
    let config = Config { raw, family: model.family, file: &model.config_file };
    if groups(&config, rule, experts).is_ok_and(|said| said == declared) {
        return Ok(());
    }
    if declared.is_some_and(|declared| declared.score != rule.score) {
        return Err(cannot("this ranking of groups of experts"));
    }
    let (count, kept) = declared.map_or((1, 1), |groups| (groups.count, groups.kept));
    raw.insert(rule.count.clone(), json!(count));
    raw.insert(rule.kept.clone(), json!(kept));
    if let Some(KeyIs { key, is }) = rule.when.as_ref().filter(|_| declared.is_some()) {
        raw.insert(key.clone(), json!(is));
    }
    Ok(())
}

/// Returns the value that all of `moes` share; `what` names it in the error if they differ.
fn same<T: PartialEq + Clone>(moes: &[&Moe], what: &str, value: impl Fn(&Moe) -> T) -> Result<T> {
    if moes.is_empty() {
        return Err(cannot("a model without experts"));
    }
    let values: Vec<_> = moes.iter().map(|m| value(m)).collect();
    uniform(&values).ok_or_else(|| cannot(&format!("layers that differ in {what}")))
}

fn declare_shared(
    rule: Option<&SharedRule>,
    moes: &[&Moe],
    expert: usize,
    raw: &mut Map<String, Value>,
) -> Result<()> {
    let width =
        same(moes, "shared experts", |m| m.shared.as_ref().map_or(0, |s| s.expert.width()))?;
    let rule = match (rule, width) {
        (Some(rule), 1..) => rule,
        (None, 0) => return Ok(()),
        (Some(_), 0) => return Err(cannot("layers without a shared expert")),
        (None, 1..) => return Err(cannot("a shared expert")),
    };
    if same(moes, "gates of shared experts", has_gate)? != rule.gate.is_some() {
        return Err(cannot("a shared expert with (or without) a gate"));
    }
    let biased = same(moes, "biases of shared experts", has_shared_bias)?;
    declare_flag(raw, &rule.bias, biased, "these biases of a shared expert")?;
    declare_shared_width(rule, width, expert, raw)
}

fn has_gate(moe: &Moe) -> bool {
    moe.shared.as_ref().is_some_and(|shared| shared.gate.is_some())
}

fn has_shared_bias(moe: &Moe) -> bool {
    moe.shared.as_ref().is_some_and(|shared| shared.expert.gate.bias.is_some())
}

/// Writes the width of shared experts, in neurons or in routed experts of the width `expert`.
fn declare_shared_width(
    rule: &SharedRule,
    width: usize,
    expert: usize,
    raw: &mut Map<String, Value>,
) -> Result<()> {
    match &rule.width {
        SharedWidth::Key(key) => _ = raw.insert(key.clone(), json!(width)),
        SharedWidth::Experts { experts } if width.is_multiple_of(expert) => {
            raw.insert(experts.clone(), json!(width / expert));
        }
        SharedWidth::Experts { .. } => {
            return Err(cannot(
                "a shared expert whose width is not a multiple of the routed experts'",
            ));
        }
    }
    Ok(())
}
