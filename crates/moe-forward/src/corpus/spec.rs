//! Data files as named on a command line or in a recipe.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use moe_checkpoint::{Error, Kind, Result};
use serde::Deserialize;

use crate::text::TextFile;

/// A data file as the user writes it: `path`, `label=path` or `label=path@weight`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DataSpec {
    /// The domain; by default the file's name without its extension.
    pub label: String,
    /// The file, of text or JSON records: its content decides.
    pub path: PathBuf,
    /// The share of its domain in pooled figures, if given.
    pub weight: Option<f64>,
}

impl DataSpec {
    /// Returns the files of `specs`.
    pub fn files(specs: &[Self]) -> impl Iterator<Item = &Path> {
        specs.iter().map(|spec| spec.path.as_path())
    }

    /// Opens the file.
    pub(super) fn open(&self) -> Result<TextFile> {
        TextFile::open(&self.path).map_err(|error| {
            let name = format!("{}={}", self.label, self.path.display());
            // Without its label, the file would be another one.
            if error.kind() == Kind::Missing && Path::new(&name).exists() {
                let what = format!("no such data file; {:?} was taken for its label", self.label);
                return Error::new(Kind::Missing, what)
                    .file(&self.path)
                    .remedy(format!("to mean the file {name}, give ./{name}"));
            }
            error
        })
    }
}

/// Splits `path@weight`.
fn weighed(text: &str) -> (&str, Option<f64>) {
    match text.rsplit_once('@').map(|(path, weight)| (path, weight.parse::<f64>())) {
        Some((path, Ok(weight))) => (path, Some(weight)),
        _ => (text, None),
    }
}

/// Splits `path@percentage%`.
fn weighed_in_percent(text: &str) -> Option<(&str, f64)> {
    let (path, weight) = text.rsplit_once('@')?;
    let percent = weight.strip_suffix('%')?.trim().parse().ok()?;
    Some((path, percent))
}

impl FromStr for DataSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (label, rest) = match text.split_once('=') {
            Some((label, rest)) if !label.is_empty() && !label.contains('/') => (Some(label), rest),
            _ => (None, text),
        };
        if let Some((path, percent)) = weighed_in_percent(rest) {
            let what = format!("cannot understand --data {text:?}: its weight is in per cent");
            let label = label.map_or(String::new(), |label| format!("{label}="));
            return Err(Error::new(Kind::Usage, what)
                .remedy(format!("write {label}{path}@{}", percent / 100.0)));
        }
        let (path, weight) = weighed(rest);
        if path.is_empty() || weight.is_some_and(|w| !(w > 0.0 && w.is_finite())) {
            return Err(Error::new(Kind::Usage, format!("cannot understand --data {text:?}"))
                .remedy("give path, label=path or label=path@weight with a positive weight"));
        }
        let path = PathBuf::from(path);
        let label = match label {
            Some(label) => label.to_owned(),
            None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        Ok(Self { label, path, weight })
    }
}

impl<'de> Deserialize<'de> for DataSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Refuses `specs` of which only some have weights.
pub(super) fn check_weights(specs: &[DataSpec]) -> Result<()> {
    let with = specs.iter().find(|spec| spec.weight.is_some());
    let without = specs.iter().find(|spec| spec.weight.is_none());
    let (Some(with), Some(without)) = (with, without) else { return Ok(()) };
    let what = format!("{:?} has a weight, {:?} has none", with.label, without.label);
    Err(Error::new(Kind::Usage, what)
        .options(&["--data"])
        .file(&without.path)
        .remedy("give every file of --data @WEIGHT, or none"))
}
