//! Finds routers that have nothing to decide.

use moe_model::{Expert, Model, Result};

/// How little a training of routers alone can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// It changes nothing.
    All,
    /// It changes only how much the shared experts count: which of the others a token goes to makes
    /// no difference.
    ButSharedGates,
}

/// How little a training of `model`'s routers can change. None unless in each mixture all experts
/// are the same network, by `same`, and a token's routing weights have the same sum whatever the
/// router says.
///
/// # Errors
/// As for `same`.
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

/// Whether both experts have the same source, so that their bytes are known to be equal without
/// reading any.
///
/// # Errors
/// It returns none.
pub fn same_source(a: &Expert, b: &Expert) -> Result<bool> {
    Ok(a.same_source(b))
}

/// Whether both have the same bytes.
///
/// # Errors
/// If a weight can't be read.
pub fn same_bytes(a: &Expert, b: &Expert) -> Result<bool> {
    if a.same_source(b) {
        return Ok(true);
    }
    for (a, b) in a.linears().into_iter().zip(b.linears()) {
        // Experts that were made alike have equal biases; where only one has some, the experts
        // differ.
        if a.bias.is_some() || b.bias.is_some() || a.weight.read()? != b.weight.read()? {
            return Ok(false);
        }
    }
    Ok(true)
}
