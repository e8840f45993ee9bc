//! Text for evaluation and calibration: files with a label and a weight, tokenized into windows.

mod label;
mod options;
mod spec;

use std::path::Path;

use moe_checkpoint::{Result, counted};

use self::label::LabelReader;
use self::spec::check_weights;
use crate::batch::Batch;
use crate::text::Encoder;
use crate::text_read::TextRead;

pub use self::options::TokenizeOptions;
pub use self::spec::DataSpec;

/// The sequences of one label.
#[derive(Debug, Clone)]
pub struct Domain {
    /// The label of its files.
    pub label: String,
    /// The domain's share in pooled figures, if given.
    pub weight: Option<f64>,
    /// Token ids, at least two in each sequence.
    pub sequences: Vec<Vec<u32>>,
}

/// Tokenized data, with one domain per label, in order of first appearance.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// The domains.
    pub domains: Vec<Domain>,
    /// The facts about each file that was read, in the order of the files.
    pub texts: Vec<TextRead>,
}

impl Corpus {
    /// Reads and tokenizes `specs` with the tokenizer of the checkpoint in `model_dir`.
    ///
    /// If windows aren't drawn, files are read from their beginning, up to
    /// [`TokenizeOptions::max_tokens`]. If they are drawn, a label of more than 4 MiB and more than
    /// 16 bytes for each wanted token is read at random places. Of a smaller label, all windows are
    /// made, and then drawn. If there is no room for all of them, they are made twice: first to
    /// know their lengths, then to hold those that were drawn.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Missing`] without a tokenizer or a file;
    /// [`moe_checkpoint::Kind::Unsupported`] for a file of another format;
    /// [`moe_checkpoint::Kind::Malformed`] for lines that aren't a record of a known form;
    /// [`moe_checkpoint::Kind::Usage`] if nothing is left to predict.
    pub fn load(specs: &[DataSpec], model_dir: &Path, options: TokenizeOptions) -> Result<Self> {
        options.check()?;
        let files = specs.iter().map(DataSpec::open).collect::<Result<Vec<_>>>()?;
        check_weights(specs)?;
        let mut encoder =
            Encoder::new(model_dir, options.vocab, options.clock).within(options.memory_bytes);
        let labels = by_label(specs);
        let draws = options.sample.is_some();
        let room = options.room.map(|room| room.shared(labels.len(), options.max_tokens, draws));
        let mut texts: Vec<Option<TextRead>> = specs.iter().map(|_| None).collect();
        let mut domains: Vec<Domain> = Vec::new();
        for own in labels {
            let room = room.map(|room| {
                domains.iter().fold(room, |room, domain| room.without(&domain.sequences))
            });
            let files = own.iter().map(|at| &files[*at]).collect();
            let reader = LabelReader { files, encoder: &mut encoder, options, room };
            let (sequences, read) = reader.read(domains.len() as u64)?;
            own.iter().zip(read).for_each(|(at, read)| texts[*at] = Some(read));
            let DataSpec { label, weight, .. } = &specs[own[0]];
            domains.push(Domain { label: label.clone(), weight: *weight, sequences });
        }
        Ok(Self { domains, texts: texts.into_iter().flatten().collect() })
    }

    /// Describes how much was read, and why some of it was dropped, for errors about too little
    /// data.
    pub fn account(&self) -> String {
        let tokens = self.sum(|text| text.tokens + text.alone + text.padding);
        let documents = self.sum(|text| text.documents);
        let read = format!(
            "{} of {} were read",
            counted(tokens as u64, "token"),
            counted(documents as u64, "document")
        );
        let dropped = self.dropped();
        if dropped.is_empty() {
            format!("{read}, and all were kept")
        } else {
            format!("{read}, of which these were left out: {}", dropped.join(", "))
        }
    }

    /// Returns the numbers of tokens that were read but dropped, with the reasons.
    fn dropped(&self) -> Vec<String> {
        let beyond = self.sum(|text| text.tokens).saturating_sub(self.tokens());
        let reasons = [
            (beyond, "beyond the number of tokens that was asked for"),
            (
                self.sum(|text| text.alone),
                "alone at the end of a document or window, where there is nothing to predict",
            ),
            (self.sum(|text| text.padding), "masked or padding"),
        ];
        let dropped = reasons.iter().filter(|(count, _)| *count > 0);
        dropped.map(|(count, why)| format!("{count} {why}")).collect()
    }

    fn sum(&self, count: fn(&TextRead) -> usize) -> usize {
        self.texts.iter().map(count).sum()
    }

    /// Returns the sequences of all domains in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.domains.iter().flat_map(|d| &d.sequences).map(Vec::as_slice)
    }

    /// Joins all sequences end to end.
    pub fn batch(&self) -> Batch {
        Batch::new(self.sequences())
    }

    /// Returns the length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.sequences().map(<[u32]>::len).max().unwrap_or(0)
    }

    /// Returns the number of tokens.
    pub fn tokens(&self) -> usize {
        self.domains.iter().flat_map(|d| &d.sequences).map(Vec::len).sum()
    }
}

/// Groups the indices of `specs` by label, in order of first appearance.
fn by_label(specs: &[DataSpec]) -> Vec<Vec<usize>> {
    let mut labels: Vec<Vec<usize>> = Vec::new();
    for (at, spec) in specs.iter().enumerate() {
        match labels.iter_mut().find(|own| specs[own[0]].label == spec.label) {
            Some(own) => own.push(at),
            None => labels.push(vec![at]),
        }
    }
    labels
}

#[cfg(test)]
mod tests;
