//! Mixtures of experts between names and types: reading them, and declaring them again.

use std::collections::BTreeSet;

use moe_checkpoint::json::shown;
use serde_json::{Map, Value, json};

use crate::assembly::Model;
use crate::config::Config;
use crate::declare::{Namer, cannot, declare_flag, uniform};
use crate::family::{ExpertNames, GroupsRule, KeyIs, Layout, MoeRule, SharedRule, SharedWidth};
use crate::layer::{Expert, GroupScore, Groups, Linear, Moe, Router, SharedExpert};
use crate::read::Reader;
use crate::weight::Weight;
use crate::{Error, Kind, Result};

impl Reader<'_> {
    pub fn moe(&mut self, prefix: &str, rule: &MoeRule, hidden: usize) -> Result<Moe> {
        let (experts, width) =
            (count_experts(&self.config, rule)?, self.config.positive(&rule.width)?);
        let layout = self.find_layout(prefix, rule)?;
        let router = self.router(prefix, rule, layout, [experts, hidden])?;
        let experts = self.experts(prefix, layout, experts, width, hidden)?;
        let shared = rule
            .shared
            .as_ref()
            .map(|rule| self.shared(prefix, rule, width, hidden))
            .transpose()?;
        Ok(Moe { router, experts, shared })
    }

    fn router(
        &mut self,
        prefix: &str,
        rule: &MoeRule,
        layout: &Layout,
        shape: [usize; 2],
    ) -> Result<Router> {
        let (config, [experts, _]) = (self.config, shape);
        let top_k = config.positive(&rule.top_k)?;
        let groups =
            rule.groups.as_ref().map(|rule| groups(&config, rule, experts)).transpose()?.flatten();
        let eligible = groups.map_or(experts, |g| experts / g.count * g.kept);
        if top_k > eligible {
            let of_groups = if groups.is_some() { " that a token's groups have" } else { "" };
            return Err(config.error(
                &rule.top_k,
                &format!("is {top_k}, more than the {eligible} experts{of_groups}"),
            ));
        }
        let bias = layout
            .bias
            .as_ref()
            .map(|name| self.take(format!("{prefix}{name}"), &shape[..1]))
            .transpose()?;
        // transformers renames routers and experts each by itself, so that one may have the name of
        // another layout.
        let names = rule.layouts.iter().map(|layout| &layout.router);
        let is_there = |name: &&String| self.tensors.contains_key(&format!("{prefix}{name}"));
        let name =
            [&layout.router].into_iter().chain(names).find(is_there).unwrap_or(&layout.router);
        Ok(Router {
            weight: self.take(format!("{prefix}{name}"), &shape)?,
            bias,
            precision: rule.precision,
            scoring: rule.scoring,
            groups,
            top_k,
            normalize: config.flag(&rule.normalize)?,
            scale: match &rule.scale {
                Some(key) => {
                    config.optional_f64(key)?.ok_or_else(|| config.error(key, "is null"))?
                }
                None => 1.0,
            },
        })
    }

    fn find_layout<'f>(&self, prefix: &str, rule: &'f MoeRule) -> Result<&'f Layout> {
        let first_tensor = |layout: &Layout| match (&layout.expert, &layout.fused) {
            (Some(names), _) => format!("{prefix}{}", names.gate.replace("{expert}", "0")),
            (_, Some(names)) => format!("{prefix}{}", names.gate_up),
            (None, None) => unreachable!("a test excludes such family files"),
        };
        let found = rule.layouts.iter().find(|l| self.has_matrix(&first_tensor(l)));
        found.ok_or_else(|| {
            Error::new(Kind::Missing, "this layer has no experts in any layout that is known")
                .tensor(first_tensor(&rule.layouts[0]))
                .file(self.config.file)
                .remedy("the checkpoint is incomplete, or config.json is of another model")
        })
    }

    fn experts(
        &mut self,
        prefix: &str,
        layout: &Layout,
        count: usize,
        width: usize,
        hidden: usize,
    ) -> Result<Vec<Expert>> {
        if let Some(fused) = &layout.fused {
            let gate_up =
                self.take(format!("{prefix}{}", fused.gate_up), &[count, 2 * width, hidden])?;
            let down = self.take(format!("{prefix}{}", fused.down), &[count, hidden, width])?;
            return Ok((0..count).map(|e| slice_fused(&gate_up, &down, e, width)).collect());
        }
        let names = layout.expert.as_ref().expect("a layout that isn't fused names experts");
        let named = |e: usize| {
            let of = |name: &String| name.replace("{expert}", &e.to_string());
            ExpertNames { gate: of(&names.gate), up: of(&names.up), down: of(&names.down) }
        };
        (0..count).map(|e| self.expert(prefix, &named(e), false, width, hidden)).collect()
    }

    fn shared(
        &mut self,
        prefix: &str,
        rule: &SharedRule,
        expert: usize,
        hidden: usize,
    ) -> Result<SharedExpert> {
        let width = match &rule.width {
            SharedWidth::Key(key) => self.config.positive(key)?,
            SharedWidth::Experts { experts } => self.config.positive(experts)? * expert,
        };
        let bias = self.config.flag(&rule.bias)?;
        let gate = rule
            .gate
            .as_ref()
            .map(|name| self.take(format!("{prefix}{name}"), &[1, hidden]))
            .transpose()?;
        Ok(SharedExpert { expert: self.expert(prefix, &rule.expert, bias, width, hidden)?, gate })
    }
}

