//! The state that a killed training resumes from: one file, written whole or not at all.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::{Dtype, Error, Kind, Result, json, write_file_atomically};
use moe_forward::train::LayerCounts;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::log::LoggedSteps;
use super::parts::{Part, PartSize, SavedParts, Sealed, size};
use super::record::{Measurement, StepRecord};
use crate::filling::{Failure, Unfilled};

const ABOUT: &str = "about";
const STEPS: &str = "steps";
const MEASUREMENTS: &str = "measurements";
const FORMAT: &str = "moe-convert training 4";

/// A training after some steps.
#[derive(Default, PartialEq)]
pub(super) struct TrainingState {
    /// Hash of everything that decides the outcome.
    pub fingerprint: String,
    /// The log up to this step, which must be of the same run.
    pub log: LoggedSteps,
    /// Number of steps taken.
    pub step: u64,
    /// The step with the best measurement; None before one.
    pub best: Option<u64>,
    /// Measurements since the best one.
    pub worse: u64,
    /// All measurements so far.
    pub measurements: Vec<Measurement>,
    /// All steps so far.
    pub steps: Vec<StepRecord>,
    /// Load up to the first measurement, and since the last but one.
    pub load: [Vec<LayerCounts>; 2],
    /// The best weights, encoded as in files.
    pub best_bytes: Vec<Arc<Vec<u8>>>,
}

/// The size of a parameter.
pub(super) struct ParameterSize {
    pub elements: usize,
    /// Bytes in a checkpoint's file.
    pub stored_bytes: u64,
}

/// The part of a state that is saved as JSON. Floats are saved as tensors, since JSON wouldn't give
/// the same bits back.
#[derive(Serialize, Deserialize)]
struct StateHeader {
    format: String,
    fingerprint: String,
    log: LoggedSteps,
    step: u64,
    best: Option<u64>,
    worse: u64,
    load: [Vec<LayerLoad>; 2],
}

/// Index, counts and dropped choices of a layer.
type LayerLoad = (usize, Vec<u64>, u64);

impl StateHeader {
    fn of(state: &TrainingState) -> Self {
        Self {
            format: FORMAT.to_owned(),
            fingerprint: state.fingerprint.clone(),
            log: state.log.clone(),
            step: state.step,
            best: state.best,
            worse: state.worse,
            load: state.load.each_ref().map(|load| load.iter().map(layer_load).collect()),
        }
    }

    /// Reads the header of a state before its hashes, to recognize the state of another run.
    fn read(parts: &SavedParts, fingerprint: &str) -> Result<Self> {
        let about: Self =
            json::parsed(&parts.unchecked(ABOUT)?).map_err(|said| parts.malformed(&said))?;
        if about.format != FORMAT {
            return Err(parts.malformed(&format!("this is {:?}, not {FORMAT:?}", about.format)));
        }
        if about.fingerprint != fingerprint {
            let what = "this training was of other options, models or texts, or of another build of this program";
            return Err(Error::new(Kind::Mismatch, what).file(parts.path()).remedy(
                "give what it began with, or start over without --resume and with --overwrite",
            ));
        }
        Ok(about)
    }

    /// Encodes the header as JSON, padded to align the data after it.
    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.resize(json.len().next_multiple_of(8), b' ');
        json
    }
}

fn layer_load(of: &LayerCounts) -> LayerLoad {
    (of.layer, of.counts.clone(), of.dropped)
}

fn layer_counts((layer, counts, dropped): LayerLoad) -> LayerCounts {
    LayerCounts { layer, counts, dropped }
}

