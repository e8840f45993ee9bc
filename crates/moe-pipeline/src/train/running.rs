//! The training loop: steps of AdamW on the gradients of a task, measured and saved as it goes.

use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::{Error, Kind, LOG_FILE, Result, Saved};
use moe_forward::EvalReport;
use moe_forward::train::{Gradients, LayerCounts, Losses, Parameter, Parameters, add_counts};
use moe_math::adamw::{AdamW, AdamWStep, Moments, clipping, cosine, square_norm};
use moe_passes::TrainOptions;
use serde_json::json;

use super::dir::STATE_FILE;
use super::log::{Log, describe_load, figures, step_line};
use super::record::{Measurement, StepRecord, collapsed};
use super::settings::Settings;
use super::speed::Speed;
use super::state::TrainingState;
use crate::progress::Progress;

/// A training objective, with its data. For each step, the trainer calls `gradients` and then
/// `total`; it calls `measure` before the first step and when a measurement is due. A resumed
/// training calls `skip` once, before its first step.
pub(crate) trait Task {
    /// Adds the gradients of the next step, and returns its losses.
    ///
    /// # Errors
    /// [`Kind::Numeric`] where something is not finite, saying what; errors of reading and of the
    /// device.
    fn gradients(&mut self, gradients: &mut Gradients) -> Result<Losses>;

    /// Skips the data of the first `steps` steps.
    fn skip(&mut self, steps: u64);

    /// The weighted sum of `losses` to minimize.
    fn total(&self, losses: &Losses) -> f64;

    /// Measures the model with weights of these bytes; None where there is no text to measure on.
    ///
    /// # Errors
    /// Errors of evaluations.
    fn measure(&mut self, encoded: &[Arc<Vec<u8>>]) -> Result<Option<EvalReport>>;
}

/// A training that can be run.
pub(crate) struct Trainer<'a> {
    pub parameters: &'a Parameters,
    pub options: &'a TrainOptions,
    /// The saved state of a killed training. Its key is the hash of everything that decides the
    /// training's outcome, except for options that may change when it is resumed.
    pub saved: &'a Saved,
    pub progress: &'a dyn Progress,
}

/// A running training.
pub(super) struct Running<'t> {
    pub trainer: &'t Trainer<'t>,
    pub moments: Vec<Moments>,
    pub state: TrainingState,
    pub log: Log,
    pub settings: Vec<Settings>,
    /// Load since the last measurement.
    pub load: Vec<LayerCounts>,
    /// Layers that the user was warned about.
    pub warned: Vec<usize>,
    pub best_report: Option<EvalReport>,
}

/// The error of training `tensor`.
pub(super) fn numeric(error: candle_core::Error, tensor: &str) -> Error {
    Error::new(Kind::Numeric, "cannot train this tensor").source(error).tensor(tensor)
}

/// The remedy where numbers grow too large.
const CALMER: &str =
    "lower --learning-rate and go on with --resume from what was saved, or check the data";

/// Changes `parameter` by one step along its gradient.
fn change(
    parameter: &Parameter,
    gradient: Option<&Tensor>,
    moments: &mut Moments,
    step: &AdamWStep,
) -> candle_core::Result<()> {
    // A parameter that nothing depended on, such as one of an expert without tokens, has gradient
    // 0.
    let zeros = parameter.value.zeros_like()?;
    AdamW::default().step(&parameter.value, gradient.unwrap_or(&zeros), moments, step)
}

