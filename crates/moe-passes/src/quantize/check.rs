//! Checks of `quantize`'s options that need no model.

use moe_model::Result;

use super::options::{
    CalibrateOn, Format, Profile, QuantizeOptions, QuantizedPart, SolverChoice, default_act_order,
    default_damping, default_gate_power, default_group_size, default_hot_cap, default_pool_tokens,
    half,
};
use crate::calibrate::short;
use crate::usage::{idle, refuse_unused, usage};

/// The message about text for a solver that needs none.
const NO_DATA: &str = "rounding to nearest doesn't look at data";

impl QuantizeOptions {
    /// Refuses options that contradict each other, whatever the model.
    pub(super) fn check(&self) -> Result<()> {
        self.calibration.check()?;
        self.measuring.check()?;
        self.check_numbers()?;
        if let Some(target) = self.target_bits {
            self.check_target(target)?;
        }
        if self.is_float() {
            self.check_float()?;
        }
        if self.solver() == SolverChoice::Rtn && !self.pool.is_empty() {
            return Err(idle(&["--pool"], NO_DATA, "leave --pool out"));
        }
        self.check_used()?;
        self.check_data()
    }

    /// Refuses numbers out of range.
    fn check_numbers(&self) -> Result<()> {
        if self.group_size != -1 && self.group_size < 1 {
            let what = format!("groups of {} columns", self.group_size);
            return Err(usage(
                &["--group-size"],
                what,
                "give --group-size 32, 64 or 128, or -1 for whole rows",
            ));
        }
        for (option, value, example) in [
            ("--top-up-below", self.top_up_below, "0.5"),
            ("--shrinkage", self.shrinkage, "0.5"),
            ("--expert-damping", self.expert_damping, "0.5"),
            ("--hot-cap", self.hot_cap, "4, or 0 for no cap"),
        ] {
            if !(0.0..=1e6).contains(&value) {
                let what = format!("{option} {} is not from 0 to 1e6", short(value));
                let remedy = format!("give a number from 0 to 1e6, such as {example}");
                return Err(usage(&[option], what, remedy));
            }
        }
        if !(self.damping > 0.0 && self.damping <= 1.0) {
            let what = format!("--damping {} is not a share", short(self.damping));
            return Err(usage(&["--damping"], what, "give a share above 0, up to 1, such as 0.01"));
        }
        if self.gate_power > 2 {
            let what = format!("--gate-power {} is not from 0 to 2", self.gate_power);
            return Err(usage(&["--gate-power"], what, "give 0, 1 or 2"));
        }
        Ok(())
    }

    /// Refuses text that nothing looks at, and options that look at text where there is none.
    fn check_data(&self) -> Result<()> {
        match (self.solver(), self.calibration.data.is_empty()) {
            (SolverChoice::Gptq, true) => Err(usage(
                &["--data", "--solver"],
                "GPTQ looks at what reaches each expert",
                "give --data TEXT, or --solver rtn, which needs none and is worse",
            )),
            (SolverChoice::Rtn, true) if self.target_bits.is_some() => Err(usage(
                &["--target-bits", "--data"],
                "--target-bits chooses bit widths by what they cost on text",
                "give --data TEXT",
            )),
            (SolverChoice::Rtn, false) if self.target_bits.is_none() => {
                let remedy = "leave --data out, or give an integer --scheme with --solver gptq";
                Err(idle(&["--data"], NO_DATA, remedy))
            }
            _ => self.calibration.check_used(self.measuring.is_given()),
        }
    }

    /// Refuses options of integers with a scheme of floats.
    fn check_float(&self) -> Result<()> {
        if self.asymmetric {
            return Err(idle(
                &["--asymmetric"],
                "e4m3 has no zero points",
                "leave --asymmetric out",
            ));
        }
        if self.solver == Some(SolverChoice::Gptq) {
            return Err(idle(
                &["--solver"],
                "e4m3 is rounded to nearest, not chosen by GPTQ",
                "leave --solver out, or give an integer --scheme such as w8a16",
            ));
        }
        if self.group_size != default_group_size() {
            let what = "--group-size is for integers: e4m3 has a scale for each row, or for each block of 128 × 128";
            let remedy = "leave --group-size out, or give an integer --scheme such as w8a16";
            return Err(idle(&["--group-size"], what, remedy));
        }
        Ok(())
    }

