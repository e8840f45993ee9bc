//! Reads mixtures of experts from named tensors and config keys.

use super::groups::groups;
use crate::codec::{Config, TensorReader};
use crate::family::{ExpertNames, Layout, MoeRule, SharedRule, SharedWidth};
use crate::layer::{Expert, Linear, Moe, Router, SharedExpert};
use crate::weight::Weight;
use crate::{Error, Kind, Result};
use moe_math::routing::Groups;

pub(crate) fn read(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    rule: &MoeRule,
    hidden: usize,
) -> Result<Moe> {
    let (experts, width) =
        (count_experts(&reader.config, rule)?, reader.config.positive(&rule.width)?);
    let layout = find_layout(reader, prefix, rule)?;
    let router = read_router(reader, prefix, rule, layout, [experts, hidden])?;
    let experts = read_experts(reader, prefix, layout, experts, width, hidden)?;
    let shared = rule
        .shared
        .as_ref()
        .map(|rule| read_shared(reader, prefix, rule, width, hidden))
        .transpose()?;
    Ok(Moe { router, experts, shared })
}

fn read_router(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    rule: &MoeRule,
    layout: &Layout,
    shape: [usize; 2],
) -> Result<Router> {
    let config = reader.config;
    let (top_k, groups) = read_choice(&config, rule, shape[0])?;
    let bias = layout
        .bias
        .as_ref()
        .map(|name| reader.take(format!("{prefix}{name}"), &shape[..1]))
        .transpose()?;
    let name = find_router(reader, prefix, rule, layout);
    Ok(Router {
        weight: reader.take(format!("{prefix}{name}"), &shape)?,
        bias,
        precision: rule.precision,
        scoring: rule.scoring,
        groups,
        top_k,
        normalize: config.flag(&rule.normalize)?,
        scale: read_scale(&config, rule)?,
    })
}

/// Reads how many of `experts` experts a token goes to, and the groups that limit the choice.
fn read_choice(
    config: &Config<'_>,
    rule: &MoeRule,
    experts: usize,
) -> Result<(usize, Option<Groups>)> {
    let top_k = config.positive(&rule.top_k)?;
    let groups =
        rule.groups.as_ref().map(|rule| groups(config, rule, experts)).transpose()?.flatten();
    let eligible = groups.map_or(experts, |g| experts / g.count * g.kept);
    if top_k > eligible {
        let of_groups = if groups.is_some() { " that a token's groups have" } else { "" };
        let what = format!("is {top_k}, more than the {eligible} experts{of_groups}");
        return Err(config.error(&rule.top_k, &what));
    }
    Ok((top_k, groups))
}

/// Finds the name of the router after `prefix`. transformers renames routers and experts
/// independently, so the router can have the name of another layout than the experts.
fn find_router<'f>(
    reader: &TensorReader<'_>,
    prefix: &str,
    rule: &'f MoeRule,
    layout: &'f Layout,
) -> &'f String {
    let names = rule.layouts.iter().map(|layout| &layout.router);
    [&layout.router]
        .into_iter()
        .chain(names)
        .find(|name| reader.tensors.contains_key(&format!("{prefix}{name}")))
        .unwrap_or(&layout.router)
}

/// Reads the factor of the selected experts' weights.
fn read_scale(config: &Config<'_>, rule: &MoeRule) -> Result<f64> {
    match &rule.scale {
        Some(key) => config.optional_f64(key)?.ok_or_else(|| config.error(key, "is null")),
        None => Ok(1.0),
    }
}

fn find_layout<'f>(
    reader: &TensorReader<'_>,
    prefix: &str,
    rule: &'f MoeRule,
) -> Result<&'f Layout> {
    let found = rule.layouts.iter().find(|l| reader.has_matrix(&first_tensor(prefix, l)));
    found.ok_or_else(|| {
        Error::new(Kind::Missing, "this layer has no experts in any layout that is known")
            .tensor(first_tensor(prefix, &rule.layouts[0]))
            .file(reader.config.file)
            .remedy("the checkpoint is incomplete, or config.json is of another model")
    })
}

/// The name of the tensor with the first expert's gate projection.
fn first_tensor(prefix: &str, layout: &Layout) -> String {
    match (&layout.expert, &layout.fused) {
        (Some(names), _) => format!("{prefix}{}", names.gate.replace("{expert}", "0")),
        (_, Some(names)) => format!("{prefix}{}", names.gate_up),
        (None, None) => unreachable!("a test excludes such family files"),
    }
}

fn read_experts(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    layout: &Layout,
    count: usize,
    width: usize,
    hidden: usize,
) -> Result<Vec<Expert>> {
    if let Some(fused) = &layout.fused {
        let gate_up =
            reader.take(format!("{prefix}{}", fused.gate_up), &[count, 2 * width, hidden])?;
        let down = reader.take(format!("{prefix}{}", fused.down), &[count, hidden, width])?;
        return Ok((0..count).map(|e| slice_fused(&gate_up, &down, e, width)).collect());
    }
    let names = layout.expert.as_ref().expect("a layout that isn't fused names experts");
    (0..count).map(|e| reader.expert(prefix, &numbered(names, e), false, width, hidden)).collect()
}

/// Returns the names of the tensors of expert `e`.
fn numbered(names: &ExpertNames, e: usize) -> ExpertNames {
    let number = e.to_string();
    ExpertNames {
        gate: names.gate.replace("{expert}", &number),
        up: names.up.replace("{expert}", &number),
        down: names.down.replace("{expert}", &number),
    }
}

fn read_shared(
    reader: &mut TensorReader<'_>,
    prefix: &str,
    rule: &SharedRule,
    expert: usize,
    hidden: usize,
) -> Result<SharedExpert> {
    let width = match &rule.width {
        SharedWidth::Key(key) => reader.config.positive(key)?,
        SharedWidth::Experts { experts } => reader.config.positive(experts)? * expert,
    };
    let bias = reader.config.flag(&rule.bias)?;
    let gate = rule
        .gate
        .as_ref()
        .map(|name| reader.take(format!("{prefix}{name}"), &[1, hidden]))
        .transpose()?;
    Ok(SharedExpert { expert: reader.expert(prefix, &rule.expert, bias, width, hidden)?, gate })
}

const FUSED_IS_STORED: &str = "fused tensors come from files";

/// Returns expert `e` of the fused tensors `[E, 2I, H]` and `[E, H, I]`, as views.
fn slice_fused(gate_up: &Weight, down: &Weight, e: usize, width: usize) -> Expert {
    let gate_up = gate_up.stored().expect(FUSED_IS_STORED).at(e);
    let down = down.stored().expect(FUSED_IS_STORED).at(e);
    Expert {
        gate: Linear { weight: gate_up.rows(0, width).into(), bias: None },
        up: Linear { weight: gate_up.rows(width, 2 * width).into(), bias: None },
        down: Linear { weight: down.into(), bias: None },
    }
}

fn count_experts(config: &Config<'_>, rule: &MoeRule) -> Result<usize> {
    let given = rule
        .experts
        .iter()
        .chain(&rule.experts_also)
        .find(|key| config.raw.get(*key).is_some_and(|v| !v.is_null()));
    let default =
        || rule.experts.iter().find(|key| config.get(key).is_some()).unwrap_or(&rule.experts[0]);
    config.positive(given.unwrap_or_else(default))
}
