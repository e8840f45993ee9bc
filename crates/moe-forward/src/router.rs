//! Loads and runs routers.

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::product::product;
use moe_math::routing::{self, Routing, RoutingRule};
use moe_math::{Compute, RouterDtype};
use moe_model::{Router, RouterPrecision};

use crate::context::{Context, tensor_label};
use crate::dtypes::candle_dtype;
use crate::loader::{Loader, to_f32};

/// The loaded weights of a router. It works in f32, whatever the rest of the model is computed in,
/// unless [`RouterDtype::Model`] is chosen: small differences decide which expert a token goes to.
pub struct LoadedRouter {
    weight: Tensor,
    rule: RoutingRule,
    /// The type that states, weights and logits are rounded to; None for no rounding.
    rounds_to: Option<DType>,
}

impl LoadedRouter {
    /// Loads `router` for the device of `compute`.
    ///
    /// # Errors
    /// Errors of reading and of the device.
    pub fn load(router: &Router, compute: &Compute) -> Result<Self> {
        Self::load_with(router, Loader::new(compute))
    }

    pub(crate) fn load_with(router: &Router, loader: Loader<'_>) -> Result<Self> {
        let compute = Compute { dtype: DType::F32, ..loader.compute.clone() };
        let weight = Loader { compute: &compute, ..loader }.matrix(&router.weight)?;
        let rounds_to = match (compute.router_dtype, router.precision) {
            (RouterDtype::F32, _) | (_, RouterPrecision::F32) => None,
            (RouterDtype::Model, _) => Some(candle_dtype(&router.weight)?),
        };
        Ok(Self { weight, rule: routing_rule(router, &compute, rounds_to)?, rounds_to })
    }

    /// Returns the f32 logits `[tokens, experts]` of `x`, `[tokens, hidden]`, and the routing.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn route(&self, x: &Tensor) -> CandleResult<(Tensor, Routing)> {
        let x = x.to_dtype(DType::F32)?;
        let logits = match self.rounds_to {
            None => product(&x, &self.weight)?,
            // As libraries multiply in half precision: operands are rounded, sums are f32 and are
            // rounded once.
            Some(dtype) => {
                rounded(&product(&rounded(&x, dtype)?, &self.weight.to_dtype(dtype)?)?, dtype)?
            }
        };
        let routing = routing::route(&logits, &self.rule)?;
        Ok((logits, routing))
    }

    /// Returns the gates of `routing`, `[tokens · top_k]`, as a differentiable function of
    /// `logits`, which it was made from. None if these aren't tracked.
    ///
    /// # Errors
    /// Errors of the device.
    pub(crate) fn gates(&self, logits: &Tensor, routing: &Routing) -> CandleResult<Option<Tensor>> {
        if !logits.track_op() {
            return Ok(None);
        }
        routing::gates(logits, &self.rule, routing)?.flatten_all().map(Some)
    }

    /// Returns the rule by which logits become a routing.
    pub fn rule(&self) -> &RoutingRule {
        &self.rule
    }
}

/// Returns the rule by which logits of `router` become a routing. It reads the router's bias.
///
/// # Errors
/// Errors of reading and of the device.
fn routing_rule(
    router: &Router,
    compute: &Compute,
    rounds_to: Option<DType>,
) -> Result<RoutingRule> {
    let bias = match &router.bias {
        Some(bias) => Some(to_f32(bias, compute)?.to_vec1().context(|| tensor_label(bias))?),
        None => None,
    };
    Ok(RoutingRule {
        scoring: router.scoring,
        bias,
        groups: router.groups,
        top_k: router.top_k,
        normalize: router.normalize,
        scale: router.scale,
        gates: rounds_to
            .filter(|_| router.precision == RouterPrecision::Model)
            .unwrap_or(DType::F32),
    })
}

/// Rounds `x` to the nearest values of `dtype`, in f32.
fn rounded(x: &Tensor, dtype: DType) -> CandleResult<Tensor> {
    x.to_dtype(dtype)?.to_dtype(DType::F32)
}