impl TrainingState {
    /// Writes the state to `path`, with the results of `values` for each parameter of `elements`:
    /// value, m and v. Only a few parameters are copied at a time, since together they are most of
    /// a training's memory.
    ///
    /// # Errors
    /// [`Kind::Io`] where writing fails, and errors of `values`; an earlier file is untouched then.
    pub fn write(
        &self,
        path: &Path,
        elements: &[usize],
        values: impl Fn(usize) -> Result<[Vec<f32>; 3]> + Sync,
    ) -> Result<()> {
        let about = StateHeader::of(self).to_json();
        let steps: Vec<f64> = self.steps.iter().flat_map(StepRecord::row).collect();
        let measurements: Vec<f64> = self.measurements.iter().flat_map(Measurement::row).collect();
        let first: [Part<'_>; 3] = [
            (ABOUT.to_owned(), Dtype::U8, &about),
            (STEPS.to_owned(), Dtype::F64, bytemuck::cast_slice(&steps)),
            (MEASUREMENTS.to_owned(), Dtype::F64, bytemuck::cast_slice(&measurements)),
        ];
        let best = self.best_parts();
        let of_parameters = elements.iter().enumerate().flat_map(parameter_sizes);
        let sizes = first.iter().map(size).chain(of_parameters).chain(best.iter().map(size));
        let sizes: Vec<PartSize> = sizes.collect();
        let mut failure = Failure::default();
        let written = write_file_atomically(path, |file| {
            let mut out = Sealed::begin(file, &self.fingerprint, sizes)?;
            out.write(&first)?;
            failure.keep(write_values(&mut out, elements, values))?;
            out.write(&best)?;
            out.finish()
        });
        failure.instead_of(written)
    }

    /// The best weights, one part for each parameter.
    fn best_parts(&self) -> Vec<Part<'_>> {
        let best = self.best_bytes.iter().enumerate();
        best.map(|(index, bytes)| (format!("best.{index}"), Dtype::U8, bytes.as_slice())).collect()
    }

    /// Reads the state from `path`, of parameters of these sizes. Their values, m and v are checked
    /// and left in the file: a training has buffers for all of them, and reads these in one by one.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] for a state of another training than that of `fingerprint`;
    /// [`Kind::Malformed`] for a file that isn't a state.
    pub fn read(
        path: &Path,
        fingerprint: &str,
        parameters: &[ParameterSize],
    ) -> Result<(Self, SavedValues)> {
        let mut parts = SavedParts::open(path, fingerprint)?;
        let about = StateHeader::read(&parts, fingerprint)?;
        parts.read_sums()?;
        parts.bytes(ABOUT)?;
        let state = Self::of_parts(about, &parts, parameters)?;
        let elements = parameters.iter().map(|size| size.elements).collect();
        let values = SavedValues { parts, elements };
        // A state that can't be resumed from is refused before anything is changed.
        (0..parameters.len()).try_for_each(|index| values.of_parameter(index).map(drop))?;
        Ok((state, values))
    }

    fn of_parts(
        about: StateHeader,
        parts: &SavedParts,
        parameters: &[ParameterSize],
    ) -> Result<Self> {
        let mut best_bytes = Vec::new();
        for (index, size) in parameters.iter().enumerate().filter(|_| about.best.is_some()) {
            best_bytes.push(Arc::new(parts.sized(&format!("best.{index}"), size.stored_bytes)?));
        }
        let steps = parts.f64s(STEPS)?;
        let measurements = parts.f64s(MEASUREMENTS)?;
        Ok(Self {
            fingerprint: about.fingerprint,
            log: about.log,
            step: about.step,
            best: about.best,
            worse: about.worse,
            measurements: measurements.as_chunks().0.iter().map(Measurement::of_row).collect(),
            steps: steps.as_chunks().0.iter().map(|row| StepRecord::of_row(*row)).collect(),
            load: about.load.map(|load| load.into_iter().map(layer_counts).collect()),
            best_bytes,
        })
    }
}

/// The sizes of the parts of the parameter with this index and number of elements.
fn parameter_sizes((index, elements): (usize, &usize)) -> [PartSize; 3] {
    VALUES.map(|name| (format!("{name}.{index}"), Dtype::F32, elements * size_of::<f32>()))
}

