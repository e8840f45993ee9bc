//! The options of `distill`, and the values that it refuses.

use clap::ValueEnum;
use moe_forward::Forcing;
use moe_model::{Error, Expert, Family, Ffn, Kind, Model, Moe, Result, family};
use serde::{Deserialize, Serialize};

use super::observe::HELD_OUT_EVERY;
use super::score::Score;
use super::select::Select;
use super::training::Training;
use super::weights::{padded, undecided};
use crate::calibrate::{CalibrationOptions, HeldOutOptions, check_baseline_used};
use crate::usage::{idle, usage};

/// Options of `distill`.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DistillOptions {
    /// Neurons of each layer of the dense model. By default as many as a token uses in the MoE,
    /// shared experts included, or as many as its dense layers have, where these are wider.
    #[arg(long, value_name = "NEURONS")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,

    /// Initialization of the dense network.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub init: Init,

    /// Unit that --init select chooses by: whole experts or single neurons.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub select: Select,

    /// Score that ranks experts, with --select experts.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub criterion: Score,

    /// Method that sets the down projection.
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub down: Down,

    /// Model whose states each layer is decided on: those that reach it through the dense layers
    /// before it, or through the original's layers.
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t)]
    #[serde(default)]
    pub forcing: Forced,

    /// The family to write, if several can hold the result; by default the first of them.
    #[arg(long, value_name = "FAMILY")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub measuring: HeldOutOptions,

    /// Don't measure the baseline, the mean of the experts, for comparison.
    #[arg(long, help_heading = "Measuring")]
    #[serde(default)]
    pub no_baseline: bool,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub training: Training,

    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub calibration: CalibrationOptions,
}

/// The initialization of a dense network. Shared experts are always kept whole, and come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Some of the experts' neurons, each scaled by its mean gate.
    #[default]
    Select,
    /// Means of as many groups of experts as fit, neurons aligned: the baseline.
    Mean,
    /// The same, with experts weighted by their gates.
    UsageMean,
    /// Normal numbers of standard deviation 0.02, and nothing of the experts: shows what training
    /// alone achieves.
    Random,
}

/// The model whose states a layer is decided on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forced {
    /// The outputs of the dense layers before it.
    #[default]
    Student,
    /// The outputs of the original's layers before it.
    Teacher,
}

impl From<Forced> for Forcing {
    fn from(forced: Forced) -> Self {
        match forced {
            Forced::Student => Self::Student,
            Forced::Teacher => Self::Teacher,
        }
    }
}

/// The method that sets the down projection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// Each neuron's own column, times the mean of its gate over all tokens.
    Measured,
    /// Least squares on the mixture's outputs, shrunk towards the measured one as far as helps on
    /// held-out tokens.
    #[default]
    Ridge,
    /// With --select experts: each neuron's own column over the number of experts taken, whatever
    /// their gates (2605.28207, as in PEFT's MoE-to-dense).
    Uniform,
}

/// The minimum number of tokens for each neuron of a fit.
const TOKENS_PER_NEURON: usize = 4;

/// The error that `what` text has too few windows.
fn too_few(what: &str) -> Error {
    let options = ["--data", "--data-tokens", "--sequence-length"];
    usage(&options, what, "give more --data, raise --data-tokens, or lower --sequence-length")
}

/// The number of neurons of the shared expert of `moe`.
pub(super) fn shared_width(moe: &Moe) -> usize {
    moe.shared.as_ref().map_or(0, |shared| shared.expert.width())
}

impl DistillOptions {
    /// The width of all layers of the result.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a model or a width that can't be distilled, [`Kind::Unsupported`] for a
    /// model that isn't supported.
    pub(super) fn check(&self, model: &Model) -> Result<usize> {
        let of_file = |error: Error| error.file(&model.config_file);
        if let Some(quantization) = &model.quantization {
            let what = format!("a quantized model can't be distilled: {quantization}");
            let error = Error::new(Kind::Unsupported, what);
            return Err(of_file(error.remedy("start from the unquantized checkpoint")));
        }
        if model.moes().next().is_none() {
            return Err(of_file(
                Error::new(Kind::Usage, "this model has no mixture of experts")
                    .remedy("give an MoE; upcycle makes one of a dense model"),
            ));
        }
        check_biases(model)?;
        self.check_values()?;
        self.width(model).map_err(of_file)
    }

    /// Refuses options that can't work with any model.
    pub(super) fn check_values(&self) -> Result<()> {
        self.calibration.check()?;
        self.measuring.check()?;
        if self.width == Some(0) {
            return Err(usage(
                &["--width"],
                "--width 0 leaves no network",
                "give at least 1, or leave --width out",
            ));
        }
        if self.calibration.data.is_empty() {
            return Err(usage(&["--data"], "distill measures gates on text", "give --data TEXT"));
        }
        self.check_selection_used()?;
        check_baseline_used(self.no_baseline, &self.measuring)?;
        self.training.check()
    }

