//! The training loop: steps of AdamW on the gradients of a task, measured and saved as it goes.

use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::{Error, Kind, LOG_FILE, Result, Saved};
use moe_forward::EvalReport;
use moe_forward::train::{Gradients, LayerCounts, Losses, Parameter, Parameters, add_counts};
use moe_math::adamw::{AdamW, Moments, Step, clipping, cosine, square_norm};
use moe_passes::TrainOptions;
use serde_json::json;

use super::dir::{NOTHING_SAVED, STATE_FILE, logged_steps, open_log};
use super::log::{self, Log, describe_load, figures, step_line};
use super::record::{Measurement, StepRecord, collapsed};
use super::settings::Settings;
use super::speed::Speed;
use super::state::{SavedValues, Size, TrainingState};
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

    /// The weighted sum of `losses` to minimise.
    fn total(&self, losses: &Losses) -> f64;

    /// Measures the model with weights of these bytes; None where there is no text to measure on.
    ///
    /// # Errors
    /// Errors of evaluations.
    fn measure(&mut self, encoded: &[Arc<Vec<u8>>]) -> Result<Option<EvalReport>>;
}

/// The outcome of a training.
pub(crate) struct Outcome {
    /// The weights to write, encoded as in files.
    pub encoded: Vec<Arc<Vec<u8>>>,
    /// The step that they come from.
    pub written: u64,
    /// All steps that were taken.
    pub steps: Vec<StepRecord>,
    pub stopped_early: bool,
    pub measurements: Vec<Measurement>,
    /// Settings, each with the step that they hold from; empty if they never changed.
    pub settings: Vec<Settings>,
    /// Load up to the first measurement, and since the last but one.
    pub load: [Vec<LayerCounts>; 2],
    /// Evaluations before training, and of the weights to write; None without held-out text.
    pub reports: Option<[EvalReport; 2]>,
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
struct Running<'t> {
    trainer: &'t Trainer<'t>,
    moments: Vec<Moments>,
    state: TrainingState,
    log: Log,
    settings: Vec<Settings>,
    /// Load since the last measurement.
    load: Vec<LayerCounts>,
    /// Layers that the user was warned about.
    warned: Vec<usize>,
    best_report: Option<EvalReport>,
}

