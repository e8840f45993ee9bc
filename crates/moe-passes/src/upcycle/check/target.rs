//! Checks of the models, and of what the family to write can hold.

use moe_model::{Error, Family, Flag, Kind, Model, Result, Weight, families, family};

use crate::upcycle::options::{Init, UpcycleOptions};
use crate::usage::{idle, usage};

/// The family to write.
pub(crate) fn target(options: &UpcycleOptions, dense: &Model) -> Result<&'static Family> {
    let source = &dense.family.model_type;
    if dense.moes().next().is_some() {
        return Err(Error::new(Kind::Usage, format!("this {source} model is an MoE already"))
            .file(&dense.config_file)
            .remedy("upcycle takes a dense model"));
    }
    let possible = &dense.family.upcycles_to;
    let Some(default) = possible.first() else {
        let what = format!("no MoE family can hold an upcycled {source} model");
        return Err(Error::new(Kind::Unsupported, what).file(&dense.config_file));
    };
    let wanted = options.target.as_ref().unwrap_or(default);
    if possible.contains(wanted) {
        return family(wanted);
    }
    let what = impossible(source, wanted);
    Err(usage(&["--target"], what, format!("give --target {}", possible.join(" or --target "))))
}

/// Why a `source` model can't be upcycled to `wanted`.
fn impossible(source: &str, wanted: &str) -> String {
    let moes: Vec<_> =
        families().values().filter(|f| f.moe.is_some()).map(|f| f.model_type.as_str()).collect();
    if !moes.contains(&wanted) {
        return format!("{wanted:?} is not an MoE family; there are {}", moes.join(", "));
    }
    format!("a {source} model can't be upcycled to {wanted}: the two differ outside the experts")
}

/// Refuses layers that stay dense where the family can't have any.
pub(crate) fn layers(chosen: &[bool], dense: &Model, target: &Family) -> Result<()> {
    if mixes_layers(target) || !chosen.contains(&false) {
        return Ok(());
    }
    let others =
        dense.family.upcycles_to.iter().filter(|name| family(name).is_ok_and(mixes_layers));
    let others: Vec<_> = others.map(|name| format!("--target {name}")).collect();
    let remedy = if others.is_empty() {
        String::new()
    } else {
        format!(", or give {}", others.join(" or "))
    };
    let what = format!("{} has no dense layers among those with experts", target.model_type);
    Err(usage(&["--layers", "--target"], what, format!("leave --layers out{remedy}")))
}

/// Whether the family can have dense layers among those with experts.
fn mixes_layers(family: &Family) -> bool {
    family.dense.is_some() && family.moe.as_ref().is_some_and(|m| m.dense_layers.is_some())
}

/// Refuses options of a shared expert where the family has none, or doesn't support them.
pub(crate) fn shared(options: &UpcycleOptions, target: &Family) -> Result<()> {
    let has_shared = target.has_shared_expert();
    let partition = options.init == Init::Partition;
    let given = [
        (options.shared_experts != 1 && (!has_shared || partition), "--shared-experts"),
        (options.shared_fraction != 0.5 && (!has_shared || partition), "--shared-fraction"),
        (options.shared_width.is_some() && !has_shared, "--shared-width"),
    ];
    let Some((_, option)) = given.into_iter().find(|(is_idle, _)| *is_idle) else { return Ok(()) };
    let what = if has_shared {
        format!(
            "{option} has no meaning for a partition, whose shared expert has neurons of its own"
        )
    } else {
        format!("{} has no shared expert for {option}", target.model_type)
    };
    let remedy = format!("leave {option} out, or choose another --target");
    Err(idle(&[option], what, remedy))
}

/// Whether routing weights are divided by their sum.
pub(crate) fn normalize(options: &UpcycleOptions, target: &Family) -> Result<bool> {
    let rule = &target.moe.as_ref().expect("targets are MoE families").normalize;
    match (rule, options.norm_topk_prob) {
        (Flag::Fixed(fixed), Some(wanted)) if wanted != *fixed => {
            let what = format!("{} fixes norm_topk_prob to {fixed}", target.model_type);
            Err(idle(&["--norm-topk-prob"], what, "leave --norm-topk-prob out"))
        }
        (Flag::Fixed(fixed), _) => Ok(*fixed),
        (Flag::Key(_), wanted) => Ok(wanted.unwrap_or(true)),
    }
}

/// Refuses models whose networks can't become experts of `base`: quantized models, another family,
/// or tensors of other shapes.
pub(crate) fn models(base: &Model, others: &[Model]) -> Result<()> {
    if let Some(quantized) = std::iter::once(base).chain(others).find(|m| m.quantization.is_some())
    {
        return Err(Error::new(Kind::Unsupported, "a quantized model can't be upcycled")
            .file(&quantized.config_file)
            .remedy("start from the unquantized checkpoint"));
    }
    let wanted = base.declare()?.tensors;
    for other in others {
        let Some(Difference { what, tensor }) = difference(base, &wanted, other)? else { continue };
        let remedy = "give models of one architecture, fine-tuned from one base";
        let error = usage(&["--expert-model"], what, remedy).file(&other.config_file);
        return Err(if let Some(tensor) = tensor { error.tensor(tensor) } else { error });
    }
    Ok(())
}

/// How a model differs from the base.
struct Difference {
    what: String,
    /// The tensor that it is about, if it is about one.
    tensor: Option<String>,
}

/// The first difference of `other`'s architecture from that of `base`, whose tensors are `wanted`.
fn difference(
    base: &Model,
    wanted: &[(String, Weight)],
    other: &Model,
) -> Result<Option<Difference>> {
    if other.family.model_type != base.family.model_type {
        let (theirs, ours) = (&other.family.model_type, &base.family.model_type);
        let what = format!("a {theirs} model can't be an expert of a {ours} model");
        return Ok(Some(Difference { what, tensor: None }));
    }
    let found = other.declare()?.tensors;
    for ((name, ours), (theirs_name, theirs)) in wanted.iter().zip(&found) {
        let what = if name != theirs_name {
            format!("this model has {theirs_name} where the base has {name}")
        } else if (ours.shape(), ours.dtype()) != (theirs.shape(), theirs.dtype()) {
            let [theirs, ours] = [theirs, ours].map(|w| format!("{:?} {}", w.shape(), w.dtype()));
            format!("this model has {theirs}, the base {ours}")
        } else {
            continue;
        };
        return Ok(Some(Difference { what, tensor: Some(name.clone()) }));
    }
    if wanted.len() != found.len() {
        let (theirs, ours) = (found.len(), wanted.len());
        let what = format!("this model has {theirs} tensors, the base {ours}");
        return Ok(Some(Difference { what, tensor: None }));
    }
    if (other.heads, other.kv_heads) != (base.heads, base.kv_heads) {
        let what = "this model has other attention heads than the base".to_owned();
        return Ok(Some(Difference { what, tensor: None }));
    }
    Ok(None)
}
