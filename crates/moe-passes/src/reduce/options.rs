//! Options that pruning and merging share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use moe_model::{Error, GroupScore, Model, Moe, Result};
use serde::{Deserialize, Serialize};

use super::budget::{Masses, check_padding, equal_mass, least_uniform, masses};
use super::{Needs, expert_count};
use crate::calibrate::{
    CalibrationOptions, HeldOut, HeldOutOptions, check_baseline_used, check_windows,
};
use crate::pass::{Inputs, Sources};
use crate::usage::{idle, usage};

/// The number of experts that are left, and the data that decides which.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReduceOptions {
    /// Experts that each layer keeps.
    #[arg(long, value_name = "N", conflicts_with = "keep")]
    #[serde(default)]
    pub experts: Option<usize>,

    /// Share of each layer's experts that is kept.
    #[arg(long, value_name = "SHARE")]
    #[serde(default)]
    pub keep: Option<f64>,

    /// Keep as few experts as let every layer keep this share of Σ gate × norm of output; needs
    /// --stats. Every layer keeps the same number, as loaders want it: that of the layer which
    /// needs most.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["experts", "keep"])]
    #[serde(default)]
    pub keep_mass: Option<f64>,

    /// Distribute --experts × layers so that every layer keeps the same share of that sum, and pad
    /// layers that keep fewer with experts that are never selected; needs --stats and routers with
    /// an expert correction bias.
    #[arg(long, conflicts_with = "keep_mass")]
    #[serde(default)]
    pub equal_mass: bool,

    /// Round the number of experts up to a multiple of this, such as an expert-parallel size.
    #[arg(long, value_name = "N", default_value_t = default_divisible_by())]
    #[serde(default = "default_divisible_by")]
    pub divisible_by: usize,

    /// Statistics that observe has written of this very model: decides on the original. With --data
    /// instead, each layer is decided on what reaches it through the converted layers before it.
    #[arg(long, value_name = "STATS", help_heading = "Calibration")]
    #[serde(default)]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub stats: Option<PathBuf>,

    /// Allow super experts (2507.23279) to be removed: those whose largest output is above the
    /// 99.5th percentile and a tenth of the largest in the model. Without this they are always
    /// kept.
    #[arg(long)]
    #[serde(default)]
    pub no_super_expert_guard: bool,

    /// Layers for multi-token prediction: prune gives them as many experts as the others, ranked by
    /// their weights; drop leaves them out.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub mtp: MtpChoice,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub measuring: HeldOutOptions,

    /// Don't measure the baseline, a random choice of experts, for comparison.
    #[arg(long, help_heading = "Measuring")]
    #[serde(default)]
    pub no_baseline: bool,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub calibration: CalibrationOptions,
}

/// The treatment of layers for multi-token prediction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MtpChoice {
    /// Their experts are ranked by their weights, and as many stay as in the other layers.
    #[default]
    Prune,
    /// They are left out.
    Drop,
}

/// Refuses a number of experts that doesn't fit a router with groups of experts.
pub(crate) fn check_groups(index: usize, moe: &Moe, after: usize) -> Result<()> {
    let Some(rule) = GroupRule::of(moe) else { return Ok(()) };
    let Some(problem) = rule.problem(after) else { return Ok(()) };
    let all = moe.experts.len();
    let remedy = match rule.fitting(all).as_slice() {
        [] => {
            let before = all / rule.count;
            format!(
                "keep all {all} experts (--experts {all}): groups of {before} can't have fewer here"
            )
        }
        [count] => format!("give --experts {count}"),
        counts => format!("give --experts as one of {}", counts.join(", ")),
    };
    Err(usage(&HOW_MANY, format!("{problem} (layer {index})"), remedy))
}

/// What a router with groups of experts asks of their number.
struct GroupRule {
    /// The number of groups.
    count: usize,
    /// The number of groups that a token's experts come from.
    kept: usize,
    /// The number of experts that a group is ranked by.
    least: usize,
    top_k: usize,
}

impl GroupRule {
    /// The rule of the router of `moe`; None where it has no groups.
    fn of(moe: &Moe) -> Option<Self> {
        let groups = moe.router.groups?;
        let least = match groups.score {
            GroupScore::Max => 1,
            GroupScore::TopTwoSum => 2,
        };
        Some(Self { count: groups.count, kept: groups.kept, least, top_k: moe.router.top_k })
    }

    /// Why `after` experts don't fit; None where they do.
    fn problem(&self, after: usize) -> Option<String> {
        let Self { count, kept, least, .. } = *self;
        let (each, rest) = (after / count, after % count);
        if rest != 0 {
            return Some(format!(
                "{after} experts can't be shared out evenly among {count} groups"
            ));
        }
        if each < least {
            return Some(format!(
                "{each} experts in a group are fewer than the {least} that it is ranked by"
            ));
        }
        let of_token = each * kept;
        (of_token < self.top_k).then(|| {
            format!(
                "the {kept} groups of a token would have {of_token} experts, fewer than its top-k"
            )
        })
    }