impl Trainer<'_> {
    /// Trains, and returns the weights with the best measurement, or the last ones without
    /// measurements.
    ///
    /// # Errors
    /// [`Kind::Numeric`] where a loss or gradient is not finite, naming the step and the first
    /// tensor; the last good state is kept. Errors of the task and of the disk.
    pub fn run(&self, task: &mut dyn Task) -> Result<Outcome> {
        // This comes before anything is written: a saved state that can't be resumed from stays as
        // it is.
        let resumed = self.resumed()?;
        self.saved.begin()?;
        let before = task.measure(&self.parameters.encoded()?)?;
        let mut running = self.start(task, resumed, before.as_ref())?;
        let stopped_early = running.train(task)?;
        let settings = if running.settings.len() > 1 { running.settings } else { Vec::new() };
        let TrainingState { step, best, steps, measurements, load, best_bytes, .. } = running.state;
        let (encoded, written) = match best {
            Some(best) => (best_bytes, best),
            None => (self.parameters.encoded()?, step),
        };
        let after = match running.best_report {
            Some(report) => Some(report),
            // The weights were measured before the run was killed, in an earlier process.
            None => task.measure(&encoded)?,
        };
        let reports = before.zip(after).map(|(before, after)| [before, after]);
        Ok(Outcome {
            encoded,
            written,
            steps,
            stopped_early,
            measurements,
            settings,
            load,
            reports,
        })
    }

    /// The state of a killed training; None where there is none, or it isn't to be resumed.
    fn resumed(&self) -> Result<Option<(TrainingState, SavedValues)>> {
        let path = self.saved.path(STATE_FILE);
        if !self.saved.resumes()
            || path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            return self.begins_anew(&path).map(|()| None);
        }
        let size =
            |p: &Parameter| Size { elements: p.weight.elements(), stored_bytes: p.weight.bytes() };
        let sizes: Vec<Size> = self.parameters.list.iter().map(size).collect();
        TrainingState::read(&path, self.saved.key(), &sizes).map(Some)
    }

    /// Refuses to start over where a state must have been saved and is gone.
    fn begins_anew(&self, state: &Path) -> Result<()> {
        let (steps, every) = (
            if self.saved.resumes() { logged_steps(self.saved) } else { 0 },
            self.options.eval_every,
        );
        if steps == 0 {
            if self.saved.resumes() {
                self.progress.note(NOTHING_SAVED);
            }
            return Ok(());
        }
        // The log's line of a step is written before the state.
        if every > 0 && steps > every {
            let what = format!("{steps} steps were taken, but what was saved of them is not here");
            return Err(Error::new(Kind::Missing, what)
                .file(state)
                .remedy("put the file back, or start over without --resume and with --overwrite"));
        }
        self.progress.note(&format!("nothing was saved before step {steps}: training starts over"));
        Ok(())
    }

    fn start(
        &self,
        task: &mut dyn Task,
        resumed: Option<(TrainingState, SavedValues)>,
        before: Option<&EvalReport>,
    ) -> Result<Running<'_>> {
        let begins = resumed.is_none();
        let (mut state, moments) = match resumed {
            Some((state, values)) => {
                let moments = self.restore(&values)?;
                task.skip(state.step);
                self.progress.note(&format!("training goes on after step {}", state.step));
                (state, moments)
            }
            None => (
                TrainingState {
                    fingerprint: self.saved.key().to_owned(),
                    ..TrainingState::default()
                },
                self.moments()?,
            ),
        };
        if let Some(before) = before.filter(|_| begins) {
            state.measurements.push(Measurement::new(0, before));
            state.best = Some(0);
            state.best_bytes = self.parameters.encoded()?;
        }
        let (log, said) = open_log(self.saved, state.step, &state.log)?;
        let log = Log::new(log, said.as_bytes());
        let best_report = before.filter(|_| state.best == Some(0)).cloned();
        let settings = log::lines(&said).filter_map(|line| line.settings).collect();
        let (load, warned) = (Vec::new(), Vec::new());
        let mut running =
            Running { trainer: self, moments, state, log, settings, load, warned, best_report };
        running.note_settings()?;
        Ok(running)
    }

    /// Moments of a new training: zeros.
    fn moments(&self) -> Result<Vec<Moments>> {
        let of = |p: &Parameter| Moments::new(&p.value).map_err(|e| numeric(e, p.weight.name()));
        self.parameters.list.iter().map(of).collect()
    }

    /// Sets all parameters to their saved `values`, one at a time, and returns their moments.
    fn restore(&self, values: &SavedValues) -> Result<Vec<Moments>> {
        let of = |(index, parameter): (usize, &Parameter)| {
            let [value, m, v] = values.of_parameter(index)?;
            let var = &parameter.value;
            let restore = || {
                var.set(&candle_core::Tensor::from_vec(value, var.shape(), var.device())?)?;
                Moments::restore([m, v], var)
            };
            restore().map_err(|e| numeric(e, parameter.weight.name()))
        };
        self.parameters.list.iter().enumerate().map(of).collect()
    }
}

fn numeric(error: candle_core::Error, tensor: &str) -> Error {
    Error::new(Kind::Numeric, "cannot train this tensor").source(error).tensor(tensor)
}

const CALMER: &str =
    "lower --learning-rate and go on with --resume from what was saved, or check the data";

