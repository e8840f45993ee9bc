//! Routers that have nothing to decide.

use moe_model::{Expert, Model, Result};

/// How much a training of routers alone can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Nothing.
    All,
    /// How much the shared experts count for; which of the others a token goes to makes no
    /// difference.
    ButSharedGates,
}

/// How little training the routers of `model` can change, if in each mixture all experts are the
/// same network, by `same`, and a token's routing weights have the same sum whatever the router
/// says.
///
/// # Errors
/// What `same` returns.
pub fn idle_routers(
    model: &Model,
    same: fn(&Expert, &Expert) -> Result<bool>,
) -> Result<Option<Idle>> {
    let mut idle = None;
    for (_, moe) in model.moes() {
        let Some((first, others)) = moe.experts.split_first() else { return Ok(None) };
        if !moe.router.normalize {
            return Ok(None);
        }
        for other in others {
            if !same(first, other)? {
                return Ok(None);
            }
        }
        let has_gate = moe.shared.as_ref().is_some_and(|shared| shared.gate.is_some());
        let of_layer = if has_gate { Idle::ButSharedGates } else { Idle::All };
        idle = idle.filter(|idle| *idle == Idle::ButSharedGates).or(Some(of_layer));
    }
    Ok(idle)
}

/// Whether both are made of the same bytes, as far as that is known without reading any.
///
/// # Errors
/// None.
pub fn same_source(a: &Expert, b: &Expert) -> Result<bool> {
    Ok(a.same_source(b))
}

/// Whether both have the same bytes.
///
/// # Errors
/// What reading them returns.
pub fn same_bytes(a: &Expert, b: &Expert) -> Result<bool> {
    if a.same_source(b) {
        return Ok(true);
    }
    for (a, b) in a.linears().into_iter().zip(b.linears()) {
        // Biases of experts that were made alike are alike, too; where only one has some, they
        // differ.
        if a.bias.is_some() || b.bias.is_some() || a.weight.read()? != b.weight.read()? {
            return Ok(false);
        }
    }
    Ok(true)
}
