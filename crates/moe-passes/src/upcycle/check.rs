//! Checks before any weight is read.

use moe_model::{Error, Family, Flag, Kind, Model, Result, families, family};

use super::options::{survey_tokens, window};
use super::{Init, PartitionBy, Rest, RouterInit, ScalePlacement, UpcycleOptions};
use crate::calibrate::short;
use crate::unused::refuse_unused;

fn usage<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Usage, what).remedy(remedy))
}

impl UpcycleOptions {
    /// Refuses options that can't work with any model.
    pub(super) fn check(&self) -> Result<()> {
        self.check_counts()?;
        self.check_numbers()?;
        let partition = self.init == Init::Partition;
        if partition
            && (self.granularity > 1
                || !self.models.is_empty()
                || self.scale_placement != ScalePlacement::Exact)
        {
            return usage(
                "--init partition deals out the neurons of the one dense network, each to one expert",
                "leave out --granularity, --expert-model and --scale-placement",
            );
        }
        self.check_idle()?;
        self.check_texts()
    }

    /// Refuses options that would be ignored.
    fn check_idle(&self) -> Result<()> {
        let (drop, partition) = (self.init == Init::Drop, self.init == Init::Partition);
        let idle = [
            (
                self.rest == Rest::Average && self.models.is_empty(),
                "--rest average",
                "--expert-model",
            ),
            (self.drop_fraction != 0.5 && !drop, "--drop-fraction", "--init drop"),
            (
                self.noise_fraction != 1.0 && self.noise_std == 0.0,
                "--noise-fraction",
                "--noise-std above 0",
            ),
            (
                self.router_std.is_some() && self.router.is_surveyed(),
                "--router-std",
                "--router normal, zeros or orthogonal",
            ),
            (
                self.router == RouterInit::Activations && !partition,
                "--router activations",
                "--init partition",
            ),
            (self.shared_width.is_some() && !partition, "--shared-width", "--init partition"),
            (
                self.partition_by != PartitionBy::Weights && !partition,
                "--partition-by",
                "--init partition",
            ),
            (
                self.router == RouterInit::Activations
                    && self.partition_by != PartitionBy::Activations,
                "--router activations",
                "--partition-by activations",
            ),
            (
                self.router_entropy != 0.9 && !self.router.is_surveyed(),
                "--router-entropy",
                "--router kmeans, prompts, cheap-embed or activations",
            ),
        ];
        match idle.into_iter().find(|(is_idle, ..)| *is_idle) {
            None => Ok(()),
            Some((_, option, wanted)) => {
                let error = Error::new(Kind::Usage, format!("{option} goes with {wanted}"));
                // Two of them name an option with its value; the key is the option alone.
                let key = option.split(' ').next().unwrap_or(option);
                Err(error.remedy(format!("give {wanted}, or leave {option} out")).idle(&[key]))
            }
        }
    }

    fn check_counts(&self) -> Result<()> {
        let Self { experts, top_k, granularity, .. } = *self;
        if experts == 0 || top_k == 0 {
            return usage(
                "an MoE needs at least one expert and a top-k of at least one",
                "raise --experts or --top-k",
            );
        }
        if experts > 65_536 {
            return usage(format!("--experts {experts} is too many"), "give at most 65536");
        }
        if top_k > experts {
            return usage(
                format!("top-k {top_k} is more than the {experts} experts"),
                "lower --top-k or raise --experts",
            );
        }
        if granularity == 0 {
            return usage("--granularity 0 leaves no shard", "give at least 1");
        }
        if !experts.is_multiple_of(granularity) || !top_k.is_multiple_of(granularity) {
            let what = format!(
                "--experts {experts} and --top-k {top_k} count shards: each is a multiple of --granularity {granularity}"
            );
            let up = |n: usize| n.div_ceil(granularity) * granularity;
            return usage(
                what,
                format!("give --experts {} --top-k {}, say", up(experts), up(top_k)),
            );
        }
        if self.shared_experts == 0 || self.shared_experts > 1024 {
            return usage(
                format!("--shared-experts {} is out of range", self.shared_experts),
                "give 1 to 1024; --shared-fraction 0 silences it",
            );
        }
        let count = self.models.len();
        if count > 0 && !self.router_rows().is_multiple_of(count) {
            let what = format!(
                "{} experts can't be dealt out evenly to {count} models",
                self.router_rows()
            );
            return usage(
                what,
                format!("give --experts {}, one for each --expert-model", count * granularity),
            );
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        for (option, share) in [
            ("--noise-fraction", self.noise_fraction),
            ("--shared-fraction", self.shared_fraction),
            ("--drop-fraction", self.drop_fraction),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return usage(
                    format!("{option} {share} is not a share"),
                    "give a number from 0 to 1, such as 0.5",
                );
            }
        }
        if self.noise_std > 0.0 && self.noise_fraction == 0.0 {
            return usage(
                "--noise-fraction 0 adds no noise",
                "give a share above 0, or leave --noise-std out",
            );
        }
        if self.init == Init::Drop && self.drop_fraction == 0.0 {
            return usage(
                "--drop-fraction 0 draws nothing anew",
                "give a share above 0, or leave --init drop out",
            );
        }
        if !(0.0..1.0).contains(&self.router_entropy) {
            return usage(
                format!("--router-entropy {} is not below 1", self.router_entropy),
                "give a share of the maximum entropy, such as 0.9, or 0 to leave rows unscaled",
            );
        }
        for (option, std) in
            [("--noise-std", Some(self.noise_std)), ("--router-std", self.router_std)]
        {
            if let Some(std) = std.filter(|std| !(0.0..=1e6).contains(std)) {
                return usage(
                    format!("{option} {} is not a standard deviation", short(std)),
                    "give a number from 0 to 1e6, such as 0.02",
                );
            }
        }
        if self.router_std() == 0.0
            && !self.router.is_surveyed()
            && self.granularity > 1
            && self.top_k < self.experts
        {
            return usage(
                "all rows of a zero router are equal, so a token may be given one shard twice and another never",
                "raise --router-std, or leave it out",
            );
        }
        if self.data_tokens < 2 {
            return usage(
                format!("--data-tokens {} leaves nothing to learn from", self.data_tokens),
                "give some thousands, such as 65536",
            );
        }
        Ok(())
    }

