//! Sparse upcycling: a dense model becomes an MoE that starts out computing the same function.
//!
//! Komatsuzaki et al. 2212.05055. Every expert is the dense feed-forward network; scales that make the
//! mixture equal to it sit on the down projection alone, since SiLU is not homogeneous:
//! f(x) = down · (silu(gate x) ∘ (up x)) is linear in down, so Σ gᵢ · c · f(x) = f(x) asks for c = 1 / Σ gᵢ.

use clap::ValueEnum;
use moe_model::{Error, Kind, Result};
use moe_model::{Expert, Family, Ffn, Layer, Linear, Model, Moe, Router, SharedExpert, Weight, families, family};
use serde::{Deserialize, Serialize};

use crate::pass::{Identity, LayerRecord, Pass, Plan};
use crate::scaled::{Noise, normal, scaled, zeros};

/// How the experts are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Every expert is a copy of the dense feed-forward network (with noise if --noise-std is given).
    #[default]
    Copy,
}

/// How the routers are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterInit {
    /// Entries from a normal distribution of standard deviation --router-std, 0.02 unless given.
    #[default]
    Normal,
    /// Almost zero: noise of standard deviation --router-std, 1e-6 unless given, so that ties are broken.
    Zeros,
}

/// Options of `upcycle`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UpcycleOptions {
    /// Experts in each layer.
    #[arg(long, value_name = "N")]
    pub experts: usize,

    /// Experts that each token goes to.
    #[arg(long, value_name = "K")]
    pub top_k: usize,

    /// MoE family to write, as its model_type; by default the one that holds the dense family exactly.
    #[arg(long, value_name = "FAMILY")]
    #[serde(default)]
    pub target: Option<String>,

    /// How experts are made.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub init: Init,

    /// Standard deviation of noise that is added to every expert; 0 keeps the function.
    #[arg(long, value_name = "STD", default_value_t = 0.0)]
    #[serde(default)]
    pub noise_std: f64,

    /// Share of an expert's weights that get noise.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    #[serde(default = "one")]
    pub noise_fraction: f64,

    /// How routers are made.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub router: RouterInit,

    /// Standard deviation of router entries.
    #[arg(long, value_name = "STD")]
    #[serde(default)]
    pub router_std: Option<f64>,

    /// Whether routing weights are divided by their sum, where the family leaves the choice. The default,
    /// true, keeps the function with any router; false asks for an almost zero one.
    #[arg(long, value_name = "BOOL")]
    #[serde(default)]
    pub norm_topk_prob: Option<bool>,

    /// Share of the function that the shared expert computes, where the family has one.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    #[serde(default = "half")]
    pub shared_fraction: f64,

    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub seed: u64,
}

fn one() -> f64 {
    1.0
}

fn half() -> f64 {
    0.5
}

impl UpcycleOptions {
    /// Plain copies, everything else as by default.
    pub fn copies(experts: usize, top_k: usize) -> Self {
        Self {
            experts,
            top_k,
            target: None,
            init: Init::Copy,
            noise_std: 0.0,
            noise_fraction: one(),
            router: RouterInit::Normal,
            router_std: None,
            norm_topk_prob: None,
            shared_fraction: half(),
            seed: 0,
        }
    }
}

impl Pass for UpcycleOptions {
    const NAME: &'static str = "upcycle";

    fn plan(&self, dense: &Model) -> Result<Plan> {
        self.check()?;
        let target = self.target(dense)?;
        let normalize = self.normalize(target)?;
        let scales = self.scales(target, normalize);
        let mut model = dense.clone();
        model.family = target;
        let mut layers = Vec::with_capacity(dense.layers.len());
        for (index, layer) in model.layers.iter_mut().enumerate() {
            let moe = self.moe(index, layer, target, normalize, scales)?;
            layer.ffn = Ffn::Moe(Box::new(moe));
            layers.push(self.record(index, scales));
        }
        let identity = self.identity(normalize, scales);
        let mut warnings = self.warnings(normalize);
        warnings.extend(model.caveats().map(str::to_owned));
        Ok(Plan { model, identity, layers, warnings })
    }
}

/// Factors on down projections that make the mixture equal the dense network.
#[derive(Debug, Clone, Copy)]
struct Scales {
    routed: f64,
    /// `None` where the family has no shared expert.
    shared: Option<f64>,
}