impl Running<'_> {
    /// Trains to the end. Returns whether it stopped before the last step.
    fn train(&mut self, task: &mut dyn Task) -> Result<bool> {
        let (options, progress) = (self.trainer.options, self.trainer.progress);
        let mut speed = Speed::new();
        progress.advance(self.state.step);
        while self.state.step < options.steps {
            if options.patience > 0 && self.state.worse >= options.patience {
                return Ok(true);
            }
            let (record, load) = match self.step(task) {
                Ok(done) => done,
                Err(error) if error.kind() == Kind::Numeric => {
                    return Err(self.keep_last_good(error)?);
                }
                Err(error) => return Err(error),
            };
            add_counts(&mut self.load, &load);
            self.state.steps.push(record);
            let rate = speed.tokens_per_second(record.tokens);
            self.write_line(&step_line(&record, rate, &load))?;
            progress.advance(1);
            progress.status(&format!(
                "{}, {rate:.0} tokens/s",
                figures(record.cross_entropy, record.kl())
            ));
            let due = options.eval_every > 0 && self.state.step.is_multiple_of(options.eval_every);
            if due || self.state.step == options.steps {
                match self.measure(task) {
                    Err(error) if error.kind() == Kind::Numeric => {
                        return Err(self.keep_last_good(error)?);
                    }
                    measured => measured?,
                }
                self.save()?;
            }
        }
        Ok(false)
    }

    /// Takes one step; the weights change only if all its gradients are finite.
    fn step(&mut self, task: &mut dyn Task) -> Result<(StepRecord, Vec<LayerCounts>)> {
        let (options, parameters) = (self.trainer.options, self.trainer.parameters);
        let learning_rate =
            options.learning_rate * cosine(self.state.step, options.warmup(), options.steps);
        let mut gradients = Gradients::new(parameters);
        let losses = task.gradients(&mut gradients)?;
        let total = task.total(&losses);
        if !total.is_finite() {
            return Err(Error::new(Kind::Numeric, format!("the loss is {total}")));
        }
        let norm = self.norm(&gradients)?;
        let step = Step {
            number: self.state.step + 1,
            learning_rate,
            weight_decay: 0.0,
            scale: clipping(norm, (options.clip > 0.0).then_some(options.clip)),
        };
        for (index, (parameter, moments)) in
            parameters.list.iter().zip(&mut self.moments).enumerate()
        {
            let weight_decay = if parameter.decays { options.weight_decay } else { 0.0 };
            let mut change = || {
                // A parameter that nothing depended on, such as one of an expert without tokens,
                // has gradient 0.
                let zeros = parameter.value.zeros_like()?;
                let gradient = gradients.get(index).unwrap_or(&zeros);
                AdamW::default().step(
                    &parameter.value,
                    gradient,
                    moments,
                    &Step { weight_decay, ..step },
                )
            };
            change().map_err(|e| numeric(e, parameter.weight.name()))?;
        }
        self.state.step += 1;
        Ok((StepRecord::new(self.state.step, &losses, total, learning_rate, norm), losses.load))
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
        if !load.is_empty() {
            if self.state.load[0].is_empty() {
                self.state.load[0].clone_from(&load);
            }
            self.state.load[1].clone_from(&load);
        }
        let encoded = self.trainer.parameters.encoded()?;
        let (step, progress) = (self.state.step, self.trainer.progress);
        let mut text = format!("step {step} of {}", self.trainer.options.steps);
        if let Some(last) = self.state.steps.last() {
            text += &format!(": {} on the last batch", figures(last.cross_entropy, last.kl()));
        }
        if let Some(report) = task.measure(&encoded)? {
            let found = Measurement::new(step, &report);
            let earlier = self
                .state
                .measurements
                .iter()
                .map(Measurement::figure)
                .fold(f64::INFINITY, f64::min);
            let better = found.figure() < earlier;
            text += &format!("; {} on held-out text", figures(found.loss, found.kl));
            text += if better { " (best)" } else { "" };
            self.state.measurements.push(found);
            self.state.worse = if better { 0 } else { self.state.worse + 1 };
            if better {
                (self.state.best, self.state.best_bytes) = (Some(step), encoded);
                self.best_report = Some(report);
            }
            self.write_line(&json!({ "step": step, "held_out": found }))?;
        }
        text += &describe_load(&load);
        progress.note(&text);
        for layer in collapsed(&load) {
            if !self.warned.contains(&layer) {
                self.warned.push(layer);
                progress.note(&format!(
                    "the router of layer {layer} has collapsed: most tokens go to less than a quarter of its experts; raise --balance, or lower --learning-rate"
                ));
            }
        }
        Ok(())
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

    /// Logs settings that differ from the ones before.
    fn note_settings(&mut self) -> Result<()> {
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
