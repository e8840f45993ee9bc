//! Checks before any weight is read.

mod target;

use moe_model::Result;

pub(super) use target::{layers, models, normalize, shared, target};

use super::options::{survey_tokens, window};
use super::{Init, PartitionBy, Rest, RouterInit, ScalePlacement, UpcycleOptions};
use crate::calibrate::short;
use crate::usage::{idle, refuse_unused, usage};

/// The routers that --router-std is for, and those that --router-entropy is for.
const DRAWN_ROUTERS: &str = "--router normal, zeros or orthogonal";
const SURVEYED_ROUTERS: &str = "--router kmeans, prompts, cheap-embed or activations";

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
            return Err(usage(
                &["--init", "--granularity", "--expert-model", "--scale-placement"],
                "--init partition deals out the neurons of the one dense network, each to one expert",
                "leave out --granularity, --expert-model and --scale-placement",
            ));
        }
        self.check_idle()?;
        self.check_texts()
    }

    /// Refuses options that would be ignored.
    fn check_idle(&self) -> Result<()> {
        match self.idle().into_iter().find(|(is_idle, ..)| *is_idle) {
            None => Ok(()),
            Some((_, option, wanted)) => {
                // Two of them name an option with its value; the key is the option alone.
                let key = option.split(' ').next().unwrap_or(option);
                let remedy = format!("give {wanted}, or leave {option} out");
                Err(idle(&[key], format!("{option} goes with {wanted}"), remedy))
            }
        }
    }

    /// For each option that needs others: whether it is given without them, its name, and theirs.
    fn idle(&self) -> [(bool, &'static str, &'static str); 9] {
        let partition = self.init == Init::Partition;
        let is_surveyed = self.router.is_surveyed();
        let averages_base = self.rest == Rest::Average && self.models.is_empty();
        let has_drop = self.drop_fraction != 0.5;
        let has_fraction = self.noise_fraction != 1.0;
        let by_activations = self.router == RouterInit::Activations;
        let sets_by_others = self.partition_by != PartitionBy::Activations;
        let has_partition_by = self.partition_by != PartitionBy::Weights;
        let activations = "--router activations";
        [
            (averages_base, "--rest average", "--expert-model"),
            (has_drop && self.init != Init::Drop, "--drop-fraction", "--init drop"),
            (has_fraction && self.noise_std == 0.0, "--noise-fraction", "--noise-std above 0"),
            (self.router_std.is_some() && is_surveyed, "--router-std", DRAWN_ROUTERS),
            (by_activations && !partition, activations, "--init partition"),
            (self.shared_width.is_some() && !partition, "--shared-width", "--init partition"),
            (has_partition_by && !partition, "--partition-by", "--init partition"),
            (by_activations && sets_by_others, activations, "--partition-by activations"),
            (self.router_entropy != 0.9 && !is_surveyed, "--router-entropy", SURVEYED_ROUTERS),
        ]
    }

    fn check_counts(&self) -> Result<()> {
        let Self { experts, top_k, .. } = *self;
        let numbers = [("--experts", experts), ("--top-k", top_k)];
        if let Some((option, _)) = numbers.into_iter().find(|(_, number)| *number == 0) {
            let what = "an MoE needs at least one expert and a top-k of at least one";
            return Err(usage(&[option], what, "raise --experts or --top-k"));
        }
        if experts > 65_536 {
            return Err(usage(
                &["--experts"],
                format!("--experts {experts} is too many"),
                "give at most 65536",
            ));
        }
        if top_k > experts {
            return Err(usage(
                &["--top-k", "--experts"],
                format!("top-k {top_k} is more than the {experts} experts"),
                "lower --top-k or raise --experts",
            ));
        }
        self.check_shards()?;
        if self.shared_experts == 0 || self.shared_experts > 1024 {
            let what = format!("--shared-experts {} is out of range", self.shared_experts);
            return Err(usage(
                &["--shared-experts"],
                what,
                "give 1 to 1024; --shared-fraction 0 silences it",
            ));
        }
        self.check_dealt_out()
    }

    /// Refuses numbers of experts and top-k that aren't whole networks of --granularity shards.
    fn check_shards(&self) -> Result<()> {
        let Self { experts, top_k, granularity, .. } = *self;
        if granularity == 0 {
            return Err(usage(
                &["--granularity"],
                "--granularity 0 leaves no shard",
                "give at least 1",
            ));
        }
        if experts.is_multiple_of(granularity) && top_k.is_multiple_of(granularity) {
            return Ok(());
        }
        let what = format!(
            "--experts {experts} and --top-k {top_k} count shards: each is a multiple of --granularity {granularity}"
        );
        let [experts, top_k] = [experts, top_k].map(|n| n.div_ceil(granularity) * granularity);
        Err(usage(
            &["--experts", "--top-k", "--granularity"],
            what,
            format!("give --experts {experts} --top-k {top_k}, say"),
        ))
    }

    /// Refuses experts that can't be made in equal numbers of the models given.
    fn check_dealt_out(&self) -> Result<()> {
        let count = self.models.len();
        let rows = self.router_rows();
        if count == 0 || rows.is_multiple_of(count) {
            return Ok(());
        }
        Err(usage(
            &["--experts", "--expert-model"],
            format!("{rows} experts can't be dealt out evenly to {count} models"),
            format!("give --experts {}, one for each --expert-model", count * self.granularity),
        ))
    }

    fn check_numbers(&self) -> Result<()> {
        self.check_shares()?;
        self.check_deviations()?;
        if self.data_tokens < 2 {
            return Err(usage(
                &["--data-tokens"],
                format!("--data-tokens {} leaves nothing to learn from", self.data_tokens),
                "give some thousands, such as 65536",
            ));
        }
        Ok(())
    }

    /// Refuses shares out of range, and shares of 0 that leave nothing of what is asked for.
    fn check_shares(&self) -> Result<()> {
        for (option, share) in [
            ("--noise-fraction", self.noise_fraction),
            ("--shared-fraction", self.shared_fraction),
            ("--drop-fraction", self.drop_fraction),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let what = format!("{option} {share} is not a share");
                return Err(usage(&[option], what, "give a number from 0 to 1, such as 0.5"));
            }
        }
        if self.noise_std > 0.0 && self.noise_fraction == 0.0 {
            let remedy = "give a share above 0, or leave --noise-std out";
            return Err(usage(&["--noise-fraction"], "--noise-fraction 0 adds no noise", remedy));
        }
        if self.init == Init::Drop && self.drop_fraction == 0.0 {
            let remedy = "give a share above 0, or leave --init drop out";
            return Err(usage(
                &["--drop-fraction"],
                "--drop-fraction 0 draws nothing anew",
                remedy,
            ));
        }
        if !(0.0..1.0).contains(&self.router_entropy) {
            return Err(usage(
                &["--router-entropy"],
                format!("--router-entropy {} is not below 1", self.router_entropy),
                "give a share of the maximum entropy, such as 0.9, or 0 to leave rows unscaled",
            ));
        }
        Ok(())
    }

    /// Refuses standard deviations out of range, and rows of a router that can't tell shards apart.
    fn check_deviations(&self) -> Result<()> {
        for (option, std) in
            [("--noise-std", Some(self.noise_std)), ("--router-std", self.router_std)]
        {
            if let Some(std) = std.filter(|std| !(0.0..=1e6).contains(std)) {
                let what = format!("{option} {} is not a standard deviation", short(std));
                return Err(usage(&[option], what, "give a number from 0 to 1e6, such as 0.02"));
            }
        }
        if self.router_std() == 0.0
            && !self.router.is_surveyed()
            && self.granularity > 1
            && self.top_k < self.experts
        {
            return Err(usage(
                &["--router-std", "--router"],
                "all rows of a zero router are equal, so a token may be given one shard twice and another never",
                "raise --router-std, or leave it out",
            ));
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
        self.check_data()?;
        if let Some(spec) = self.data.iter().find(|spec| spec.weight.is_some()) {
            let what = "a weight has no meaning here: every token counts alike";
            let remedy = "leave @WEIGHT out; --data-tokens limits each label";
            return Err(usage(&["--data"], what, remedy).file(&spec.path));
        }
        match (self.router.takes_prompts(), &self.prompts) {
            (true, None) => Err(usage(
                &["--router", "--prompts"],
                "this router is made of prompts",
                "give --prompts PROMPTS.json",
            )),
            (false, Some(_)) => Err(idle(
                &["--prompts"],
                "no option here uses --prompts",
                "leave it out, or give --router prompts",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses --data that nothing reads, and routers or partitions without the --data they need.
    fn check_data(&self) -> Result<()> {
        let wants_data = matches!(self.router, RouterInit::Kmeans | RouterInit::Activations)
            || (self.init == Init::Partition && self.partition_by == PartitionBy::Activations);
        match (wants_data, self.data.is_empty()) {
            (true, true) => Err(usage(
                &["--router", "--partition-by", "--data"],
                "this router or partition is found on text, and none is given",
                "give --data",
            )),
            (false, false) => {
                let remedy = match self.init {
                    Init::Partition => {
                        "leave it out, or give --partition-by activations or --router activations"
                    }
                    _ => "leave it out, or give --router kmeans",
                };
                Err(idle(&["--data"], "no option here uses --data", remedy))
            }
            (false, true) => self.check_text_used(),
            (true, false) => Ok(()),
        }
    }
}

impl UpcycleOptions {
    pub(super) fn has_surveyed_router(&self) -> bool {
        self.router == RouterInit::Activations
    }
}