    /// Refuses options of --data's text where there is no --data.
    fn check_text_used(&self) -> Result<()> {
        let idle = [
            ("--data-tokens", self.data_tokens != survey_tokens()),
            ("--sequence-length", self.sequence_length != window()),
        ];
        refuse_unused(
            idle,
            "says how --data is read, and no option here uses any",
            "give --router kmeans --data TEXT",
        )
    }

    fn check_texts(&self) -> Result<()> {
        let wants_data = matches!(self.router, RouterInit::Kmeans | RouterInit::Activations)
            || (self.init == Init::Partition && self.partition_by == PartitionBy::Activations);
        match (wants_data, self.data.is_empty()) {
            (true, true) => {
                return usage(
                    "this router or partition is found on text, and none is given",
                    "give --data",
                );
            }
            (false, false) => {
                let remedy = match self.init {
                    Init::Partition => {
                        "leave it out, or give --partition-by activations or --router activations"
                    }
                    _ => "leave it out, or give --router kmeans",
                };
                return Err(Error::new(Kind::Usage, "no option here uses --data")
                    .remedy(remedy)
                    .idle(&["--data"]));
            }
            (false, true) => self.check_text_used()?,
            (true, false) => {}
        }
        if let Some(spec) = self.data.iter().find(|spec| spec.weight.is_some()) {
            return Err(Error::new(
                Kind::Usage,
                "a weight has no meaning here: every token counts alike",
            )
            .file(&spec.path)
            .remedy("leave @WEIGHT out; --data-tokens limits each label"));
        }
        match (self.router.takes_prompts(), &self.prompts) {
            (true, None) => usage("this router is made of prompts", "give --prompts PROMPTS.json"),
            (false, Some(_)) => Err(Error::new(Kind::Usage, "no option here uses --prompts")
                .remedy("leave it out, or give --router prompts")
                .idle(&["--prompts"])),
            _ => Ok(()),
        }
    }
}

/// The family to write.
pub(super) fn target(options: &UpcycleOptions, dense: &Model) -> Result<&'static Family> {
    let source = &dense.family.model_type;
    if dense.moes().next().is_some() {
        return Err(Error::new(Kind::Usage, format!("this {source} model is an MoE already"))
            .file(&dense.config_file)
            .remedy("upcycle takes a dense model"));
    }
    let possible = &dense.family.upcycles_to;
    let Some(default) = possible.first() else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("no MoE family can hold an upcycled {source} model"),
        )
        .file(&dense.config_file));
    };
    let wanted = options.target.as_ref().unwrap_or(default);
    if possible.contains(wanted) {
        return family(wanted);
    }
    let moes: Vec<_> =
        families().values().filter(|f| f.moe.is_some()).map(|f| f.model_type.as_str()).collect();
    let what = match moes.contains(&wanted.as_str()) {
        true => format!(
            "a {source} model can't be upcycled to {wanted}: the two differ outside the experts"
        ),
        false => format!("{wanted:?} is not an MoE family; there are {}", moes.join(", ")),
    };
    usage(what, format!("give --target {}", possible.join(" or --target ")))
}

