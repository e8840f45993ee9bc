//! Options that pruning and merging share.

use std::path::PathBuf;

use moe_model::{Error, Kind, Model, Result};
use serde::{Deserialize, Serialize};

use super::expert_count;
use crate::calibrate::CalibrationOptions;

/// How many experts are left, and from what that is decided.
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

    /// Round the number of experts up to a multiple of this, such as an expert-parallel size.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[serde(default = "one")]
    pub divisible_by: usize,

    /// Statistics that observe has written of this very model: decides on the original. With --data instead, each layer
    /// is decided on what reaches it through the converted layers before it.
    #[arg(long, value_name = "STATS", help_heading = "Calibration")]
    #[serde(default)]
    pub stats: Option<PathBuf>,

    /// Let super experts (2507.23279) go, too: those whose largest output is above the 99.5th percentile and a tenth of the
    /// greatest in the model. Without this they are always kept.
    #[arg(long)]
    #[serde(default)]
    pub no_super_expert_guard: bool,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub calibration: CalibrationOptions,
}

fn one() -> usize {
    1
}

/// How many experts are left of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub before: usize,
    pub after: usize,
}

impl ReduceOptions {
    /// How many experts each layer of `model` keeps.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a number that this model can't have.
    pub(crate) fn size(&self, model: &Model) -> Result<Size> {
        let before = expert_count(model)?;
        let usage = |what: String, remedy: &str| Err(Error::new(Kind::Usage, what).remedy(remedy.to_owned()));
        let asked = match (self.experts, self.keep) {
            (Some(experts), None) => experts,
            (None, Some(keep)) if keep > 0.0 && keep <= 1.0 => ((before as f64 * keep).round() as usize).max(1),
            (None, Some(keep)) => {
                return usage(format!("--keep {keep} is no share"), "give a number above 0, at most 1");
            }
            (None, None) => {
                return usage("nothing says how many experts stay".into(), "give --experts N or --keep SHARE");
            }
            (Some(_), Some(_)) => return usage("--experts and --keep say the same".into(), "give one of the two"),
        };
        if self.divisible_by == 0 {
            return usage("--divisible-by 0".into(), "give at least 1");
        }
        let after = asked.next_multiple_of(self.divisible_by);
        if after > before || after == 0 {
            return usage(
                format!("{after} experts can't be kept of {before}"),
                &format!("give --experts from the model's top-k to {before}"),
            );
        }
        for (index, moe) in model.moes() {
            if after < moe.router.top_k {
                return usage(
                    format!(
                        "{after} experts are fewer than the {} that each token of layer {index} goes to",
                        moe.router.top_k
                    ),
                    &format!("keep at least {}", moe.router.top_k),
                );
            }
        }
        Ok(Size { before, after })
    }

    /// Refuses a contradiction about what it is decided from; `needed` says whether anything is needed.
    pub(crate) fn check_sources(&self, needed: bool) -> Result<()> {
        let error = |what: &str, remedy: &str| Err(Error::new(Kind::Usage, what).remedy(remedy.to_owned()));
        match (self.calibration.data.is_empty(), self.stats.is_some(), needed) {
            (false, true, _) => error(
                "--stats decides on the original model, --data in sequence over converted layers",
                "give one of the two",
            ),
            (true, false, true) => error(
                "nothing says which experts matter",
                "give --data TEXT, or --stats STATS that observe has written",
            ),
            (false, _, false) | (_, true, false) => {
                error("this method looks at no data", "leave --data and --stats out, or choose another --method")
            }
            _ => Ok(()),
        }
    }
}
