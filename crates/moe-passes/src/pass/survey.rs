//! Sweeps over the original model whose findings become weights of the converted model.

use std::path::PathBuf;

use moe_forward::{Batch, DataSpec, Observer, Prompts};
use moe_model::{Model, Result};

use super::LayerRecord;

/// A sweep over the original model that makes weights of the converted model.
pub struct Survey {
    /// The text of the sweep.
    pub text: TextSource,
    /// The observer of the sweep.
    pub surveyor: Box<dyn Surveyor>,
}

/// Text for a survey.
#[derive(Debug, Clone, PartialEq)]
pub enum TextSource {
    /// Files that the user names.
    Data {
        /// The files.
        specs: Vec<DataSpec>,
        /// The number of tokens of a window.
        sequence_length: usize,
        /// The maximum number of tokens of a label.
        max_tokens: usize,
    },
    /// A file of prompts.
    Prompts {
        /// The path of the file.
        path: PathBuf,
        /// The number of sets of prompts that the file must have.
        sets: usize,
    },
}

/// The tokens of a survey.
#[derive(Debug, Clone)]
pub enum SurveyText {
    /// Tokens from files of text.
    Data(Batch),
    /// Tokens of prompts.
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

/// Watches a sweep over the original model, and makes weights from what it sees.
pub trait Surveyor: Observer + Send + Sync {
    /// Receives the text of the sweep that is about to start.
    ///
    /// # Errors
    /// If what it needs of the model can't be read.
    fn begin(&mut self, text: &SurveyText) -> Result<()>;

    /// The maximum number of bytes that it holds for `tokens` tokens of `model`, in addition to the
    /// sweep's own. All tokens come at once.
    fn working_bytes(&self, model: &Model, tokens: usize) -> u64;

    /// Writes its findings into the records of the layers.
    fn record(&self, layers: &mut [LayerRecord]);
}
