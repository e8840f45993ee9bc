//! Sweeps over the original model whose findings become weights of the converted one.

use std::path::{Path, PathBuf};

use moe_forward::{Batch, DataSpec, Observer, Prompts};
use moe_model::{Model, Result};

use super::LayerRecord;

/// One sweep over the original model, from which weights of the converted one follow.
pub struct Survey {
    /// The text.
    pub text: TextSource,
    /// What watches the sweep.
    pub surveyor: Box<dyn Surveyor>,
}

/// Text for a survey.
#[derive(Debug, Clone, PartialEq)]
pub enum TextSource {
    /// Files that the user names.
    Data {
        /// The files.
        specs: Vec<DataSpec>,
        /// Tokens of a window.
        sequence_length: usize,
        /// Most tokens of a label.
        max_tokens: usize,
    },
    /// A file of prompts.
    Prompts {
        /// The file.
        path: PathBuf,
        /// How many sets of prompts it must have.
        sets: usize,
    },
}

impl TextSource {
    /// The files that it is read from.
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::Data { specs, .. } => DataSpec::files(specs).collect(),
            Self::Prompts { path, .. } => vec![path],
        }
    }
}

/// Tokens of a survey.
#[derive(Debug, Clone)]
pub enum SurveyText {
    /// Of files.
    Data(Batch),
    /// Of prompts.
    Prompts(Prompts),
}

impl SurveyText {
    /// All sequences.
    pub fn batch(&self) -> &Batch {
        match self {
            Self::Data(batch) => batch,
            Self::Prompts(prompts) => &prompts.batch,
        }
    }
}

/// Watches a sweep over the original model, and makes weights of what it sees.
pub trait Surveyor: Observer + Send + Sync {
    /// Is told what is about to come.
    ///
    /// # Errors
    /// What reading weights returns.
    fn begin(&mut self, text: &SurveyText) -> Result<()>;

    /// The most bytes that it holds while it looks at `tokens` tokens of `model`, beside the
    /// sweep's own. All of them come at once.
    fn working_bytes(&self, model: &Model, tokens: usize) -> u64;

    /// Adds what it found to the records of the layers.
    fn record(&self, layers: &mut [LayerRecord]);
}