    /// Refuses options without effect, as far as their values show that they were given: a user who
    /// gives one expects an effect.
    fn check_used(&self) -> Result<()> {
        if self.solver() != SolverChoice::Gptq {
            self.check_gptq_unused()?;
        }
        if self.calibrate_on() != CalibrateOn::PerExpert {
            refuse_unused(
                [
                    ("--shrinkage", self.shrinkage != half()),
                    ("--expert-damping", self.expert_damping != half()),
                ],
                "shrinks the Hessians of --calibrate-on per-expert",
                "give --calibrate-on per-expert",
            )?;
        }
        if self.target_bits.is_none() && self.profile != Profile::default() {
            let what = "--profile says which bit widths --target-bits chooses from, and there is no --target-bits";
            let remedy = "give --target-bits BITS in place of --scheme, or leave --profile out";
            return Err(idle(&["--profile"], what, remedy));
        }
        self.check_samples_used()?;
        self.check_pool_used()
    }

    /// Refuses options of GPTQ where matrices are rounded to nearest.
    fn check_gptq_unused(&self) -> Result<()> {
        let gptq_only = [
            ("--calibrate-on", self.calibrate_on() != CalibrateOn::default()),
            ("--per-expert", self.per_expert),
            ("--top-up-below", self.top_up_below != half()),
            ("--gate-power", self.gate_power != default_gate_power()),
            ("--shrinkage", self.shrinkage != half()),
            ("--expert-damping", self.expert_damping != half()),
            ("--hot-cap", self.hot_cap != default_hot_cap()),
            ("--damping", self.damping != default_damping()),
            ("--act-order", self.act_order != default_act_order()),
            ("--clip-search", self.clip_search),
        ];
        let what = "is for GPTQ, and this rounds to nearest";
        let or = "give --solver gptq with an integer --scheme and --data TEXT";
        refuse_unused(gptq_only, what, or)?;
        refuse_unused(
            [("--seed", self.calibration.data.is_empty() && self.calibration.seed != 0)],
            "is for what is drawn, and rounding to nearest draws nothing",
            "give --solver gptq and --data TEXT",
        )
    }

    /// Refuses options of --pool where there is none, and a pool that nothing is taken of.
    fn check_pool_used(&self) -> Result<()> {
        let of_pool = self.pool_added_tokens.is_some() || self.pool_tokens != default_pool_tokens();
        if of_pool && self.pool.is_empty() {
            let what = "--pool-tokens and --pool-added-tokens say how --pool is used";
            return Err(idle(
                &["--pool-tokens", "--pool-added-tokens"],
                what,
                "give --pool TEXT, or leave them out",
            ));
        }
        if self.pool_added_tokens == Some(0) {
            let what = "--pool-added-tokens 0 takes nothing of --pool";
            return Err(usage(
                &["--pool-added-tokens", "--pool"],
                what,
                "give at least 1, or leave --pool out",
            ));
        }
        Ok(())
    }

    /// Refuses numbers that --calibrate-on doesn't use.
    fn check_samples_used(&self) -> Result<()> {
        let all = self.calibrate_on() == CalibrateOn::AllExperts;
        // The pool, too, is searched for tokens of experts that have too few.
        let tops_up = self.calibrate_on().tops_up() || !self.pool.is_empty();
        let or = "give --calibrate-on per-expert";
        refuse_unused(
            [("--top-up-below", self.top_up_below != half() && !tops_up)],
            "is about experts that are topped up, and --calibrate-on tops none up",
            or,
        )?;
        let own = [
            ("--hot-cap", self.hot_cap != default_hot_cap() && all),
            ("--gate-power", self.gate_power != default_gate_power() && all),
        ];
        refuse_unused(
            own,
            "is about an expert's own tokens, and --calibrate-on all-experts gives it all",
            or,
        )
    }

    fn check_target(&self, target: f64) -> Result<()> {
        if self.scheme.is_some() {
            return Err(usage(
                &["--target-bits", "--scheme"],
                "--target-bits takes the place of --scheme",
                "give one of them",
            ));
        }
        if self.format.is_some_and(|format| format != Format::CompressedTensors) {
            return Err(usage(
                &["--format", "--target-bits"],
                "only compressed-tensors holds matrices of several bit widths",
                "leave --format out",
            ));
        }
        if self.include.contains(&QuantizedPart::Attention) {
            return Err(usage(
                &["--target-bits", "--include"],
                "--target-bits chooses bit widths for experts alone",
                "leave attention out of --include",
            ));
        }
        if target.is_finite() && target > 0.0 {
            return Ok(());
        }
        Err(usage(
            &["--target-bits"],
            format!("--target-bits {target}"),
            "give a number of bits, such as 5.5",
        ))
    }
}
