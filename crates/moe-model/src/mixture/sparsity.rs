//! Reads and writes the config keys that say which layers are mixtures of experts.

use std::collections::BTreeSet;

use moe_checkpoint::json::shown;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::assembly::Model;
use crate::codec::{Config, cannot};
use crate::family::MoeRule;

/// Whether layer `index` is a mixture of experts, as the config says.
pub(crate) fn is_sparse(config: &Config<'_>, rule: &MoeRule, index: usize) -> Result<bool> {
    if let Some(key) = &rule.dense_first
        && index < config.usize(key)?
    {
        return Ok(false);
    }
    if let Some(key) = &rule.dense_layers
        && is_listed(config, key, index)?
    {
        return Ok(false);
    }
    match &rule.sparse_step {
        Some(key) => Ok((index + 1).is_multiple_of(config.positive(key)?)),
        None => Ok(true),
    }
}

/// Whether the list under `key` contains `index`, the number of a layer.
fn is_listed(config: &Config<'_>, key: &str, index: usize) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(false),
        // Python finds 0 in [0.0], but not in ["0"]. Entries that aren't numbers of layers are
        // refused, since their meaning would be a guess.
        Some(Value::Array(list)) if list.iter().all(Value::is_u64) => {
            Ok(list.iter().any(|v| v.as_u64() == Some(index as u64)))
        }
        Some(said) => {
            let what = format!(
                "is {}, where transformers 5 wants numbers of layers; older versions find no layer in a text",
                shown(said)
            );
            Err(config
                .error(key, &what)
                .better_remedy("write numbers of layers, or remove the key"))
        }
    }
}

/// Writes which layers are sparse. The source's keys are kept if they are still right.
pub(super) fn declare_sparsity(
    model: &Model,
    rule: &MoeRule,
    raw: &mut Map<String, Value>,
) -> Result<()> {
    let sparse: BTreeSet<usize> = model.moes().map(|(index, _)| index).collect();
    let config = Config { raw, family: model.family, file: &model.config_file };
    let said =
        (0..model.layers.len()).map(|l| is_sparse(&config, rule, l)).collect::<Result<Vec<_>>>()?;
    if said.iter().enumerate().all(|(layer, said)| sparse.contains(&layer) == *said) {
        // Explicit, since the loaders' defaults have changed before.
        for key in rule.sparse_step.iter().chain(&rule.dense_layers).chain(&rule.dense_first) {
            let default = model.family.defaults.get(key).cloned().unwrap_or_default();
            raw.entry(key.clone()).or_insert(default);
        }
        return Ok(());
    }
    let dense: Vec<usize> = (0..model.layers.len()).filter(|l| !sparse.contains(l)).collect();
    declare_dense(rule, &dense, raw)
}

/// Writes which layers are dense, in the key that the family has for it.
fn declare_dense(rule: &MoeRule, dense: &[usize], raw: &mut Map<String, Value>) -> Result<()> {
    let are_first = dense.iter().enumerate().all(|(position, layer)| position == *layer);
    match (&rule.dense_layers, &rule.dense_first) {
        (Some(key), _) => raw.insert(key.clone(), json!(dense)),
        (None, Some(key)) if are_first => raw.insert(key.clone(), json!(dense.len())),
        _ => return Err(cannot("dense layers among sparse ones")),
    };
    if let Some(step) = &rule.sparse_step {
        raw.insert(step.clone(), json!(1));
    }
    Ok(())
}
