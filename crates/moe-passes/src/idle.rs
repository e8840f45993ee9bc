//! Routers that have nothing to decide.

use moe_model::{Expert, Model, Result};

/// Whether training the routers of `model` can change nothing: in each mixture all experts are the same network, by `same`, and the
/// weights of those that a token goes to sum to the same whatever the router says.
///
/// # Errors
/// What `same` returns.
pub fn routers_are_idle(model: &Model, same: fn(&Expert, &Expert) -> Result<bool>) -> Result<bool> {
    let mut mixtures = 0;
    for (_, moe) in model.moes() {
        let has_gate = moe.shared.as_ref().is_some_and(|shared| shared.gate.is_some());
        let Some((first, others)) = moe.experts.split_first() else { return Ok(false) };
        if !moe.router.normalize || has_gate {
            return Ok(false);
        }
        for other in others {
            if !same(first, other)? {
                return Ok(false);
            }
        }
        mixtures += 1;
    }
    Ok(mixtures > 0)
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
        // Biases of experts that were made alike are alike, too; where only one has some, they differ.
        if a.bias.is_some() || b.bias.is_some() || a.weight.read()? != b.weight.read()? {
            return Ok(false);
        }
    }
    Ok(true)
}
