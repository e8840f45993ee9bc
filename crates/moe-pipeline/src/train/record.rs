//! Reports of a training: a line for each step, and the record in the receipt.

use moe_forward::EvalReport;
use moe_forward::train::{LayerCounts, Losses};
use moe_math::load::Load;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// One step, or the mean of several consecutive ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// Number of the step, counted from 1; of an average, that of its last step.
    pub step: u64,
    /// The weighted sum that is minimized.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub loss: f64,
    /// Mean −log p of next tokens.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub cross_entropy: f64,
    /// Mean KL(teacher ‖ model).
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub teacher: f64,
    /// The load-balancing loss.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub balance: f64,
    /// The router z-loss.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub z: f64,
    /// The learning rate.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub learning_rate: f64,
    /// Norm of all gradients together, before it is limited.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub gradient_norm: f64,
    /// Tokens that were trained on.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub tokens: f64,
}

impl StepRecord {
    /// Number of columns of a row in a saved state.
    pub const COLUMNS: usize = 9;

    pub(super) fn new(
        step: u64,
        losses: &Losses,
        loss: f64,
        learning_rate: f64,
        gradient_norm: f64,
    ) -> Self {
        Self {
            step,
            loss,
            cross_entropy: losses.cross_entropy,
            teacher: losses.teacher,
            balance: losses.balance,
            z: losses.z,
            learning_rate,
            gradient_norm,
            tokens: losses.tokens as f64,
        }
    }

    /// KL(teacher ‖ model); None without a teacher.
    pub(super) fn kl(&self) -> Option<f64> {
        (self.teacher != 0.0).then_some(self.teacher)
    }

    pub(super) fn row(&self) -> [f64; Self::COLUMNS] {
        let Self {
            step,
            loss,
            cross_entropy,
            teacher,
            balance,
            z,
            learning_rate,
            gradient_norm,
            tokens,
        } = *self;
        [
            step as f64,
            loss,
            cross_entropy,
            teacher,
            balance,
            z,
            learning_rate,
            gradient_norm,
            tokens,
        ]
    }

    pub(super) fn of_row(row: [f64; Self::COLUMNS]) -> Self {
        let [step, loss, cross_entropy, teacher, balance, z, learning_rate, gradient_norm, tokens] =
            row;
        Self {
            step: step as u64,
            loss,
            cross_entropy,
            teacher,
            balance,
            z,
            learning_rate,
            gradient_norm,
            tokens,
        }
    }
}

/// A measurement on held-out text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Measurement {
    /// The step that it follows; 0 is before training.
    pub step: u64,
    /// Mean loss of next tokens.
    #[serde(deserialize_with = "moe_checkpoint::or_infinite")]
    #[schemars(with = "Option<f64>")]
    pub loss: f64,
    /// Mean KL(teacher ‖ model), with a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

impl Measurement {
    pub(super) fn new(step: u64, report: &EvalReport) -> Self {
        Self {
            step,
            loss: report.all.loss,
            kl: report.all.against.as_ref().map(|against| against.kl),
        }
    }

    /// The columns of a row in a saved state: step, loss, and KL, which is NaN without a teacher.
    pub(super) fn row(&self) -> [f64; 3] {
        [self.step as f64, self.loss, self.kl.unwrap_or(f64::NAN)]
    }

    pub(super) fn of_row([step, loss, kl]: &[f64; 3]) -> Self {
        Self { step: *step as u64, loss: *loss, kl: (!kl.is_nan()).then_some(*kl) }
    }

    /// The quantity that training lowers: the KL with a teacher, the loss without.
    pub fn figure(&self) -> f64 {
        self.kl.unwrap_or(self.loss)
    }
}

/// Load of a layer's experts on the training text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadChange {
    /// The layer's index.
    pub layer: usize,
    /// Load up to the first measurement.
    pub first: Load,
    /// Load since the last measurement but one.
    pub last: Load,
    /// Share of the choices in `last` that experts had no room for.
    pub dropped: f64,
}

