//! Checks on the places that runs write to. An output can't be, contain or lie in anything that the
//! same run reads.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{Existing, Locations, OutputDir, Result, check_file, is_stream};
use moe_passes::Pass;

use crate::file_kinds::PLAN;
use crate::options::ConvertOptions;
use crate::portable::short_names;
use crate::train::TrainingDir;

/// Space for config, cards and file-system overhead, beyond the tensors.
pub(crate) const SLACK_BYTES: u64 = 4 << 20;

/// Refuses outputs of a run of `passes` on `input` that overlap with its inputs or with each other.
///
/// # Errors
/// As for [`Locations::writes`].
pub(crate) fn check_places(
    passes: &[&dyn Pass],
    input: &Path,
    output: &Path,
    further: &[&Path],
) -> Result<()> {
    let mut locations = Locations::default();
    locations.reads(input);
    further.iter().for_each(|path| locations.reads(path));
    passes.iter().flat_map(|pass| pass.inputs().paths()).for_each(|path| locations.reads(path));
    locations.writes(output)?;
    if passes.iter().any(|pass| pass.outputs().training) {
        locations.writes(TrainingDir::of(output).path())?;
    }
    passes.iter().filter_map(|pass| pass.outputs().plan).try_for_each(|path| locations.writes(path))
}

/// Refuses to write the plans of `passes` over anything but plans, and over plans unless
/// `overwrite` is set.
///
/// # Errors
/// As for [`check_file`].
pub(crate) fn check_plans(passes: &[&dyn Pass], overwrite: bool) -> Result<()> {
    passes
        .iter()
        .filter_map(|pass| pass.outputs().plan)
        .try_for_each(|path| check_file(path, &PLAN, overwrite).map(drop))
}

/// The names that receipts have for the plans that `passes` write to files.
pub(crate) fn plan_names<'p>(
    passes: impl Iterator<Item = &'p dyn Pass>,
) -> BTreeMap<&'p Path, String> {
    short_names(passes.filter_map(|pass| pass.outputs().plan).filter(|path| !is_stream(path)))
}

/// Refuses outputs of `passes` that may not be replaced, without writing anything.
///
/// # Errors
/// As for [`OutputDir::check`]; [`moe_checkpoint::Kind::Usage`] for plans, and for the saved state
/// of a stopped training.
pub fn check_output(passes: &[&dyn Pass], output: &Path, options: &ConvertOptions) -> Result<()> {
    OutputDir::check(output, existing(options))?;
    check_plans(passes, options.overwrite)?;
    if passes.iter().any(|pass| pass.outputs().training) {
        TrainingDir::of(output).check(options.resume, options.overwrite)?;
    }
    Ok(())
}

/// Returns which existing outputs the result may replace.
pub(crate) fn existing(options: &ConvertOptions) -> Existing {
    if options.overwrite { Existing::Replaced } else { Existing::Kept }
}
