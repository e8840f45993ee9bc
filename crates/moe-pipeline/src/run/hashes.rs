//! SHA-256 of all inputs of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Result, sha256_bytes, sha256_file};
use rayon::prelude::*;

use crate::card;
use crate::fingerprint::hashes_of;
use crate::receipt::Receipt;

/// The name for the hashed fields of the source's card, which isn't copied as a file.
const FRONT_MATTER: &str = "README.md (licence and languages)";

/// SHA-256 of the inputs.
pub(crate) struct Hashes {
    source: BTreeMap<String, String>,
    others: Vec<BTreeMap<String, String>>,
    texts: BTreeMap<String, String>,
}

impl Hashes {
    /// Hashes `source`, `others` and `texts`; for texts that are read in parts, `digests` has the
    /// hash of the part that was read.
    pub(super) fn of<'a>(
        source: &Checkpoint,
        others: impl Iterator<Item = &'a Checkpoint>,
        texts: &[&Path],
        digests: &BTreeMap<PathBuf, String>,
    ) -> Result<Self> {
        let mut of_source = hash_checkpoint(source)?;
        // The result's card carries license and languages over from the source's card.
        let front = card::carried(source.dir()).yaml;
        if !front.is_empty() {
            of_source.insert(FRONT_MATTER.to_owned(), sha256_bytes(front.as_bytes()));
        }
        Ok(Self {
            source: of_source,
            others: others.map(hash_checkpoint).collect::<Result<_>>()?,
            texts: hashes_of(texts, digests)?,
        })
    }

    pub fn record(self, receipt: &mut Receipt) {
        receipt.source.sha256 = self.source;
        receipt
            .others
            .iter_mut()
            .zip(self.others)
            .for_each(|(record, hashes)| record.sha256 = hashes);
        receipt.texts = self.texts;
    }
}

/// SHA-256 of config, weights and all side files that could be copied, by name in the checkpoint's
/// folder.
fn hash_checkpoint(checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let config = checkpoint.dir().join(CONFIG_FILE);
    let side_files = checkpoint.side_files().carried.iter().map(|file| file.path.as_path());
    let read = checkpoint
        .files()
        .iter()
        .map(|file| file.path())
        .chain([config.as_path()])
        .chain(side_files);
    let hash = |path: &Path| -> Result<(String, String)> {
        let name = path.strip_prefix(checkpoint.dir()).unwrap_or(path);
        Ok((name.to_string_lossy().into_owned(), sha256_file(path)?))
    };
    read.collect::<Vec<_>>().par_iter().map(|path| hash(path)).collect()
}