/// The record of a training in the receipt.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TrainingRecord {
    /// Number of weights that were trained.
    pub parameters: usize,
    /// Number of steps that were taken.
    pub steps: u64,
    /// Whether training stopped early, since measurements no longer improved.
    pub stopped_early: bool,
    /// The step whose weights are written.
    pub written: u64,
    /// Number of tokens that were trained on, each counted every time.
    pub tokens: u64,
    /// The estimate of the least memory that training holds, in bytes.
    pub memory_estimate_bytes: u64,
    /// Losses of each step; of a long run, means of consecutive steps.
    pub curve: Vec<StepRecord>,
    /// Options from a step on, for each time that training was resumed with different ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Settings>,
    /// Measurements on held-out text.
    pub measurements: Vec<Measurement>,
    /// Quality on held-out text before training, against the teacher if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<EvalReport>,
    /// The same for the weights that were written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<EvalReport>,
    /// The load of experts in each layer, and how it changed.
    pub load: Vec<LoadChange>,
}

impl TrainingRecord {
    /// Whether load was measured only once, so that first and last are the same.
    pub fn load_is_of_one_measurement(&self) -> bool {
        self.load.iter().all(|change| change.first == change.last)
    }
}

/// Maximum number of points of a chart.
const POINTS: usize = 400;

/// `steps`, with neighbors averaged so that at most [`POINTS`] are left.
pub(super) fn thinned(steps: &[StepRecord]) -> Vec<StepRecord> {
    let each = steps.len().div_ceil(POINTS).max(1);
    let mean = |part: &[StepRecord]| {
        let mut sums = [0.0; StepRecord::COLUMNS];
        for step in part {
            sums.iter_mut().zip(step.row()).for_each(|(sum, value)| *sum += value);
        }
        let last = part[part.len() - 1];
        StepRecord {
            step: last.step,
            ..StepRecord::of_row(sums.map(|sum| sum / part.len() as f64))
        }
    };
    steps.chunks(each).map(mean).collect()
}

/// Changes of the layers' load from `first` to `last`.
pub(super) fn changes(first: &[LayerCounts], last: &[LayerCounts]) -> Vec<LoadChange> {
    let change = |(first, last): (&LayerCounts, &LayerCounts)| LoadChange {
        layer: last.layer,
        first: Load::new(first.counts.clone()),
        last: Load::new(last.counts.clone()),
        dropped: last.dropped as f64 / last.counts.iter().sum::<u64>().max(1) as f64,
    };
    first.iter().zip(last).map(change).collect()
}

/// The layers that have collapsed: the effective number of their experts, which is the exponential
/// of the entropy of their shares of tokens, is below a quarter of all.
pub(super) fn collapsed(load: &[LayerCounts]) -> Vec<usize> {
    let effective = |layer: &LayerCounts| {
        let experts = layer.counts.len() as f64;
        (Load::new(layer.counts.clone()).entropy * experts.ln()).exp()
    };
    let few = |layer: &&LayerCounts| {
        layer.counts.len() > 4 && effective(layer) < layer.counts.len() as f64 / 4.0
    };
    load.iter().filter(few).map(|layer| layer.layer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_to_means() {
        let steps: Vec<StepRecord> = (1..=1000)
            .map(|step| StepRecord { step, loss: step as f64, ..StepRecord::default() })
            .collect();
        let thin = thinned(&steps);
        assert_eq!((thin.len(), thin[0].step, thin[0].loss), (334, 3, 2.0));
        assert_eq!(thin[333].step, 1000);
        assert_eq!(thinned(&steps[..5]), steps[..5]);
        assert_eq!(StepRecord::of_row(steps[7].row()), steps[7]);
    }

    #[test]
    fn a_layer_on_few_experts_has_collapsed() {
        let counts = |counts: &[u64]| LayerCounts { layer: 3, counts: counts.to_vec(), dropped: 0 };
        assert_eq!(collapsed(&[counts(&[100, 0, 0, 0, 0, 0, 0, 1])]), [3]);
        assert!(
            collapsed(&[
                counts(&[5; 8]),
                counts(&[50, 50, 50, 1, 0, 0, 0, 0]),
                counts(&[9, 0, 0, 0])
            ])
            .is_empty()
        );
    }
}
