//! The state that a killed training resumes from: one file, written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{
    Dtype, Entry, Error, Kind, Result, SourceFile, Stored, encode_header, sha256_bytes,
    write_file_atomically,
};
use moe_forward::train::LayerCounts;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::log::LoggedSteps;
use super::record::{Measurement, StepRecord};

const ABOUT: &str = "about";
const SUMS: &str = "SHA256SUMS";
const FORMAT: &str = "moe-convert training 4";
const MEASUREMENT_COLUMNS: usize = 3;

/// A training after some steps.
#[derive(Default, PartialEq)]
pub(super) struct TrainingState {
    /// Hash of everything that decides the outcome.
    pub fingerprint: String,
    /// The log up to then, which must be of the same run.
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
pub(super) struct Size {
    pub elements: usize,
    /// Bytes in a checkpoint's file.
    pub stored_bytes: u64,
}

/// Floats are kept in tensors, since JSON wouldn't give the same bits back.
#[derive(Serialize, Deserialize)]
struct About {
    format: String,
    fingerprint: String,
    log: LoggedSteps,
    step: u64,
    best: Option<u64>,
    worse: u64,
    load: [Vec<(usize, Vec<u64>, u64)>; 2],
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
        let about = self.about();
        let steps: Vec<f64> = self.steps.iter().flat_map(StepRecord::row).collect();
        let measurements: Vec<f64> = self
            .measurements
            .iter()
            .flat_map(|m| [m.step as f64, m.loss, m.kl.unwrap_or(f64::NAN)])
            .collect();
        let first: [Part<'_>; 3] = [
            (ABOUT.to_owned(), Dtype::U8, &about),
            ("steps".to_owned(), Dtype::F64, bytemuck::cast_slice(&steps)),
            ("measurements".to_owned(), Dtype::F64, bytemuck::cast_slice(&measurements)),
        ];
        let best = self.best_bytes.iter().enumerate();
        let last: Vec<Part<'_>> = best
            .map(|(index, bytes)| (format!("best.{index}"), Dtype::U8, bytes.as_slice()))
            .collect();
        let size = |(name, dtype, bytes): &Part<'_>| (name.clone(), *dtype, bytes.len());
        let mut sizes: Vec<(String, Dtype, usize)> = first.iter().map(size).collect();
        for (index, elements) in elements.iter().enumerate() {
            sizes.extend(
                VALUES.map(|name| {
                    (format!("{name}.{index}"), Dtype::F32, elements * size_of::<f32>())
                }),
            );
        }
        sizes.extend(last.iter().map(size));
        let of_sums = sizes.iter().map(|(name, ..)| sum_bytes(name)).sum();
        sizes.push((SUMS.to_owned(), Dtype::U8, of_sums));
        let mut failed = None;
        let written = write_file_atomically(path, |file| {
            let mut out = Sealed {
                out: std::io::BufWriter::new(file),
                of: &self.fingerprint,
                sums: String::new(),
            };
            out.out.write_all(&header(&sizes))?;
            out.write(&first)?;
            for some in some_at_once(elements) {
                let read = some.clone().into_par_iter().map(&values).collect::<Result<Vec<_>>>();
                let read = read.map_err(|error| {
                    failed = Some(error);
                    std::io::Error::other("what is saved can't be read")
                })?;
                let parts = some.zip(&read).flat_map(|(index, values)| {
                    VALUES.into_iter().zip(values).map(move |(name, values)| -> Part<'_> {
                        (format!("{name}.{index}"), Dtype::F32, bytemuck::cast_slice(values))
                    })
                });
                out.write(&parts.collect::<Vec<_>>())?;
            }
            out.write(&last)?;
            // The sums detect a file that the disk has changed, which must not be resumed from.
            out.out.write_all(out.sums.as_bytes())?;
            out.out.flush()
        });
        failed.map_or(written, Err)
    }

    /// The part that isn't in tensors, as JSON, padded to align the data behind it.
    fn about(&self) -> Vec<u8> {
        let load = |of: &Vec<LayerCounts>| {
            of.iter().map(|l| (l.layer, l.counts.clone(), l.dropped)).collect()
        };
        let about = About {
            format: FORMAT.to_owned(),
            fingerprint: self.fingerprint.clone(),
            log: self.log.clone(),
            step: self.step,
            best: self.best,
            worse: self.worse,
            load: self.load.each_ref().map(load),
        };
        let mut json = serde_json::to_vec(&about).unwrap_or_default();
        json.resize(json.len().next_multiple_of(8), b' ');
        json
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
        parameters: &[Size],
    ) -> Result<(Self, SavedValues)> {
        let (file, entries) = SourceFile::open(path).map_err(|e| e.better_remedy(START_OVER))?;
        let tensors: BTreeMap<String, Stored> = entries
            .into_iter()
            .map(|entry| (entry.name.clone(), Stored::of_file(&file, entry)))
            .collect();
        let mut saved = SavedParts {
            path: path.to_owned(),
            fingerprint: fingerprint.to_owned(),
            tensors,
            sums: BTreeSet::new(),
        };
        // What a state says of itself is read before its hashes, to recognize one of another run.
        let about: About = serde_json::from_slice(&saved.unchecked(ABOUT)?)
            .map_err(|e| saved.malformed(&e.to_string()))?;
        if about.format != FORMAT {
            return Err(saved.malformed(&format!("this is {:?}, not {FORMAT:?}", about.format)));
        }
        if about.fingerprint != fingerprint {
            let what = "this training was of other options, models or texts, or of another build of this program";
            return Err(Error::new(Kind::Mismatch, what).file(path).remedy(
                "give what it began with, or start over without --resume and with --overwrite",
            ));
        }
        let sums = String::from_utf8(saved.unchecked(SUMS)?).unwrap_or_default();
        saved.sums = sums.split_inclusive('\n').map(str::to_owned).collect();
        saved.bytes(ABOUT)?;
        let best_of_parameter = |(index, size): (usize, &Size)| {
            saved.sized(format!("best.{index}"), size.stored_bytes).map(Arc::new)
        };
        let best = match about.best {
            Some(_) => {
                parameters.iter().enumerate().map(best_of_parameter).collect::<Result<_>>()?
            }
            None => Vec::new(),
        };
        let load = |of: Vec<(usize, Vec<u64>, u64)>| {
            of.into_iter()
                .map(|(layer, counts, dropped)| LayerCounts { layer, counts, dropped })
                .collect()
        };
        let steps =
            saved.f64s("steps")?.as_chunks().0.iter().map(|row| StepRecord::of_row(*row)).collect();
        let measurement = |[step, loss, kl]: &[f64; MEASUREMENT_COLUMNS]| Measurement {
            step: *step as u64,
            loss: *loss,
            kl: (!kl.is_nan()).then_some(*kl),
        };
        let state = Self {
            fingerprint: about.fingerprint,
            log: about.log,
            step: about.step,
            best: about.best,
            worse: about.worse,
            measurements: saved
                .f64s("measurements")?
                .as_chunks()
                .0
                .iter()
                .map(measurement)
                .collect(),
            steps,
            load: about.load.map(load),
            best_bytes: best,
        };
        let values = SavedValues {
            parts: saved,
            elements: parameters.iter().map(|size| size.elements).collect(),
        };
        // A state that can't be resumed from is refused before anything is changed.
        (0..parameters.len()).try_for_each(|index| values.of_parameter(index).map(drop))?;
        Ok((state, values))
    }
}

