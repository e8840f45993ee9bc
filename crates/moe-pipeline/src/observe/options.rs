//! Options of `observe`.

use std::path::PathBuf;

use moe_checkpoint::{Error, Kind, Result};
use moe_passes::{CalibrationOptions, refuse_unused};
use serde::{Deserialize, Serialize};

/// Options of `observe`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObserveOptions {
    /// Add these statistics of the same model; repeat it for several. Without --data they are added
    /// up.
    #[arg(long, value_name = "STATS")]
    #[serde(default)]
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub add: Vec<PathBuf>,

    /// Don't measure what leaving each expert out does, which makes a run take about (top-k + 1) /
    /// top-k times as long.
    #[arg(long)]
    #[serde(default)]
    pub no_left_out: bool,

    /// Run all experts on every N-th token, for the mean outputs that merge --algorithm hc-smoe goes
    /// by; 0 for none.
    #[arg(long, value_name = "N", default_value_t)]
    #[serde(default)]
    pub all_experts_every: usize,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub calibration: CalibrationOptions,
}

impl ObserveOptions {
    /// Refuses options that leave nothing to do, and options of a sweep where there is none.
    ///
    /// # Errors
    /// [`Kind::Usage`].
    pub fn check(&self) -> Result<()> {
        if !self.calibration.data.is_empty() {
            return self.calibration.check();
        }
        self.check_any()?;
        let of_sweep = [
            ("--no-left-out", self.no_left_out),
            ("--all-experts-every", self.all_experts_every != 0),
            ("--seed", self.calibration.seed != 0),
        ];
        let what = "says what a sweep over --data looks at; statistics to --add are finished";
        refuse_unused(of_sweep, what, "give --data TEXT")?;
        self.calibration.check_used(false)
    }

    /// Refuses options that leave nothing to observe.
    pub(super) fn check_any(&self) -> Result<()> {
        if self.calibration.data.is_empty() && self.add.is_empty() {
            return Err(Error::new(Kind::Usage, "there is nothing to observe")
                .options(&["--data", "--add"])
                .remedy("give --data TEXT, or --add STATS"));
        }
        Ok(())
    }
}
