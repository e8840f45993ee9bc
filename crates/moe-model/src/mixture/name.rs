//! Names the tensors of a mixture of experts.

use crate::codec::Namer;
use crate::family::{ExpertNames, MoeRule};
use crate::layer::{Expert, Linear, Moe};

pub(crate) fn name(namer: &mut Namer<'_>, prefix: &str, rule: &MoeRule, moe: &Moe) {
    let layout = &rule.layouts[0];
    namer.matrix(format!("{prefix}{}", layout.router), &moe.router.weight);
    if let (Some(name), Some(bias)) = (&layout.bias, &moe.router.bias) {
        namer.push(format!("{prefix}{name}"), bias);
    }
    let names = layout.expert.as_ref().expect("the written layout has tensors per expert");
    name_experts(namer, prefix, names, &moe.experts);
    if let (Some(rule), Some(shared)) = (&rule.shared, &moe.shared) {
        namer.expert(prefix, &rule.expert, &shared.expert);
        if let (Some(name), Some(gate)) = (&rule.gate, &shared.gate) {
            namer.matrix(format!("{prefix}{name}"), gate);
        }
    }
}

/// Names all gates, then all ups, then all downs, so that matrices that experts share are adjacent
/// and are read once.
fn name_experts(namer: &mut Namer<'_>, prefix: &str, names: &ExpertNames, experts: &[Expert]) {
    type Projection = fn(&Expert) -> &Linear;
    let parts: [(&String, Projection); 3] =
        [(&names.gate, |e| &e.gate), (&names.up, |e| &e.up), (&names.down, |e| &e.down)];
    for (name, part) in parts {
        for (e, expert) in experts.iter().enumerate() {
            let name = name.replace("{expert}", &e.to_string());
            namer.linear(format!("{prefix}{name}"), part(expert));
        }
    }
}
