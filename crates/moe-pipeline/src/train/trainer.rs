//! Trains from the first step or from a saved state, up to the weights to write.

use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::{Error, Kind, Result};
use moe_forward::EvalReport;
use moe_forward::train::{LayerCounts, Parameter};
use moe_math::adamw::Moments;

use super::dir::{NOTHING_SAVED, STATE_FILE, logged_steps, open_log};
use super::log::{self, Log};
use super::record::{Measurement, StepRecord};
use super::running::{Running, numeric};
pub(super) use super::running::{Task, Trainer};
use super::settings::Settings;
use super::state::{ParameterSize, SavedValues, TrainingState};

/// The outcome of a training.
pub(crate) struct TrainingOutcome {
    /// The weights to write, encoded as in files.
    pub encoded: Vec<Arc<Vec<u8>>>,
    /// The step that `encoded` comes from.
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

impl Trainer<'_> {
    /// Trains, and returns the weights with the best measurement, or the last ones without
    /// measurements.
    ///
    /// # Errors
    /// [`Kind::Numeric`] where a loss or gradient is not finite, naming the step and the first
    /// tensor; the last good state is kept. Errors of the task and of the disk.
    pub fn run(&self, task: &mut dyn Task) -> Result<TrainingOutcome> {
        // This comes before anything is written: a saved state that can't be resumed from stays as
        // it is.
        let resumed = self.resumed()?;
        self.saved.begin()?;
        let before = task.measure(&self.parameters.encoded()?)?;
        let mut running = self.start(task, resumed, before.as_ref())?;
        let stopped_early = running.train(task)?;
        let (encoded, written) = running.weights()?;
        let Running { state, settings, best_report, .. } = running;
        let after = match best_report {
            Some(report) => Some(report),
            // The weights were measured before the run was killed, in an earlier process.
            None => task.measure(&encoded)?,
        };
        Ok(TrainingOutcome {
            encoded,
            written,
            steps: state.steps,
            stopped_early,
            measurements: state.measurements,
            settings: if settings.len() > 1 { settings } else { Vec::new() },
            load: state.load,
            reports: before.zip(after).map(|(before, after)| [before, after]),
        })
    }

    /// The state of a killed training; None where there is none, or it isn't to be resumed.
    fn resumed(&self) -> Result<Option<(TrainingState, SavedValues)>> {
        let path = self.saved.path(STATE_FILE);
        if !self.saved.resumes()
            || path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            return self.check_new_start(&path).map(|()| None);
        }
        let size = |p: &Parameter| ParameterSize {
            elements: p.weight.elements(),
            stored_bytes: p.weight.bytes(),
        };
        let sizes: Vec<ParameterSize> = self.parameters.list.iter().map(size).collect();
        TrainingState::read(&path, self.saved.key(), &sizes).map(Some)
    }

    /// Refuses to start over where a state must have been saved and is gone.
    fn check_new_start(&self, state: &Path) -> Result<()> {
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
        let (state, moments) = match resumed {
            Some((state, values)) => {
                let moments = self.go_on(task, state.step, &values)?;
                (state, moments)
            }
            None => self.begin(before)?,
        };
        let (log, said) = open_log(self.saved, state.step, &state.log)?;
        let mut running = Running {
            trainer: self,
            moments,
            log: Log::new(log, said.as_bytes()),
            settings: log::lines(&said).filter_map(|line| line.settings).collect(),
            load: Vec::new(),
            warned: Vec::new(),
            best_report: before.filter(|_| state.best == Some(0)).cloned(),
            state,
        };
        running.note_settings()?;
        Ok(running)
    }

    /// The state and moments of a new training, measured `before` its first step.
    fn begin(&self, before: Option<&EvalReport>) -> Result<(TrainingState, Vec<Moments>)> {
        let fingerprint = self.saved.key().to_owned();
        let mut state = TrainingState { fingerprint, ..TrainingState::default() };
        let moments = self.moments()?;
        if let Some(before) = before {
            state.measurements.push(Measurement::new(0, before));
            state.best = Some(0);
            state.best_bytes = self.parameters.encoded()?;
        }
        Ok((state, moments))
    }

    /// Goes on after `step` with the saved `values`. Returns the moments.
    fn go_on(&self, task: &mut dyn Task, step: u64, values: &SavedValues) -> Result<Vec<Moments>> {
        let moments = self.restore(values)?;
        task.skip(step);
        self.progress.note(&format!("training goes on after step {step}"));
        Ok(moments)
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