/// Writes value, m and v of all parameters.
fn write_values(
    out: &mut Sealed<'_>,
    elements: &[usize],
    values: impl Fn(usize) -> Result<[Vec<f32>; 3]> + Sync,
) -> Result<(), Unfilled> {
    for some in some_at_once(elements) {
        let read = some.clone().into_par_iter().map(&values).collect::<Result<Vec<_>>>()?;
        let parts = some.zip(&read).flat_map(|(index, values)| {
            VALUES.into_iter().zip(values).map(move |(name, values)| -> Part<'_> {
                (format!("{name}.{index}"), Dtype::F32, bytemuck::cast_slice(values))
            })
        });
        out.write(&parts.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The saved values of parameters, still in the file.
pub(super) struct SavedValues {
    parts: SavedParts,
    elements: Vec<usize>,
}

impl SavedValues {
    /// Value, m and v of the parameter at `index`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where they aren't those that were saved; errors of reading.
    pub fn of_parameter(&self, index: usize) -> Result<[Vec<f32>; 3]> {
        let [value, m, v] = VALUES;
        Ok([self.part(value, index)?, self.part(m, index)?, self.part(v, index)?])
    }

    fn part(&self, name: &str, index: usize) -> Result<Vec<f32>> {
        let size = (self.elements[index] * size_of::<f32>()) as u64;
        let bytes = self.parts.sized(&format!("{name}.{index}"), size)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// The saved tensors of each parameter.
const VALUES: [&str; 3] = ["value", "m", "v"];

/// Maximum number of elements of small parameters that are copied at once.
pub(super) const ELEMENTS_AT_ONCE: usize = 1 << 20;

/// Ranges of neighboring parameters with up to `ELEMENTS_AT_ONCE` elements, or one larger one.
fn some_at_once(elements: &[usize]) -> Vec<Range<usize>> {
    let mut some: Vec<Range<usize>> = Vec::new();
    let mut together = 0;
    for (index, elements) in elements.iter().enumerate() {
        match some.last_mut() {
            Some(last) if together + elements <= ELEMENTS_AT_ONCE => {
                last.end = index + 1;
                together += elements;
            }
            _ => {
                some.push(index..index + 1);
                together = *elements;
            }
        }
    }
    some
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let counts = LayerCounts { layer: 2, counts: vec![3, 0, u64::from(u32::MAX)], dropped: 1 };
        let state = TrainingState {
            fingerprint: "f".into(),
            log: LoggedSteps { bytes: 12, sha256: "0".repeat(64) },
            step: 7,
            best: Some(4),
            worse: 1,
            measurements: vec![
                Measurement { step: 4, loss: 0.1 + 0.2, kl: None },
                Measurement { step: 6, loss: 1.0 / 3.0, kl: Some(1e-300) },
            ],
            steps: vec![StepRecord { step: 7, loss: 1.0 / 7.0, ..StepRecord::default() }],
            load: [vec![counts.clone()], vec![counts]],
            best_bytes: vec![Arc::new(vec![1, 2, 3]), Arc::new(vec![])],
        };
        let sizes = |sizes: [(usize, u64); 2]| {
            sizes.map(|(elements, stored_bytes)| ParameterSize { elements, stored_bytes })
        };
        let parameters = sizes([(2, 3), (1, 0)]);
        let values = [
            [vec![0.1, f32::MIN_POSITIVE], vec![1.0, 2.0], vec![3.0, 4.0]],
            [vec![5.0], vec![6.0], vec![7.0]],
        ];
        state.write(&path, &[2, 1], |index| Ok(values[index].clone())).unwrap();
        let is_it = |(read, saved): &(TrainingState, SavedValues)| {
            *read == state
                && (0..2).all(|index| saved.of_parameter(index).unwrap() == values[index])
        };
        assert!(is_it(&TrainingState::read(&path, "f", &parameters).unwrap()));
        assert_eq!(
            TrainingState::read(&path, "g", &parameters).err().unwrap().kind(),
            Kind::Mismatch
        );
        assert_eq!(
            TrainingState::read(&path, "f", &sizes([(2, 3), (2, 0)])).err().unwrap().kind(),
            Kind::Malformed
        );
        assert_eq!(
            TrainingState::read(&path, "f", &sizes([(2, 3), (1, 1)])).err().unwrap().kind(),
            Kind::Malformed
        );
        // Whichever byte is changed, and wherever the file is cut: reading gives this state or an
        // error.
        let written = std::fs::read(&path).unwrap();
        for at in 0..written.len() {
            for other in [written[at] ^ 1, written[at] ^ 0x80, b'9', b'"'] {
                let mut changed = written.clone();
                changed[at] = other;
                std::fs::write(&path, &changed).unwrap();
                if let Ok(read) = TrainingState::read(&path, "f", &parameters) {
                    assert!(is_it(&read), "byte {at}");
                }
            }
            std::fs::write(&path, &written[..at]).unwrap();
            assert!(TrainingState::read(&path, "f", &parameters).is_err(), "cut at {at}");
        }
    }
}