/// Refuses layers that stay dense where the family can't have any.
pub(super) fn layers(chosen: &[bool], dense: &Model, target: &Family) -> Result<()> {
    let mixes = |family: &Family| {
        family.dense.is_some() && family.moe.as_ref().is_some_and(|m| m.dense_layers.is_some())
    };
    if mixes(target) || !chosen.contains(&false) {
        return Ok(());
    }
    let others = dense.family.upcycles_to.iter().filter(|name| family(name).is_ok_and(mixes));
    let others: Vec<_> = others.map(|name| format!("--target {name}")).collect();
    let remedy = if others.is_empty() {
        String::new()
    } else {
        format!(", or give {}", others.join(" or "))
    };
    let what = format!("{} has no dense layers among those with experts", target.model_type);
    usage(what, format!("leave --layers out{remedy}"))
}

/// Refuses options of a shared expert where the family has none, or doesn't support them.
pub(super) fn shared(options: &UpcycleOptions, target: &Family) -> Result<()> {
    let has_shared = target.has_shared_expert();
    let partition = options.init == Init::Partition;
    let idle = [
        (options.shared_experts != 1 && (!has_shared || partition), "--shared-experts"),
        (options.shared_fraction != 0.5 && (!has_shared || partition), "--shared-fraction"),
        (options.shared_width.is_some() && !has_shared, "--shared-width"),
    ];
    let Some((_, option)) = idle.into_iter().find(|(is_idle, _)| *is_idle) else { return Ok(()) };
    let what = match has_shared {
        true => format!(
            "{option} has no meaning for a partition, whose shared expert has neurons of its own"
        ),
        false => format!("{} has no shared expert for {option}", target.model_type),
    };
    let remedy = format!("leave {option} out, or choose another --target");
    Err(Error::new(Kind::Usage, what).remedy(remedy).idle(&[option]))
}

/// Whether routing weights are divided by their sum.
pub(super) fn normalize(options: &UpcycleOptions, target: &Family) -> Result<bool> {
    let rule = &target.moe.as_ref().expect("targets are MoE families").normalize;
    match (rule, options.norm_topk_prob) {
        (Flag::Fixed(fixed), Some(wanted)) if wanted != *fixed => {
            let what = format!("{} fixes norm_topk_prob to {fixed}", target.model_type);
            Err(Error::new(Kind::Usage, what)
                .remedy("leave --norm-topk-prob out")
                .idle(&["--norm-topk-prob"]))
        }
        (Flag::Fixed(fixed), _) => Ok(*fixed),
        (Flag::Key(_), wanted) => Ok(wanted.unwrap_or(true)),
    }
}

/// Refuses models whose networks can't become experts of `base`: quantized models, another family,
/// or tensors of other shapes.
pub(super) fn models(base: &Model, others: &[Model]) -> Result<()> {
    if let Some(quantized) = std::iter::once(base).chain(others).find(|m| m.quantization.is_some())
    {
        return Err(Error::new(Kind::Unsupported, "a quantized model can't be upcycled")
            .file(&quantized.config_file)
            .remedy("start from the unquantized checkpoint"));
    }
    let wanted = base.declare()?.tensors;
    for other in others {
        let refuse = |what: String, tensor: Option<&str>| {
            let error = Error::new(Kind::Usage, what).file(&other.config_file);
            let error = if let Some(tensor) = tensor { error.tensor(tensor) } else { error };
            Err(error.remedy("give models of one architecture, fine-tuned from one base"))
        };
        if other.family.model_type != base.family.model_type {
            let (theirs, ours) = (&other.family.model_type, &base.family.model_type);
            return refuse(format!("a {theirs} model can't be an expert of a {ours} model"), None);
        }
        let found = other.declare()?.tensors;
        for ((name, ours), (theirs_name, theirs)) in wanted.iter().zip(&found) {
            if name != theirs_name {
                return refuse(
                    format!("this model has {theirs_name} where the base has {name}"),
                    Some(name),
                );
            }
            if (ours.shape(), ours.dtype()) != (theirs.shape(), theirs.dtype()) {
                let of = |w: &moe_model::Weight| format!("{:?} {}", w.shape(), w.dtype());
                return refuse(
                    format!("this model has {}, the base {}", of(theirs), of(ours)),
                    Some(name),
                );
            }
        }
        if wanted.len() != found.len() {
            return refuse(
                format!("this model has {} tensors, the base {}", found.len(), wanted.len()),
                None,
            );
        }
        if (other.heads, other.kv_heads) != (base.heads, base.kv_heads) {
            return refuse("this model has other attention heads than the base".into(), None);
        }
    }
    Ok(())
}

impl UpcycleOptions {
    pub(super) fn has_surveyed_router(&self) -> bool {
        self.router == RouterInit::Activations
    }
}