    /// The numbers of experts below `before` that fit.
    fn fitting(&self, before: usize) -> Vec<String> {
        let fits = |each: &usize| *each >= self.least && each * self.kept >= self.top_k;
        let each = (1..before / self.count).filter(fits);
        each.map(|each| (each * self.count).to_string()).collect()
    }
}

/// The options that say how many experts stay.
const HOW_MANY: [&str; 3] = ["--experts", "--keep", "--keep-mass"];

fn no_number() -> Error {
    let what = "nothing says how many experts stay";
    usage(&HOW_MANY, what, "give --experts N or --keep SHARE")
}

/// Refuses a share that is not above 0 and at most 1.
fn check_share(option: &str, share: Option<f64>) -> Result<()> {
    match share {
        Some(share) if !(share > 0.0 && share <= 1.0) => {
            let remedy = format!("give a number above 0, at most 1{}", of_percent(share));
            Err(usage(&[option], format!("{option} {share} is not a share"), remedy))
        }
        _ => Ok(()),
    }
}

/// For a remedy: the share that a number in per cent may have meant; else empty.
fn of_percent(share: f64) -> String {
    if (2.0..=100.0).contains(&share) {
        format!(": {} for {share} %", share / 100.0)
    } else {
        String::new()
    }
}

pub(crate) fn default_divisible_by() -> usize {
    1
}

/// The numbers of experts before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Size {
    pub before: usize,
    pub after: usize,
    /// How many of its own experts each layer keeps. Layers that keep fewer than `after` are
    /// padded.
    pub counts: BTreeMap<usize, usize>,
}

impl Size {
    /// Keeps `after` experts in each mixture of `model`.
    fn uniform(model: &Model, before: usize, after: usize) -> Self {
        Self { before, after, counts: model.moes().map(|(index, _)| (index, after)).collect() }
    }

    /// Whether every layer keeps all experts.
    pub fn keeps_all(&self) -> bool {
        self.after == self.before
    }
}

/// The largest top-k of any layer.
fn greatest_top_k(model: &Model) -> usize {
    model.moes().map(|(_, moe)| moe.router.top_k).max().unwrap_or(1)
}

impl ReduceOptions {
    /// The number of experts of each layer after the pass.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for a number that doesn't suit this model.
    pub(crate) fn size(&self, sources: &Sources<'_>) -> Result<Size> {
        let model = sources.model;
        let size = self.uniform(sources)?;
        if !self.equal_mass {
            return Ok(size);
        }
        model.moes().try_for_each(|(index, moe)| check_padding(index, moe))?;
        let total = size.after * model.moes().count();
        let counts = equal_mass(&self.masses(sources)?, greatest_top_k(model), total);
        let most = counts.values().copied().max().unwrap_or(size.after);
        // All layers are padded to one number, and --divisible-by is about that number.
        let after = most.next_multiple_of(self.divisible_by);
        if after > size.before {
            let (each, before) = (self.divisible_by, size.before);
            let what = format!(
                "no multiple of --divisible-by {each} is from {most}, which a layer keeps, to {before}"
            );
            let remedy = "give a smaller --divisible-by, or fewer --experts";
            return Err(usage(&["--divisible-by"], what, remedy));
        }
        Ok(Size { after, counts, ..size })
    }

    fn masses(&self, sources: &Sources<'_>) -> Result<Masses> {
        match sources.statistics {
            Some(statistics) => masses(sources.model, statistics),
            None => Err(usage(
                &["--keep-mass", "--equal-mass"],
                "--keep-mass and --equal-mass look at all layers before any is converted",
                "give --stats STATS that observe has written",
            )),
        }
    }