/// Expert `e` of the fused tensors `[E, 2I, H]` and `[E, H, I]`, as views.
fn slice_fused(gate_up: &Weight, down: &Weight, e: usize, width: usize) -> Expert {
    let linear = |weight: Weight| Linear { weight, bias: None };
    let of = |fused: &Weight| fused.stored().expect("fused tensors come from files").at(e);
    let gate_up = of(gate_up);
    Expert {
        gate: linear(gate_up.rows(0, width).into()),
        up: linear(gate_up.rows(width, 2 * width).into()),
        down: linear(of(down).into()),
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

/// The groups that `experts` experts are in, where they limit the choice.
fn groups(config: &Config<'_>, rule: &GroupsRule, experts: usize) -> Result<Option<Groups>> {
    if rule
        .when
        .as_ref()
        .is_some_and(|when| config.get(&when.key).and_then(Value::as_str) != Some(&when.is))
    {
        return Ok(None);
    }
    let (count, kept) = (config.positive(&rule.count)?, config.positive(&rule.kept)?);
    let smallest = if rule.score == GroupScore::TopTwoSum { 2 } else { 1 };
    if !experts.is_multiple_of(count) || experts / count < smallest {
        let what = format!(
            "is {count}, but {experts} experts don't make as many equal groups of {smallest} or more"
        );
        return Err(config.error(&rule.count, &what));
    }
    if kept > count {
        return Err(config.error(&rule.kept, &format!("is {kept}, more than the {count} groups")));
    }
    Ok((count > 1).then_some(Groups { count, kept, score: rule.score }))
}

/// Whether layer `index` is a mixture of experts, as the config says.
pub(crate) fn is_sparse(config: &Config<'_>, rule: &MoeRule, index: usize) -> Result<bool> {
    if let Some(key) = &rule.dense_first
        && index < config.usize(key)?
    {
        return Ok(false);
    }
    if let Some(key) = &rule.dense_layers {
        let dense = match config.get(key) {
            None | Some(Value::Null) => false,
            // Python finds 0 in [0.0], and not in ["0"]: what is no number of a layer isn't guessed
            // at.
            Some(Value::Array(list)) if list.iter().all(Value::is_u64) => {
                list.iter().any(|v| v.as_u64() == Some(index as u64))
            }
            Some(said) => {
                let what = format!(
                    "is {}, where transformers 5 wants numbers of layers; older versions find no layer in a text",
                    shown(said)
                );
                return Err(config
                    .error(key, &what)
                    .better_remedy("write numbers of layers, or remove the key"));
            }
        };
        if dense {
            return Ok(false);
        }
    }
    match &rule.sparse_step {
        Some(key) => Ok((index + 1).is_multiple_of(config.positive(key)?)),
        None => Ok(true),
    }
}

impl Model {
    /// The config keys of experts, routers, and where they are.
    pub(crate) fn declare_moe(&self, rule: &MoeRule, raw: &mut Map<String, Value>) -> Result<()> {
        // One config speaks of all, those for multi-token prediction included.
        let predicting = self.mtp.iter().filter_map(|mtp| mtp.layer.ffn.moe());
        let moes: Vec<&Moe> = self.moes().map(|(_, moe)| moe).chain(predicting).collect();
        if moes.is_empty() {
            // What the config says of experts then speaks of no layer.
            return self.declare_sparsity(rule, raw);
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
        self.declare_router(rule, &moes, raw)?;
        declare_shared(rule.shared.as_ref(), &moes, width, raw)?;
        self.declare_sparsity(rule, raw)
    }

    fn declare_router(
        &self,
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
        match (&rule.scale, same(moes, "the scale of routing weights", |m| m.router.scale)?) {
            (Some(key), scale) => _ = raw.insert(key.clone(), json!(scale)),
            (None, 1.0) => {}
            (None, _) => return Err(cannot("a scale on routing weights")),
        }
        if same(moes, "router biases", |m| m.router.bias.is_some())?
            != rule.layouts[0].bias.is_some()
        {
            return Err(cannot("routers with (or without) this bias"));
        }
        let declared = same(moes, "groups of experts", |m| m.router.groups)?;
        match (&rule.groups, declared) {
            (Some(rule), declared) => {
                self.declare_groups(rule, declared, moes[0].experts.len(), raw)
            }
            (None, None) => Ok(()),
            (None, Some(_)) => Err(cannot("groups of experts")),
        }
    }

    /// Keys that already say it are left alone.
    fn declare_groups(
        &self,
        rule: &GroupsRule,
        declared: Option<Groups>,
        experts: usize,
        raw: &mut Map<String, Value>,
    ) -> Result<()> {
        let config = Config { raw, family: self.family, file: &self.config_file };
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

    /// Says which layers are sparse, in the keys that the source used where they still say it.
    fn declare_sparsity(&self, rule: &MoeRule, raw: &mut Map<String, Value>) -> Result<()> {
        let sparse: BTreeSet<usize> = self.moes().map(|(index, _)| index).collect();
        let config = Config { raw, family: self.family, file: &self.config_file };
        let said = (0..self.layers.len())
            .map(|l| is_sparse(&config, rule, l))
            .collect::<Result<Vec<_>>>()?;
        if said.iter().enumerate().all(|(layer, said)| sparse.contains(&layer) == *said) {
            // Explicit, since the loaders' defaults have changed before.
            for key in rule.sparse_step.iter().chain(&rule.dense_layers).chain(&rule.dense_first) {
                let default = self.family.defaults.get(key).cloned().unwrap_or_default();
                raw.entry(key.clone()).or_insert(default);
            }
            return Ok(());
        }
        let dense: Vec<usize> = (0..self.layers.len()).filter(|l| !sparse.contains(l)).collect();
        match (&rule.dense_layers, &rule.dense_first) {
            (Some(key), _) => raw.insert(key.clone(), json!(dense)),
            (None, Some(key))
                if dense.iter().enumerate().all(|(position, layer)| position == *layer) =>
            {
                raw.insert(key.clone(), json!(dense.len()))
            }
            _ => return Err(cannot("dense layers among sparse ones")),
        };
        if let Some(step) = &rule.sparse_step {
            raw.insert(step.clone(), json!(1));
        }
        Ok(())
    }
}

/// What all of `moes` have in common.
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
    let shared =
        same(moes, "shared experts", |m| m.shared.as_ref().map_or(0, |s| s.expert.width()))?;
    let rule = match (rule, shared) {
        (Some(rule), 1..) => rule,
        (None, 0) => return Ok(()),
        (Some(_), 0) => return Err(cannot("layers without a shared expert")),
        (None, 1..) => return Err(cannot("a shared expert")),
    };
    let gated = same(moes, "gates of shared experts", |m| {
        m.shared.as_ref().is_some_and(|s| s.gate.is_some())
    })?;
    if gated != rule.gate.is_some() {
        return Err(cannot("a shared expert with (or without) a gate"));
    }
    let biased = same(moes, "biases of shared experts", |m| {
        m.shared.as_ref().is_some_and(|s| s.expert.gate.bias.is_some())
    })?;
    declare_flag(raw, &rule.bias, biased, "these biases of a shared expert")?;
    match &rule.width {
        SharedWidth::Key(key) => _ = raw.insert(key.clone(), json!(shared)),
        SharedWidth::Experts { experts } if shared.is_multiple_of(expert) => {
            raw.insert(experts.clone(), json!(shared / expert));
        }
        SharedWidth::Experts { .. } => {
            return Err(cannot(
                "a shared expert whose width is not a multiple of the routed experts'",
            ));
        }
    }
    Ok(())
}

impl Namer<'_> {
    pub fn moe(&mut self, prefix: &str, rule: &MoeRule, moe: &Moe) {
        let layout = &rule.layouts[0];
        self.matrix(format!("{prefix}{}", layout.router), &moe.router.weight);
        if let (Some(name), Some(bias)) = (&layout.bias, &moe.router.bias) {
            self.push(format!("{prefix}{name}"), bias);
        }
        let names = layout.expert.as_ref().expect("the written layout has tensors per expert");
        // All gates, all ups, all downs: what experts share lies side by side, and is read once.
        type Part = fn(&Expert) -> &Linear;
        let parts: [(&String, Part); 3] =
            [(&names.gate, |e| &e.gate), (&names.up, |e| &e.up), (&names.down, |e| &e.down)];
        for (name, part) in parts {
            for (e, expert) in moe.experts.iter().enumerate() {
                self.linear(
                    format!("{prefix}{}", name.replace("{expert}", &e.to_string())),
                    part(expert),
                );
            }
        }
        if let (Some(rule), Some(shared)) = (&rule.shared, &moe.shared) {
            self.expert(prefix, &rule.expert, &shared.expert);
            if let (Some(name), Some(gate)) = (&rule.gate, &shared.gate) {
                self.matrix(format!("{prefix}{name}"), gate);
            }
        }
    }
}