/// The remedy for a state that can't be read.
const START_OVER: &str = "start over without --resume and with --overwrite";

/// The parts of a saved training, each with its hash.
struct SavedParts {
    path: PathBuf,
    fingerprint: String,
    tensors: BTreeMap<String, Stored>,
    sums: BTreeSet<String>,
}

impl SavedParts {
    fn malformed(&self, what: &str) -> Error {
        Error::new(Kind::Malformed, what.to_owned()).file(&self.path).remedy(START_OVER)
    }

    fn unchecked(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.malformed("this is not a saved training").tensor(name))?;
        let mut bytes = vec![0; tensor.bytes() as usize];
        tensor.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = self.unchecked(name)?;
        match self.sums.contains(&sum(&self.fingerprint, name, &bytes)) {
            true => Ok(bytes),
            false => Err(self.malformed("this is not what was saved here").tensor(name)),
        }
    }

    fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.bytes(name)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    fn sized(&self, name: String, size: u64) -> Result<Vec<u8>> {
        match self.bytes(&name)? {
            bytes if bytes.len() as u64 == size => Ok(bytes),
            _ => Err(self.malformed("a saved parameter of another size").tensor(name)),
        }
    }
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
        let of = |name: &str| -> Result<Vec<f32>> {
            let size = (self.elements[index] * size_of::<f32>()) as u64;
            let bytes = self.parts.sized(format!("{name}.{index}"), size)?;
            Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let [value, m, v] = VALUES;
        Ok([of(value)?, of(m)?, of(v)?])
    }
}

/// Name, dtype and bytes of a saved tensor.
type Part<'a> = (String, Dtype, &'a [u8]);

/// The saved tensors of each parameter.
const VALUES: [&str; 3] = ["value", "m", "v"];

/// Maximum number of elements of small parameters that are copied at once.
pub(super) const ELEMENTS_AT_ONCE: usize = 1 << 20;

/// Ranges of neighbouring parameters with up to `ELEMENTS_AT_ONCE` elements, or one larger one.
fn some_at_once(elements: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut some: Vec<std::ops::Range<usize>> = Vec::new();
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

/// The header for parts of these names, dtypes and bytes, in this order.
fn header(sizes: &[(String, Dtype, usize)]) -> Vec<u8> {
    let mut end = 0;
    let entry = |(name, dtype, bytes): &(String, Dtype, usize)| {
        let start = end;
        end += *bytes as u64;
        Entry {
            name: name.clone(),
            dtype: *dtype,
            shape: vec![bytes * 8 / dtype.bitsize()],
            start,
            end,
        }
    };
    encode_header(&sizes.iter().map(entry).collect::<Vec<_>>())
}

/// A file of parts, with a line of checksum for each.
struct Sealed<'a, W: Write> {
    out: W,
    of: &'a str,
    sums: String,
}

impl<W: Write> Sealed<'_, W> {
    fn write(&mut self, parts: &[Part<'_>]) -> std::io::Result<()> {
        let sums: String =
            parts.par_iter().map(|(name, _, bytes)| sum(self.of, name, bytes)).collect();
        self.sums += &sums;
        parts.iter().try_for_each(|(_, _, bytes)| self.out.write_all(bytes))
    }
}

/// Bytes of the line for the part `name`: a hash in hexadecimal, two spaces, the name, and the end
/// of the line.
fn sum_bytes(name: &str) -> usize {
    64 + 2 + name.len() + 1
}

/// The line for the part `name` of the run `fingerprint`; it differs from run to run.
fn sum(fingerprint: &str, name: &str, bytes: &[u8]) -> String {
    let of_bytes = sha256_bytes(bytes);
    format!("{}  {name}\n", sha256_bytes(format!("{fingerprint} {name} {of_bytes}").as_bytes()))
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
            sizes.map(|(elements, stored_bytes)| Size { elements, stored_bytes })
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
