//! The sums of an observation, which statistics of earlier ones are added to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moe_checkpoint::Result;
use moe_forward::Group;
use moe_math::statistics::{CalibrationSums, MixtureSizes};
use moe_passes::LayerStatistics as _;

use crate::statistics::StatisticsFile;

/// The sums that were observed so far, by groups of tokens.
#[derive(Default)]
pub(super) struct ObservedSums {
    pub groups: Vec<Group>,
    /// The sums of each group, by layer.
    pub layers: BTreeMap<usize, Vec<CalibrationSums>>,
    /// Tokens of the sweep.
    pub tokens: usize,
    /// For texts that were read in parts, hashes of the parts that were read.
    pub digests: BTreeMap<PathBuf, String>,
    /// Whether a text has more tokens than were read.
    pub has_more: bool,
}

impl ObservedSums {
    /// Adds the sums of `file` to those of the same label and half.
    ///
    /// # Errors
    /// Errors of reading it.
    pub fn add(&mut self, file: &StatisticsFile) -> Result<()> {
        let places: Vec<usize> = file.groups().iter().map(|group| self.place(group)).collect();
        for (index, sizes) in &file.about().layers {
            let sums = self.layers.entry(*index).or_default();
            sums.resize(self.groups.len(), CalibrationSums::new(*sizes));
            let found = file.layer(*index)?.unwrap_or_default();
            for (place, found) in places.iter().zip(&found) {
                sums[*place].add(found, 1.0);
            }
        }
        Ok(())
    }

    /// Counts the tokens of `group`, and returns the place of its label and half.
    fn place(&mut self, group: &Group) -> usize {
        let same = |known: &Group| known.label == group.label && known.half == group.half;
        if let Some(place) = self.groups.iter().position(same) {
            self.groups[place].tokens += group.tokens;
            return place;
        }
        self.groups.push(group.clone());
        self.groups.len() - 1
    }

    /// The sizes of each layer.
    pub fn sizes(&self) -> BTreeMap<usize, MixtureSizes> {
        self.layers.iter().map(|(index, sums)| (*index, sums[0].sizes())).collect()
    }
}