    /// Refuses options of ways to select that --init and --select don't take.
    fn check_selection_used(&self) -> Result<()> {
        let selects = self.init == Init::Select;
        let has_criterion = self.criterion != Score::default();
        if !selects && (has_criterion || self.select != Select::default()) {
            let what = "--criterion and --select choose what --init select takes";
            return Err(idle(&["--criterion", "--select"], what, "leave them out, or --init"));
        }
        if self.down == Down::Uniform && !(selects && self.select == Select::Experts) {
            let what = "--down uniform divides by the number of experts taken";
            return Err(idle(&["--down"], what, "give --select experts"));
        }
        if selects && self.select == Select::Neurons && has_criterion {
            let what = "--criterion ranks experts, and --select neurons takes none whole";
            return Err(idle(&["--criterion"], what, "give --select experts"));
        }
        Ok(())
    }

    fn width(&self, model: &Model) -> Result<usize> {
        let networks = model.layers.iter().filter_map(|layer| layer.ffn.dense());
        let dense = networks.map(Expert::width).max().unwrap_or(0);
        let active = |moe: &Moe| moe.router.top_k * moe.experts[0].width() + shared_width(moe);
        let width = match self.width {
            None => model.moes().map(|(_, moe)| active(moe)).max().unwrap_or(0).max(dense),
            Some(width) => width,
        };
        if width < dense {
            let what = format!(
                "layers that are dense already have {dense} neurons, more than --width {width}"
            );
            let why = "a dense family has one width for all layers";
            return Err(usage(&["--width"], what, format!("give --width {dense} or more: {why}")));
        }
        for (index, moe) in model.moes() {
            let all = moe.experts.len() * moe.experts[0].width() + shared_width(moe);
            if self.width.is_some() && width > all.max(dense) {
                let what = format!(
                    "--width {width} is more than the {all} neurons that all experts of layer {index} have"
                );
                return Err(usage(&["--width"], what, format!("give {} or less", all.max(dense))));
            }
            self.check_room(moe, width)?;
        }
        Ok(width)
    }

    /// Refuses a width that has no room for what --init takes of `moe`.
    fn check_room(&self, moe: &Moe, width: usize) -> Result<()> {
        let (shared, each) = (shared_width(moe), moe.experts[0].width());
        let (least, wanted) = match self.init {
            Init::Random => (1, "any neuron".to_owned()),
            // --down uniform has no factor for a part of an expert.
            Init::Select if self.down == Down::Uniform => {
                (shared + each, format!("an expert of {each} neurons and {shared} shared ones"))
            }
            Init::Select => {
                (shared.max(1), format!("a shared expert of {shared} neurons, which stays whole"))
            }
            Init::Mean | Init::UsageMean => (
                shared + each,
                format!("the mean of experts of {each} neurons and {shared} shared ones"),
            ),
        };
        if width >= least {
            return Ok(());
        }
        Err(usage(
            &["--width"],
            format!("--width {width} leaves no room for {wanted}"),
            format!("give {least} or more"),
        ))
    }

    /// Refuses text that is too short for the fit of --down ridge.
    pub(super) fn check_tokens(
        &self,
        width: usize,
        deciding: usize,
        held_out: usize,
    ) -> Result<()> {
        if deciding == 0 {
            return Err(too_few("this text has one window that counts, or none"));
        }
        if self.down == Down::Ridge {
            return check_ridge_tokens(width, deciding, held_out);
        }
        if self.training.trains() && held_out == 0 {
            return Err(too_few(
                "no window of this text can be held out, so that training can't tell when to stop",
            ));
        }
        Ok(())
    }

    /// The minimum number of tokens, in windows of `sequence`, that [`Self::check_tokens`] accepts.
    pub(super) fn least_tokens(&self, width: usize, sequence: usize) -> usize {
        let sequence = sequence.max(1);
        let ridge = self.down == Down::Ridge;
        let deciding = if ridge { (TOKENS_PER_NEURON * width).div_ceil(sequence) } else { 1 };
        let holds_out = ridge || self.training.trains();
        // One window is held out for every few that decide.
        let held_out =
            if holds_out { (deciding.saturating_sub(1) / (HELD_OUT_EVERY - 1)).max(1) } else { 0 };
        let least = if holds_out { HELD_OUT_EVERY } else { 1 };
        (deciding + held_out).max(least) * sequence
    }

