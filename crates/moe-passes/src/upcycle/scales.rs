//! Scales that make the mixture equal the dense network.
//!
//! f(x) = down · (silu(gate x) ∘ (up x)) is linear in down but not in gate, so an exact scale c
//! sits on down alone: with N experts, top-k K and granularity G, of whose networks every G-th part
//! stands in one expert, the selected gates g sum to Σ = 1 where they are normalised and to K/N at
//! a zero router where they aren't. The T = K/G selected copies of each shard then add up to Σ/G ·
//! c · f(x), which is f(x) for c = G/Σ.

use moe_model::{Expert, Family};

use super::{Init, Rest, RouterInit, ScalePlacement, UpcycleOptions};
use crate::pass::LayerRecord;

/// Factors on an expert's projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Factors {
    /// On gate and up each.
    pub inner: f64,
    pub down: f64,
}

/// Factors of the routed experts, and of the shared one where the family has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub routed: Factors,
    pub shared: Option<Factors>,
}

impl Scales {
    pub fn new(options: &UpcycleOptions, target: &Family, normalize: bool) -> Self {
        let (n, k, g) = (options.experts as f64, options.top_k as f64, options.granularity as f64);
        let has_shared = target.has_shared_expert();
        let shared = |down| has_shared.then_some(Factors { inner: 1.0, down });
        if options.init == Init::Partition {
            // Where all gates are equal, every selected neuron counts as in the dense network; σ(0)
            // = ½ of a shared one.
            let down = if normalize { k } else { n };
            return Self { routed: Factors { inner: 1.0, down }, shared: shared(2.0) };
        }
        let gates = if normalize { 1.0 } else { k / n };
        let alpha = if has_shared { options.shared_fraction } else { 0.0 };
        let routed = match options.scale_placement {
            ScalePlacement::Exact => Factors { inner: 1.0, down: (1.0 - alpha) * g / gates },
            // 2410.07524 §3.3: s = E·G²/K where softmax stands before top-k, G where it stands
            // behind it.
            ScalePlacement::Nvidia => {
                let root = (g / gates).cbrt();
                Factors { inner: root, down: (1.0 - alpha) * root }
            }
        };
        Self { routed, shared: shared(2.0 * alpha / options.shared_experts as f64) }
    }

    /// How layer `index` is made.
    pub fn record(self, options: &UpcycleOptions, index: usize, experts: &[Expert]) -> LayerRecord {
        let g = options.granularity;
        let noise = match options.has_noise() {
            true => format!(
                ", noise of std {} on a share of {}",
                options.noise_std, options.noise_fraction
            ),
            false => String::new(),
        };
        let from = |i: usize| match options.models.as_slice() {
            [] => "the dense network".to_owned(),
            models => format!("the network of {}", models[i / g % models.len()].display()),
        };
        let what = |i: usize| match (options.init, g) {
            (Init::Partition, _) => format!("{} neurons of the dense network", experts[i].width()),
            (_, 1) => format!("copy of {}", from(i)),
            _ => format!("shard {} of {g} of {}", i % g, from(i)),
        };
        let drop = match options.init {
            Init::Drop => {
                format!(", a share {} of its neurons reinitialized", options.drop_fraction)
            }
            _ => String::new(),
        };
        let expert = |i: usize| format!("{}{}{drop}{noise}", what(i), self.routed);
        let shared = self.shared.map(|factors| {
            let what = match (options.init, options.shared_experts) {
                (Init::Partition, _) => "neurons that every token uses".to_owned(),
                (_, count) => {
                    let of = match (options.models.is_empty(), options.rest) {
                        (true, _) => "the dense network",
                        (_, Rest::Base) => "the base's network",
                        (_, Rest::Average) => "the mean of the networks",
                    };
                    if count == 1 {
                        format!("copy of {of}")
                    } else {
                        format!("{count} copies of {of}")
                    }
                }
            };
            format!("{what}{factors}, gate 0")
        });
        let router = Some(options.describe_router());
        LayerRecord {
            layer: index,
            router,
            experts: (0..experts.len()).map(expert).collect(),
            shared,
            ..LayerRecord::default()
        }
    }
}

impl std::fmt::Display for Factors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.inner != 1.0 {
            write!(f, ", gate and up projections × {:.6}", self.inner)?;
        }
        if self.down != 1.0 {
            write!(f, ", down projection × {}", (self.down * 1e6).round() / 1e6)?;
        }
        Ok(())
    }
}

impl UpcycleOptions {
    fn describe_router(&self) -> String {
        let seed = self.seed;
        let text = match self.router {
            RouterInit::Normal | RouterInit::Zeros => {
                format!("normal, std {:e}, seed {seed}", self.router_std())
            }
            RouterInit::Orthogonal => {
                format!(
                    "orthogonal rows as long as normal ones of std {:e}, seed {seed}",
                    self.router_std()
                )
            }
            RouterInit::Kmeans => format!("k-means of the layer's FFN inputs, seed {seed}"),
            RouterInit::Prompts => "mean FFN inputs on prompts".to_owned(),
            RouterInit::CheapEmbed => "token embeddings of prompts".to_owned(),
            RouterInit::Activations => {
                "inputs on which an expert's neurons are most active".to_owned()
            }
        };
        let scale = match self.router_entropy {
            _ if !self.router.is_surveyed() => String::new(),
            0.0 => ", unscaled".to_owned(),
            share => format!(", scaled to {share} of the maximum entropy"),
        };
        let groups = match self.granularity {
            1 => String::new(),
            g => format!("; each row {g} times, once for each shard"),
        };
        format!("{text}{scale}{groups}")
    }
}
