//! The names by which engines look for experts' matrices.

use moe_checkpoint::Quantization;

use crate::assembly::Model;
use crate::codec::names;
use crate::codec::names::module;
use crate::layer::Moe;

/// The names of projections by which an engine looks for the scheme of experts.
#[derive(Clone, Copy)]
pub(super) enum Projections {
    /// The names of the tensors on the hub, such as w1, w2 and w3.
    OfHub,
    /// `gate_proj`, `up_proj` and `down_proj`, whatever the tensors are called.
    Plain,
}

impl Projections {
    pub fn said(self) -> &'static str {
        match self {
            Self::OfHub => "the projections",
            Self::Plain => "gate_proj, up_proj and down_proj",
        }
    }

    /// Returns the names of the modules of expert 0 in `layer`; None if the family has no layout
    /// with tensors per expert.
    pub fn of(self, model: &Model, layer: usize) -> Option<[String; 3]> {
        let names = model.family.moe.as_ref()?.layouts[0].expert.as_ref()?;
        let hub = [&names.gate, &names.up, &names.down].map(|name| hub_module(name, layer, 0));
        Some(match self {
            Self::OfHub => hub,
            Self::Plain => {
                let [gate, ..] = hub;
                let expert = gate.rsplit_once('.').map_or("", |(expert, _)| expert);
                ["gate_proj", "up_proj", "down_proj"].map(|name| format!("{expert}.{name}"))
            }
        })
    }
}

pub(super) fn misnamed(
    model: &Model,
    quantization: &Quantization,
    names: Projections,
) -> Option<usize> {
    model.moes().find_map(|(layer, moe)| {
        let scheme = moe.experts.first()?.gate.weight.scheme()?;
        let modules = names.of(model, layer)?;
        modules.iter().any(|module| quantization.scheme(module) != Some(scheme)).then_some(layer)
    })
}

/// Returns the module of the tensor that the family's layout calls `name`, for an `expert` of a
/// `layer`.
pub(super) fn hub_module(name: &str, layer: usize, expert: usize) -> String {
    module(&format!("{}{layer}.{}", names::LAYERS, name.replace("{expert}", &expert.to_string())))
        .to_owned()
}

/// Whether the experts of `layer` have the hub's names. Files that aren't written yet will have
/// them.
pub(super) fn has_hub_names(model: &Model, layer: usize, moe: &Moe) -> bool {
    let Some(names) = model.family.moe.as_ref().and_then(|rule| rule.layouts[0].expert.as_ref())
    else {
        return true;
    };
    moe.experts.iter().enumerate().all(|(index, expert)| {
        let linears = expert.linears().into_iter().zip([&names.gate, &names.up, &names.down]);
        linears.into_iter().all(|(linear, name)| {
            let hub = hub_module(name, layer, index);
            linear
                .weight
                .stored()
                .is_none_or(|stored| stored.name().starts_with(&format!("{hub}.")))
        })
    })
}