    /// The family that holds `model` with its mixtures as dense networks of `width` neurons.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where there is none, [`Kind::Usage`] for a target that can't hold it.
    pub(super) fn target(&self, model: &Model, width: usize) -> Result<&'static Family> {
        let source = &model.family.model_type;
        let possible = &model.family.distills_to;
        if let Some(why) = &model.family.undistilled {
            let what = format!("{source} can't be distilled: {why}");
            return Err(Error::new(Kind::Unsupported, what)
                .file(&model.config_file)
                .remedy("prune, merge and quantize take this family"));
        }
        let Some(wanted) = &self.target else { return first_that_holds(model, width) };
        if !possible.contains(wanted) {
            let what = format!("what {source} distills to is not {wanted}");
            return Err(usage(
                &["--target"],
                what,
                format!("give --target {}", possible.join(" or --target ")),
            ));
        }
        holds(wanted, model, width).map_err(|error| {
            let what = format!("this {source} model can't be distilled to {wanted}");
            let is_only = possible.len() == 1;
            let remedy = if is_only { "no other family can hold it" } else { "leave --target out" };
            Error::new(Kind::Unsupported, what)
                .file(&model.config_file)
                .remedy(remedy)
                .source(error)
        })
    }
}

/// Refuses text with fewer tokens than --down ridge needs to fit `width` neurons and to choose λ.
fn check_ridge_tokens(width: usize, deciding: usize, held_out: usize) -> Result<()> {
    let wanted = TOKENS_PER_NEURON * width;
    if deciding < wanted {
        let what = format!(
            "--down ridge fits {width} neurons to {wanted} tokens or more, and here are {deciding} (every \
             {HELD_OUT_EVERY}th window, {held_out} tokens here, is held out)"
        );
        // Lowering --sequence-length isn't named: shorter windows leave no more tokens to decide
        // on.
        return Err(usage(
            &["--down"],
            what,
            "give more --data, or raise --data-tokens where it leaves some of it out; or give --down measured",
        ));
    }
    if held_out == 0 {
        return Err(too_few(
            "no window of this text can be held out, so that --down ridge can't choose how far to fit",
        ));
    }
    Ok(())
}

/// The family `name`, if it can hold `model` with networks of `width` neurons.
fn holds(name: &str, model: &Model, width: usize) -> Result<&'static Family> {
    let mut dense = shaped(model, width);
    dense.family = family(name)?;
    dense.declare()?.reread()?;
    Ok(dense.family)
}

/// The first family of those that `model` distills to that can hold it.
fn first_that_holds(model: &Model, width: usize) -> Result<&'static Family> {
    let mut refused = None;
    for name in &model.family.distills_to {
        match holds(name, model, width) {
            Ok(family) => return Ok(family),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| {
        let source = &model.family.model_type;
        let what = format!("no dense family can hold what {source} distills to");
        Error::new(Kind::Unsupported, what)
    }))
}

/// `model` with networks of `width` neurons in place of its mixtures, before anything is decided.
/// Layers that were dense are padded to that width.
pub(super) fn shaped(model: &Model, width: usize) -> Model {
    let mut dense = model.clone();
    for layer in &mut dense.layers {
        let network = match &layer.ffn {
            Ffn::Moe(moe) => undecided(&moe.experts[0], width),
            Ffn::Dense(network) => padded(network, width),
        };
        layer.ffn = Ffn::Dense(Box::new(network));
    }
    dense.mtp.clear();
    dense
}

/// Refuses biases of feed-forward blocks: the bias of a sum of experts depends on the token, and a
/// dense family has biases in all layers or in none.
fn check_biases(model: &Model) -> Result<()> {
    let networks = model.layers.iter().flat_map(|layer| match &layer.ffn {
        Ffn::Dense(network) => vec![network.as_ref()],
        Ffn::Moe(moe) => {
            moe.experts.iter().chain(moe.shared.iter().map(|shared| &shared.expert)).collect()
        }
    });
    match networks.flat_map(Expert::linears).find_map(|linear| linear.bias.as_ref()) {
        None => Ok(()),
        Some(bias) => {
            Err(Error::new(Kind::Unsupported, "feed-forward blocks with biases can't be distilled")
                .tensor(bias.name())
                .remedy("if the biases are zero, drop them and mlp_bias"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many tokens as the error names are enough, and one window fewer is too few.
    #[test]
    fn the_least_tokens_are_just_enough() {
        for (down, width, sequence) in
            [("ridge", 512, 512), ("ridge", 512, 64), ("ridge", 7, 64), ("measured", 9, 32)]
        {
            let options = serde_json::json!({ "down": down, "data": ["t"], "data-tokens": 1, "sequence-length": sequence });
            let options: DistillOptions = serde_json::from_value(options).unwrap();
            let least = options.least_tokens(width, sequence);
            let check = |windows: usize| {
                let held_out = windows / HELD_OUT_EVERY;
                options.check_tokens(width, (windows - held_out) * sequence, held_out * sequence)
            };
            assert!(check(least / sequence).is_ok(), "{down} {width} {sequence}: {least}");
            assert!(check(least / sequence - 1).is_err(), "{down} {width} {sequence}: {least}");
        }
    }
}