    /// Refuses numbers that suit no model, and fewer or more than one option for how many experts
    /// stay.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub(crate) fn check_numbers(&self) -> Result<()> {
        check_share("--keep", self.keep)?;
        check_share("--keep-mass", self.keep_mass)?;
        if self.experts == Some(0) {
            return Err(usage(
                &["--experts"],
                "--experts 0 leaves no expert",
                "give a number from the model's top-k to its experts; inspect shows both",
            ));
        }
        if self.divisible_by == 0 {
            return Err(usage(
                &["--divisible-by"],
                "--divisible-by 0 divides nothing",
                "give at least 1",
            ));
        }
        match [self.experts.is_some(), self.keep.is_some(), self.keep_mass.is_some()] {
            [false, false, false] => Err(no_number()),
            [true, false, false] | [false, true, false] | [false, false, true] => Ok(()),
            _ => Err(usage(
                &HOW_MANY,
                "--experts, --keep and --keep-mass each say how many experts stay",
                "give one of the three",
            )),
        }
    }

    /// The number of experts, where all layers keep the same.
    fn uniform(&self, sources: &Sources<'_>) -> Result<Size> {
        let model = sources.model;
        let before = expert_count(model)?;
        self.check_numbers()?;
        let top_k = greatest_top_k(model);
        let after = self.rounded_up(self.asked(before, sources)?, top_k, before)?;
        model.moes().try_for_each(|(index, moe)| {
            let wanted = moe.router.top_k;
            if after >= wanted {
                return Ok(());
            }
            let what = format!(
                "each token of layer {index} goes to {wanted} experts, more than the {after} that would stay"
            );
            let remedy = format!("keep {top_k} experts or more, of {before}");
            Err(usage(&HOW_MANY, what, remedy))
        })?;
        model.moes().try_for_each(|(index, moe)| check_groups(index, moe, after))?;
        Ok(Size::uniform(model, before, after))
    }

    /// The number of experts `asked` for, rounded up to a multiple of --divisible-by. Refuses more
    /// than the `before` that there are.
    fn rounded_up(&self, asked: usize, top_k: usize, before: usize) -> Result<usize> {
        let after = asked.next_multiple_of(self.divisible_by);
        if after > before && asked <= before {
            let each = self.divisible_by;
            let what = format!(
                "no multiple of --divisible-by {each} is from {asked} to {before}, the number of experts"
            );
            return Err(usage(&["--divisible-by"], what, self.divisor_remedy(top_k, before)));
        }
        if after > before || after == 0 {
            let what = format!("a layer has {before} experts, so that {after} can't be kept");
            let remedy = format!("keep {top_k} to {before} experts: each token goes to {top_k}");
            return Err(usage(&HOW_MANY, what, remedy));
        }
        Ok(after)
    }

    /// The number of experts that options ask for, of `before` in each layer.
    fn asked(&self, before: usize, sources: &Sources<'_>) -> Result<usize> {
        match (self.experts, self.keep, self.keep_mass) {
            (Some(experts), ..) => Ok(experts),
            (None, Some(keep), _) => Ok(((before as f64 * keep).round() as usize).max(1)),
            (None, None, Some(share)) => {
                let least = least_uniform(&self.masses(sources)?, share);
                Ok(least.max(greatest_top_k(sources.model)))
            }
            (None, None, None) => Err(no_number()),
        }
    }

    /// The remedy where rounding up to a multiple of --divisible-by gives no number from `top_k` to
    /// `before`.
    fn divisor_remedy(&self, top_k: usize, before: usize) -> String {
        let greatest = before / self.divisible_by * self.divisible_by;
        if greatest >= top_k.max(1) {
            format!("give --experts {greatest} or fewer, or a smaller --divisible-by")
        } else {
            format!("give --divisible-by {before} or less")
        }
    }

    /// A warning where all experts stay, so that the conversion has no use; else None.
    pub(crate) fn keeps_all(&self, size: &Size) -> Option<String> {
        let all = size.before;
        let asked = match self.keep {
            Some(1.0) => {
                "--keep 1 is a share, all of them; for one expert a layer, give --experts 1"
                    .to_owned()
            }
            _ if self.divisible_by > 1 => {
                format!("lower --divisible-by {}, or the number of experts", self.divisible_by)
            }
            _ => format!("ask for fewer than {all}"),
        };
        size.keeps_all().then(|| format!("all {all} experts of each layer stay: {asked}"))
    }

    /// Files that the pass reads.
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            statistics: self.stats.as_deref(),
            ..Inputs::of_text(&self.calibration.data, self.held_out())
        }
    }

    /// Refuses windows and limits that leave nothing to measure on.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`].
    pub(crate) fn check_measuring(&self) -> Result<()> {
        check_windows(self.calibration.sequence_length, None)?;
        self.measuring.check()?;
        check_baseline_used(self.no_baseline, &self.measuring)
    }

    /// The text that the result is measured on; None without --held-out.
    pub(crate) fn held_out(&self) -> Option<HeldOut<'_>> {
        self.measuring.text(&self.calibration)
    }

    /// Refuses sources that contradict each other, or that don't give a method with these `needs`
    /// its data. `option` is the option that chooses the method.
    pub(crate) fn check_sources(&self, option: &str, needs: Needs) -> Result<()> {
        self.calibration.check()?;
        self.check_measuring()?;
        match (self.calibration.data.is_empty(), self.stats.is_some(), needs.sums || needs.inputs) {
            (false, true, _) => Err(usage(
                &["--stats", "--data"],
                "--stats decides on the original model, --data layer by layer on what the converted layers before give",
                "give one of the two",
            )),
            (true, false, true) => Err(usage(
                &["--data", "--stats"],
                "nothing says which experts matter",
                "give --data TEXT, or --stats STATS that observe has written",
            )),
            (false, _, false) | (_, true, false) => {
                let remedy = format!("leave --data and --stats out, or choose another {option}");
                Err(idle(
                    &["--data", "--stats"],
                    format!("this {option} doesn't look at data"),
                    remedy,
                ))
            }
            (true, true, true) if needs.inputs => Err(usage(
                &["--stats", "--data"],
                "this method looks at tokens, which statistics don't hold",
                "give --data instead of --stats",
            )),
            _ => self.calibration.check_used(self.measuring.is_given()),
        }
    }
}
