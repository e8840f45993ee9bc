//! Options of `merge`.

use std::sync::Arc;

use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};

use super::algorithm::MergeAlgorithm;
use super::parameters::{Grouping, Parameters};
use crate::pass::Sources;
use crate::reduce::{Method, ReduceOptions, Size};
use crate::usage::{refuse_unused, usage};

/// The algorithms that `--grouping` and `--group-cap` are for.
const GROUPS: &[MergeAlgorithm] = &[MergeAlgorithm::Ream];
/// The algorithms that `--dern-threshold` is for.
const MOVES_NEURONS: &[MergeAlgorithm] = &[MergeAlgorithm::Dern];
/// The algorithms that `--all-experts-every` is for.
const RUNS_ALL: &[MergeAlgorithm] = &[MergeAlgorithm::HcSmoe, MergeAlgorithm::Average];

/// Options of `merge`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MergeOptions {
    /// Algorithm that groups experts and makes one of each group.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub algorithm: MergeAlgorithm,

    /// Rule by which experts join centroids, for ream [default: nearest].
    #[arg(long, value_enum, value_name = "HOW")]
    #[serde(default)]
    pub grouping: Option<Grouping>,

    /// Maximum number of experts of a group, for ream [default: 16].
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub group_cap: Option<usize>,

    /// Minimum cosine at which a dropped neuron joins a kept one, for dern; below, it is lost
    /// [default: 0.3].
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    #[serde(default)]
    pub dern_threshold: Option<f64>,

    /// Run all experts on every N-th token, for the mean outputs that hc-smoe and average go by.
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub all_experts_every: Option<usize>,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub reduce: ReduceOptions,
}

impl MergeOptions {
    /// The algorithm that is asked for, with its parameters.
    pub(super) fn method(&self) -> Arc<dyn Method> {
        self.algorithm.method(self.parameters())
    }

    fn parameters(&self) -> Parameters {
        let default = Parameters::default();
        Parameters {
            grouping: self.grouping.unwrap_or(default.grouping),
            group_cap: self.group_cap.unwrap_or(default.group_cap),
            dern_threshold: self.dern_threshold.unwrap_or(default.dern_threshold),
            sample_every: self.all_experts_every.unwrap_or(default.sample_every),
        }
    }

    /// The same options with the parameters that the algorithm reads, given or not.
    pub(super) fn spelled_out(&self) -> Self {
        let Parameters { grouping, group_cap, dern_threshold, sample_every } = self.parameters();
        let groups = GROUPS.contains(&self.algorithm);
        let moves_neurons = MOVES_NEURONS.contains(&self.algorithm);
        let runs_all = RUNS_ALL.contains(&self.algorithm) && self.reduce.stats.is_none();
        Self {
            grouping: groups.then_some(grouping),
            group_cap: groups.then_some(group_cap),
            dern_threshold: moves_neurons.then_some(dern_threshold),
            all_experts_every: runs_all.then_some(sample_every),
            ..self.clone()
        }
    }

    /// Refuses options that can't work, before anything is read.
    pub(super) fn check(&self, sources: &Sources<'_>) -> Result<Size> {
        let model = sources.model;
        let size = self.reduce.size(sources)?;
        self.check_method()?;
        self.reduce.check_sources("--algorithm", self.method().needs())?;
        if self.algorithm == MergeAlgorithm::Ream {
            self.check_cap(model, &size)?;
        }
        check_plain(model)?;
        Ok(size)
    }

    /// Refuses options of other methods, and values without meaning.
    pub(super) fn check_method(&self) -> Result<()> {
        self.check_algorithm_used()?;
        let idle = self.all_experts_every.is_some() && self.reduce.stats.is_some();
        refuse_unused(
            [("--all-experts-every", idle)],
            "says what a sweep over --data looks at; these statistics are finished",
            "give it to observe",
        )?;
        if self.all_experts_every == Some(0) {
            return Err(usage(
                &["--all-experts-every"],
                "--all-experts-every 0 runs them on no token",
                "give at least 1",
            ));
        }
        if self.group_cap == Some(0) {
            let what = "--group-cap 0 lets no group have an expert";
            return Err(usage(&["--group-cap"], what, "give at least 1, or leave it out"));
        }
        if let Some(cosine) = self.dern_threshold.filter(|cosine| !(-1.0..=1.0).contains(cosine)) {
            let what = format!("--dern-threshold {cosine} is not a cosine");
            return Err(usage(&["--dern-threshold"], what, "give a number from -1 to 1"));
        }
        Ok(())
    }

    /// Refuses options of other algorithms.
    fn check_algorithm_used(&self) -> Result<()> {
        let runs_all = self.all_experts_every.is_some();
        let given = [
            ("--grouping", self.grouping.is_some(), GROUPS, "ream"),
            ("--group-cap", self.group_cap.is_some(), GROUPS, "ream"),
            ("--dern-threshold", self.dern_threshold.is_some(), MOVES_NEURONS, "dern"),
            ("--all-experts-every", runs_all, RUNS_ALL, "hc-smoe and average"),
        ];
        for (option, given, methods, names) in given {
            let is_idle = given && !methods.contains(&self.algorithm);
            let what = format!("is for --algorithm {names}");
            refuse_unused([(option, is_idle)], &what, "choose that algorithm")?;
        }
        Ok(())
    }

    fn check_cap(&self, model: &Model, size: &Size) -> Result<()> {
        let cap = self.parameters().group_cap;
        let least = size.before.div_ceil(size.after);
        if cap >= least {
            return Ok(());
        }
        let what =
            format!("{} groups of at most {cap} can't hold {} experts", size.after, size.before);
        Err(usage(
            &["--group-cap", "--experts", "--keep"],
            what,
            format!("give --group-cap {least} or more, or keep more experts"),
        )
        .file(&model.config_file))
    }
}

/// Refuses experts whose weights can't be added.
fn check_plain(model: &Model) -> Result<()> {
    let experts = model.moes().flat_map(|(_, moe)| &moe.experts);
    for linear in experts.flat_map(moe_model::Expert::linears) {
        let tensor = linear.weight.name();
        if linear.weight.scale().is_some() {
            let what = format!("experts in {} with scales can't be merged", linear.weight.dtype());
            return Err(Error::new(Kind::Unsupported, what)
                .tensor(tensor)
                .remedy("start from the unquantized checkpoint, or prune instead: that copies experts as they are"));
        }
        moe_forward::candle_dtype(&linear.weight)?;
        if let Some(bias) = &linear.bias {
            return Err(Error::new(Kind::Unsupported, "experts with biases can't be merged")
                .tensor(bias.name())
                .remedy("prune instead: that copies experts as they are"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args, ValueEnum};

    use super::*;
    use crate::merge::parameters::{DERN_THRESHOLD, GROUP_CAP};

    /// Options whose default is a constant of a method state it in their help.
    #[test]
    fn help_states_the_constants() {
        let command = MergeOptions::augment_args(clap::Command::new("merge"));
        let grouping = Grouping::default().to_possible_value().unwrap();
        for (option, default) in [
            ("group-cap", GROUP_CAP.to_string()),
            ("dern-threshold", DERN_THRESHOLD.to_string()),
            ("grouping", grouping.get_name().to_owned()),
        ] {
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(option)).unwrap();
            let help = arg.get_help().unwrap().to_string();
            assert!(help.contains(&format!("[default: {default}]")), "{option}: {help}");
        }
    }
}
