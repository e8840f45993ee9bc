//! The parts of a training's saved state: tensors of one file, each with a hash that also depends
//! on the run, so that parts of other runs aren't taken for this one's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    Dtype, Entry, Error, Kind, Result, SourceFile, Stored, encode_header, sha256_bytes,
};
use rayon::prelude::*;

/// The name of the part that has a line with the hash of each other part.
const SUMS: &str = "SHA256SUMS";
/// The remedy for a state that can't be read.
const START_OVER: &str = "start over without --resume and with --overwrite";

/// Name, dtype and bytes of a saved tensor.
pub(super) type Part<'a> = (String, Dtype, &'a [u8]);
/// Name, dtype and number of bytes of a saved tensor.
pub(super) type PartSize = (String, Dtype, usize);

/// The size of `part`.
pub(super) fn size((name, dtype, bytes): &Part<'_>) -> PartSize {
    (name.clone(), *dtype, bytes.len())
}

/// A file of parts that is being written.
pub(super) struct Sealed<'a> {
    out: BufWriter<&'a mut File>,
    fingerprint: &'a str,
    sums: String,
}

impl<'a> Sealed<'a> {
    /// Begins `file` for the run `fingerprint`, with parts of these `sizes` in this order.
    ///
    /// # Errors
    /// Errors of the disk.
    pub fn begin(
        file: &'a mut File,
        fingerprint: &'a str,
        mut sizes: Vec<PartSize>,
    ) -> io::Result<Self> {
        let of_sums = sizes.iter().map(|(name, ..)| sum_bytes(name)).sum();
        sizes.push((SUMS.to_owned(), Dtype::U8, of_sums));
        let mut out = BufWriter::new(file);
        out.write_all(&header(&sizes))?;
        Ok(Self { out, fingerprint, sums: String::new() })
    }

    /// Writes the next parts.
    ///
    /// # Errors
    /// Errors of the disk.
    pub fn write(&mut self, parts: &[Part<'_>]) -> io::Result<()> {
        let sums: String =
            parts.par_iter().map(|(name, _, bytes)| sum(self.fingerprint, name, bytes)).collect();
        self.sums += &sums;
        parts.iter().try_for_each(|(_, _, bytes)| self.out.write_all(bytes))
    }

    /// Writes the sums, which detect a file that the disk has changed: it must not be resumed from.
    ///
    /// # Errors
    /// Errors of the disk.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(self.sums.as_bytes())?;
        self.out.flush()
    }
}

/// The header for parts of these sizes, in this order.
fn header(sizes: &[PartSize]) -> Vec<u8> {
    let mut end = 0;
    let entry = |(name, dtype, bytes): &PartSize| {
        let start = end;
        end += *bytes as u64;
        let shape = vec![bytes * 8 / dtype.bitsize()];
        Entry { name: name.clone(), dtype: *dtype, shape, start, end }
    };
    encode_header(&sizes.iter().map(entry).collect::<Vec<_>>())
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

/// The parts of a saved training that is read.
pub(super) struct SavedParts {
    path: PathBuf,
    fingerprint: String,
    tensors: BTreeMap<String, Stored>,
    sums: BTreeSet<String>,
}

impl SavedParts {
    /// Opens the file `path`, saved by the run `fingerprint`.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let (file, entries) = SourceFile::open(path).map_err(|e| e.better_remedy(START_OVER))?;
        let tensors = entries
            .into_iter()
            .map(|entry| (entry.name.clone(), Stored::of_file(&file, entry)))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            fingerprint: fingerprint.to_owned(),
            tensors,
            sums: BTreeSet::new(),
        })
    }

    /// Reads the sums, which all parts are checked by from then on.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn read_sums(&mut self) -> Result<()> {
        let sums = String::from_utf8(self.unchecked(SUMS)?).unwrap_or_default();
        self.sums = sums.split_inclusive('\n').map(str::to_owned).collect();
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The error for a file that isn't a state; `what` says why.
    pub fn malformed(&self, what: &str) -> Error {
        Error::new(Kind::Malformed, what.to_owned()).file(&self.path).remedy(START_OVER)
    }

    /// The bytes of the part `name`, which may have changed since they were saved.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where there is no such part; errors of reading.
    pub fn unchecked(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.malformed("this is not a saved training").tensor(name))?;
        let mut bytes = vec![0; tensor.bytes() as usize];
        tensor.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of the part `name`, as they were saved.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where they have changed since; as for [`Self::unchecked`].
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = self.unchecked(name)?;
        if self.sums.contains(&sum(&self.fingerprint, name, &bytes)) {
            Ok(bytes)
        } else {
            Err(self.malformed("this is not what was saved here").tensor(name))
        }
    }

    /// The numbers of the part `name`.
    ///
    /// # Errors
    /// As for [`Self::bytes`].
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.bytes(name)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    /// The bytes of the part `name`, of a parameter that takes `size` bytes.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where it takes another number; as for [`Self::bytes`].
    pub fn sized(&self, name: &str, size: u64) -> Result<Vec<u8>> {
        match self.bytes(name)? {
            bytes if bytes.len() as u64 == size => Ok(bytes),
            _ => Err(self.malformed("a saved parameter of another size").tensor(name)),
        }
    }
}