impl Running<'_> {
    /// Trains to the end. Returns whether it stopped before the last step.
    pub fn train(&mut self, task: &mut dyn Task) -> Result<bool> {
        let options = self.trainer.options;
        let mut speed = Speed::new();
        self.trainer.progress.advance(self.state.step);
        while self.state.step < options.steps {
            if options.patience > 0 && self.state.worse >= options.patience {
                return Ok(true);
            }
            let (record, load) = self.step(task).or_else(|error| self.stop(error))?;
            self.note_step(record, &load, speed.tokens_per_second(record.tokens))?;
            if self.is_due() {
                self.measure(task).or_else(|error| self.stop(error))?;
                self.save()?;
            }
        }
        Ok(false)
    }

    /// Whether to measure and save after the last step.
    fn is_due(&self) -> bool {
        let options = self.trainer.options;
        let step = self.state.step;
        (options.eval_every > 0 && step.is_multiple_of(options.eval_every)) || step == options.steps
    }

    /// Logs and shows a step, which took as long as `rate` says, in tokens per second.
    fn note_step(&mut self, record: StepRecord, load: &[LayerCounts], rate: f64) -> Result<()> {
        add_counts(&mut self.load, load);
        self.state.steps.push(record);
        self.write_line(&step_line(&record, rate, load))?;
        let figures = figures(record.cross_entropy, record.kl());
        self.trainer.progress.advance(1);
        self.trainer.progress.status(&format!("{figures}, {rate:.0} tokens/s"));
        Ok(())
    }

    /// Returns the error to report for a step or a measurement that failed; where numbers are to
    /// blame, the last good weights are saved.
    fn stop<T>(&mut self, error: Error) -> Result<T> {
        Err(if error.kind() == Kind::Numeric { self.keep_last_good(error)? } else { error })
    }

    /// Takes one step; the weights change only if all its gradients are finite.
    fn step(&mut self, task: &mut dyn Task) -> Result<(StepRecord, Vec<LayerCounts>)> {
        let options = self.trainer.options;
        let learning_rate =
            options.learning_rate * cosine(self.state.step, options.warmup(), options.steps);
        let mut gradients = Gradients::new(self.trainer.parameters);
        let losses = task.gradients(&mut gradients)?;
        let total = task.total(&losses);
        if !total.is_finite() {
            return Err(Error::new(Kind::Numeric, format!("the loss is {total}")));
        }
        let norm = self.norm(&gradients)?;
        let step = AdamWStep {
            number: self.state.step + 1,
            learning_rate,
            weight_decay: 0.0,
            scale: clipping(norm, (options.clip > 0.0).then_some(options.clip)),
        };
        self.change(&gradients, step)?;
        self.state.step += 1;
        Ok((StepRecord::new(self.state.step, &losses, total, learning_rate, norm), losses.load))
    }

    /// Changes all parameters by `step`, whose weight decay is that of the parameter.
    fn change(&mut self, gradients: &Gradients, step: AdamWStep) -> Result<()> {
        let Trainer { parameters, options, .. } = self.trainer;
        for (index, (parameter, moments)) in
            parameters.list.iter().zip(&mut self.moments).enumerate()
        {
            let weight_decay = if parameter.decays { options.weight_decay } else { 0.0 };
            change(parameter, gradients.get(index), moments, &AdamWStep { weight_decay, ..step })
                .map_err(|e| numeric(e, parameter.weight.name()))?;
        }
        Ok(())
    }

    /// The norm of all gradients together.
    fn norm(&self, gradients: &Gradients) -> Result<f64> {
        let mut sum = 0.0;
        for (index, parameter) in self.trainer.parameters.list.iter().enumerate() {
            let Some(gradient) = gradients.get(index) else { continue };
            let square = square_norm(gradient).map_err(|e| numeric(e, parameter.weight.name()))?;
            if !square.is_finite() {
                return Err(Error::new(Kind::Numeric, "a gradient is not finite")
                    .tensor(parameter.weight.name()));
            }
            sum += square;
        }
        Ok(sum.sqrt())
    }

    /// Saves the weights, which are still those of the last good step. Returns the error to report.
    fn keep_last_good(&mut self, error: Error) -> Result<Error> {
        // Another rate or text doesn't help against a faulty checkpoint.
        if error.named_file().is_some() {
            return Ok(error);
        }
        let what = format!("training stopped after step {}: {}", self.state.step, error.said());
        let stopped = if self.state.step == 0 {
            // No rate has had an effect yet.
            let what = format!("the first step can't be taken: {}", error.said());
            Error::new(Kind::Numeric, what).remedy(
                "check the model's weights, and those of the original that --original names: one that is very large overflows on this text",
            )
        } else {
            self.save()?;
            Error::new(Kind::Numeric, what).file(self.trainer.saved.path(STATE_FILE)).remedy(CALMER)
        };
        Ok(match error.named_tensor() {
            Some(tensor) => stopped.tensor(tensor),
            None => stopped,
        })
    }

    fn measure(&mut self, task: &mut dyn Task) -> Result<()> {
        let load = std::mem::take(&mut self.load);
        self.keep_load(&load);
        let encoded = self.trainer.parameters.encoded()?;
        let mut text = format!("step {} of {}", self.state.step, self.trainer.options.steps);
        if let Some(last) = self.state.steps.last() {
            text += &format!(": {} on the last batch", figures(last.cross_entropy, last.kl()));
        }
        if let Some(report) = task.measure(&encoded)? {
            text += &self.keep_measurement(report, encoded)?;
        }
        text += &describe_load(&load);
        self.trainer.progress.note(&text);
        self.warn_of_collapse(&load);
        Ok(())
    }

    /// Keeps the first and the last `load` between measurements.
    fn keep_load(&mut self, load: &[LayerCounts]) {
        let [first, last] = &mut self.state.load;
        if load.is_empty() {
            return;
        }
        if first.is_empty() {
            *first = load.to_vec();
        }
        *last = load.to_vec();
    }

    /// Keeps the `report` of measuring the weights `encoded`, and these if they are the best so
    /// far. Returns what to say of it.
    fn keep_measurement(
        &mut self,
        report: EvalReport,
        encoded: Vec<Arc<Vec<u8>>>,
    ) -> Result<String> {
        let step = self.state.step;
        let found = Measurement::new(step, &report);
        let earlier = self.state.measurements.iter().map(Measurement::figure);
        let is_best = found.figure() < earlier.fold(f64::INFINITY, f64::min);
        self.state.measurements.push(found);
        self.state.worse = if is_best { 0 } else { self.state.worse + 1 };
        if is_best {
            (self.state.best, self.state.best_bytes) = (Some(step), encoded);
            self.best_report = Some(report);
        }
        self.write_line(&json!({ "step": step, "held_out": found }))?;
        let best = if is_best { " (best)" } else { "" };
        Ok(format!("; {} on held-out text{best}", figures(found.loss, found.kl)))
    }

    /// Warns, once for each layer, of routers that have collapsed.
    fn warn_of_collapse(&mut self, load: &[LayerCounts]) {
        for layer in collapsed(load) {
            if !self.warned.contains(&layer) {
                self.warned.push(layer);
                self.trainer.progress.note(&format!(
                    "the router of layer {layer} has collapsed: most tokens go to less than a quarter of its experts; raise --balance, or lower --learning-rate"
                ));
            }
        }
    }

    fn save(&mut self) -> Result<()> {
        // The log must have a line for every step before a saved state.
        self.log.sync().map_err(|e| self.log_failed(e))?;
        self.state.log = self.log.written();
        self.trainer.saved.begin()?;
        let parameters = &self.trainer.parameters.list;
        let values = |index: usize| {
            let read = || {
                let [m, v] = self.moments[index].read()?;
                Ok([parameters[index].value.flatten_all()?.to_vec1::<f32>()?, m, v])
            };
            read().map_err(|e| numeric(e, parameters[index].weight.name()))
        };
        let elements: Vec<usize> =
            parameters.iter().map(|parameter| parameter.weight.elements()).collect();
        self.state.write(&self.trainer.saved.path(STATE_FILE), &elements, values)
    }

    /// The weights to write, encoded as in files, and the step that they come from: those with the
    /// best measurement, or the last ones without measurements.
    ///
    /// # Errors
    /// Errors of reading them.
    pub fn weights(&mut self) -> Result<(Vec<Arc<Vec<u8>>>, u64)> {
        Ok(match self.state.best {
            Some(best) => (std::mem::take(&mut self.state.best_bytes), best),
            None => (self.trainer.parameters.encoded()?, self.state.step),
        })
    }

    /// Logs settings that differ from the ones before.
    pub fn note_settings(&mut self) -> Result<()> {
        let settings = Settings::new(self.state.step, self.trainer.options);
        if self.settings.last().is_some_and(|last| last.same(&settings)) {
            return Ok(());
        }
        if let Some(before) = self.settings.last() {
            self.trainer.progress.note(&settings.changes(before));
        }
        self.settings.push(settings);
        self.write_line(&settings.line())
    }

    fn write_line(&mut self, line: &serde_json::Value) -> Result<()> {
        self.log.write(line).map_err(|e| self.log_failed(e))
    }

    fn log_failed(&self, error: std::io::Error) -> Error {
        Error::io("cannot write the log of this training", self.trainer.saved.path(LOG_FILE), error)
    }
}
