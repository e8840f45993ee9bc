//! Scales that make the mixture equal the dense network.
//!
//! f(x) = down · (silu(gate x) ∘ (up x)) is linear in down but not in gate, so an exact scale c is
//! a factor on down alone. There are N experts, top-k K and granularity G, so that an expert has
//! every G-th part of a network. The selected gates g sum to Σ = 1 where they are normalized, and
//! to K/N at a zero router where they aren't. The T = K/G selected copies of each shard then add up
//! to Σ/G · c · f(x), which is f(x) for c = G/Σ.

use moe_model::Family;

use super::{Init, ScalePlacement, UpcycleOptions};
use crate::pass::ProjectionScale;

/// Factors of the routed experts, and of the shared expert where the family has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub routed: ProjectionScale,
    pub shared: Option<ProjectionScale>,
}

impl Scales {
    pub fn new(options: &UpcycleOptions, target: &Family, normalize: bool) -> Self {
        let (n, k, g) = (options.experts as f64, options.top_k as f64, options.granularity as f64);
        let has_shared = target.has_shared_expert();
        let shared = |down| has_shared.then_some(ProjectionScale { gate_and_up: 1.0, down });
        if options.init == Init::Partition {
            // With equal gates, every selected neuron counts as in the dense network; the gate of a
            // shared expert is σ(0) = ½.
            let down = if normalize { k } else { n };
            return Self {
                routed: ProjectionScale { gate_and_up: 1.0, down },
                shared: shared(2.0),
            };
        }
        let gates = if normalize { 1.0 } else { k / n };
        let alpha = if has_shared { options.shared_fraction } else { 0.0 };
        let routed = match options.scale_placement {
            ScalePlacement::Exact => {
                ProjectionScale { gate_and_up: 1.0, down: (1.0 - alpha) * g / gates }
            }
            // 2410.07524 §3.3: s = E·G²/K where softmax comes before top-k, and G where it comes
            // after.
            ScalePlacement::Nvidia => {
                let root = (g / gates).cbrt();
                ProjectionScale { gate_and_up: root, down: (1.0 - alpha) * root }
            }
        };
        Self { routed, shared: shared(2.0 * alpha / options.shared_experts as f64) }
    }
}