impl UpcycleOptions {
    /// What cannot work with any model.
    fn check(&self) -> Result<()> {
        let usage = |what: String, remedy: &str| Err(Error::new(Kind::Usage, what).remedy(remedy));
        if self.experts == 0 || self.top_k == 0 {
            return usage(
                "an MoE needs at least one expert and a top-k of at least one".into(),
                "raise --experts or --top-k",
            );
        }
        if self.experts > 65_536 {
            return usage(format!("{} experts", self.experts), "give at most 65536");
        }
        if self.top_k > self.experts {
            let what = format!("top-k {} is more than the {} experts", self.top_k, self.experts);
            return usage(what, "lower --top-k or raise --experts");
        }
        let share = |x: f64| (0.0..=1.0).contains(&x);
        if !share(self.noise_fraction) || !share(self.shared_fraction) {
            return usage("a share lies between 0 and 1".into(), "check --noise-fraction and --shared-fraction");
        }
        let std = |x: f64| x >= 0.0 && x.is_finite();
        if !std(self.noise_std) || !self.router_std.is_none_or(std) {
            return usage("a standard deviation is a number from 0 up".into(), "check --noise-std and --router-std");
        }
        Ok(())
    }

    fn target(&self, dense: &Model) -> Result<&'static Family> {
        let source = &dense.family.model_type;
        if dense.moes().next().is_some() {
            return Err(Error::new(Kind::Usage, format!("this {source} model is an MoE already"))
                .file(&dense.config_file)
                .remedy("upcycle takes a dense model"));
        }
        let possible = &dense.family.upcycles_to;
        let Some(default) = possible.first() else {
            return Err(Error::new(Kind::Unsupported, format!("no MoE family can hold an upcycled {source} model"))
                .file(&dense.config_file));
        };
        let wanted = self.target.as_ref().unwrap_or(default);
        if possible.contains(wanted) {
            return family(wanted);
        }
        let moes: Vec<_> = families().values().filter(|f| f.moe.is_some()).map(|f| f.model_type.as_str()).collect();
        let what = match moes.contains(&wanted.as_str()) {
            true => format!("a {source} model can't be upcycled to {wanted}: the two differ outside the experts"),
            false => format!("{wanted:?} is no MoE family; there are {}", moes.join(", ")),
        };
        Err(Error::new(Kind::Usage, what).remedy(format!("give --target {}", possible.join(" or --target "))))
    }

    fn normalize(&self, target: &Family) -> Result<bool> {
        let rule = &target.moe.as_ref().expect("targets are MoE families").normalize;
        match (rule, self.norm_topk_prob) {
            (moe_model::Flag::Fixed(fixed), Some(wanted)) if wanted != *fixed => {
                let what = format!("{} fixes norm_topk_prob to {fixed}", target.model_type);
                Err(Error::new(Kind::Usage, what).remedy("leave --norm-topk-prob out"))
            }
            (moe_model::Flag::Fixed(fixed), _) => Ok(*fixed),
            (moe_model::Flag::Key(_), wanted) => Ok(wanted.unwrap_or(true)),
        }
    }

    /// Σ gᵢ is 1 where weights are normalised, and k/N at a zero router where they aren't. A zero gate of
    /// the shared expert gives σ(0) = ½.
    fn scales(&self, target: &Family, normalize: bool) -> Scales {
        let gates = if normalize { 1.0 } else { self.top_k as f64 / self.experts as f64 };
        let shared = target.moe.as_ref().is_some_and(|m| m.shared.is_some());
        let alpha = if shared { self.shared_fraction } else { 0.0 };
        Scales { routed: (1.0 - alpha) / gates, shared: shared.then_some(2.0 * alpha) }
    }

    fn router_std(&self) -> f64 {
        self.router_std.unwrap_or(match self.router {
            RouterInit::Normal => 0.02,
            RouterInit::Zeros => 1e-6,
        })
    }

    fn moe(&self, index: usize, layer: &Layer, target: &Family, normalize: bool, scales: Scales) -> Result<Moe> {
        let Ffn::Dense(ffn) = &layer.ffn else {
            return Err(Error::new(Kind::Usage, format!("layer {index} is no dense layer")));
        };
        if let Some(bias) = ffn.linears().iter().find_map(|l| l.bias.as_ref()) {
            let what = format!("{} experts have no biases, but this feed-forward network has", target.model_type);
            return Err(Error::new(Kind::Unsupported, what)
                .tensor(bias.name())
                .remedy("no MoE family here can hold this model; if the biases are zero, drop them and mlp_bias"));
        }
        let like = &ffn.gate.weight;
        let hidden = like.shape()[1];
        // One stream for the router, then three for each expert.
        let stream = (index as u64) << 32;
        let name = |what: &str| format!("layer {index} {what}");
        let router = Router {
            weight: normal(name("router"), &[self.experts, hidden], like, self.router_std(), self.seed, stream)?,
            top_k: self.top_k,
            normalize,
        };
        let experts = if self.has_noise() {
            let noisy = |e| self.expert(ffn, scales.routed, Some(stream + 1 + 3 * e as u64));
            (0..self.experts).map(noisy).collect()
        } else {
            vec![self.expert(ffn, scales.routed, None); self.experts]
        };
        let shared = scales
            .shared
            .map(|scale| -> Result<_> {
                let gate = zeros(name("shared expert's gate"), &[1, hidden], like)?;
                Ok(SharedExpert { expert: self.expert(ffn, scale, None), gate })
            })
            .transpose()?;
        Ok(Moe { router, experts, shared })
    }

    /// The dense network with its output scaled; with a stream, also with noise.
    fn expert(&self, ffn: &Expert, scale: f64, stream: Option<u64>) -> Expert {
        let noise = |projection: u64| {
            let stream = stream? + projection;
            Some(Noise { std: self.noise_std, fraction: self.noise_fraction, seed: self.seed, stream })
        };
        let linear = |weight: &Weight, factor, projection| Linear {
            weight: scaled(weight, factor, noise(projection)),
            bias: None,
        };
        Expert {
            gate: linear(&ffn.gate.weight, 1.0, 0),
            up: linear(&ffn.up.weight, 1.0, 1),
            down: linear(&ffn.down.weight, scale, 2),
        }
    }

    fn has_noise(&self) -> bool {
        self.noise_std > 0.0 && self.noise_fraction > 0.0
    }

    fn identity(&self, normalize: bool, scales: Scales) -> Identity {
        if self.has_noise() {
            return Identity::Changed { reason: format!("noise of standard deviation {} on experts", self.noise_std) };
        }
        if !normalize && self.top_k < self.experts {
            let std = self.router_std();
            if self.router == RouterInit::Normal {
                let reason = "routing weights are not normalised, so their sum depends on the token; \
                              --router zeros keeps the function"
                    .to_owned();
                return Identity::Changed { reason };
            }
            let reason = format!("a router of standard deviation {std:e} leaves routing weights close to 1/experts");
            return Identity::Approximate { reason };
        }
        let power_of_two = |x: f64| x == 0.0 || x.log2().fract() == 0.0;
        if !power_of_two(scales.routed) || !scales.shared.is_none_or(power_of_two) {
            let reason = format!("down projections are scaled by {}, which rounds in the stored dtype", scales.routed);
            return Identity::Approximate { reason };
        }
        Identity::Exact
    }

    fn warnings(&self, normalize: bool) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.top_k == 1 && normalize && self.experts > 1 {
            let what = "with top-k 1 and normalised routing weights every weight is 1, so the router gets no gradient";
            warnings.push(format!("{what}: train with --top-k 2 or more"));
        }
        if self.router_std() == 0.0 && self.experts > 1 {
            warnings.push("an exactly zero router sends every token to the same experts".to_owned());
        }
        warnings
    }

    fn record(&self, layer: usize, scales: Scales) -> LayerRecord {
        let scaled = |scale: f64| match scale {
            1.0 => "copy of the dense network".to_owned(),
            _ => format!("copy of the dense network, down projection × {scale}"),
        };
        let noise = if self.has_noise() {
            format!(", noise of std {} on a share of {}", self.noise_std, self.noise_fraction)
        } else {
            String::new()
        };
        LayerRecord {
            layer,
            router: format!("normal, std {:e}, seed {}", self.router_std(), self.seed),
            experts: vec![format!("{}{noise}", scaled(scales.routed)); self.experts],
            shared: scales.shared.map(|scale| format!("{}, gate 0", scaled(scale))),
        }
    }
}
