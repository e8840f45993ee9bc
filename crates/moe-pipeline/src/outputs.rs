//! Where runs write: the kinds of single files, and that no output is, holds or lies in what the
//! same run reads.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{
    Error, FileKind, Kind, Locations, Result, Seal, SourceFile, check_file, is_stream, json,
    read_text,
};
use moe_passes::Pass;
use serde_json::{Map, Value};

use crate::portable::short_names;
use crate::statistics::StatisticsFile;
use crate::train::TrainingDir;

/// What `observe` writes.
pub(crate) const STATISTICS: FileKind = FileKind {
    content: "statistics",
    holds: |path| StatisticsFile::open(path).is_ok(),
    is_text: false,
};

/// What `logits` writes: the one tensor of that name.
pub(crate) const LOGITS: FileKind = FileKind {
    content: "logits",
    holds: |path| {
        let opened = SourceFile::open(path);
        opened.is_ok_and(
            |(_, entries)| matches!(entries.as_slice(), [entry] if entry.name == "logits"),
        )
    },
    is_text: false,
};

/// What `--plan-out` writes. Plans are there to be edited: one that was is its user's.
pub(crate) const PLAN: FileKind = FileKind {
    content: "a plan as moe-convert wrote it",
    holds: |path| {
        let Ok(plan) = json::read_tree::<Value>(path) else { return false };
        let is_intact =
            read_text(path, MAX_REPORT_BYTES).is_ok_and(|text| Seal::JSON.is_intact(&text));
        // One that says nothing is nobody's loss.
        plan == Value::Object(Map::new()) || (is_intact && is_plan(&plan))
    },
    is_text: true,
};

/// What `run --junit` writes; other programs' reports are not replaced.
pub const JUNIT: FileKind = FileKind {
    content: "JUnit XML as moe-convert wrote it",
    holds: |path| {
        let text = read_text(path, MAX_REPORT_BYTES).unwrap_or_default();
        Seal::XML.is_intact(&text) && text.contains("<testsuites ")
    },
    is_text: true,
};

/// More than what a recipe of the most steps has, each with an error.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Decisions about layers, and nothing that plans don't have.
fn is_plan(plan: &Value) -> bool {
    let Some(keys) = plan.as_object() else { return false };
    let layers = match &plan["layers"] {
        Value::Null => return keys.is_empty(),
        layers => layers.as_object(),
    };
    keys.keys().all(|key| ["method", "layers", "sha256"].contains(&key.as_str()))
        && layers.is_some_and(|layers| layers.values().all(|layer| layer["keep"].is_array()))
}

/// Checks whether the summary of a recipe may be appended to what is at `path`: Markdown, or
/// nothing.
///
/// # Errors
/// [`Kind::Usage`] where something else is there, or the path can't be a file's; [`Kind::Missing`]
/// where its directory isn't there.
pub fn check_summary(path: &Path) -> Result<()> {
    const MARKDOWN: FileKind = FileKind { content: "Markdown", holds: is_markdown, is_text: true };
    // Nothing is replaced, so that nobody need allow it.
    let checked = check_file(path, &MARKDOWN, true).map(drop);
    checked.map_err(|error| match error.kind() {
        Kind::Usage if path.is_file() && !is_markdown(path) => Error::new(
            Kind::Usage,
            "the summary would be appended to a file that is not Markdown",
        )
        .file(path)
        .remedy(
            "give a new file, one that a summary was written to before, or one that ends in .md",
        ),
        _ => error,
    })
}

/// Whether the file `path` is text, and Markdown by its name, by what a CI job says of it, or since
/// an earlier summary is in it.
fn is_markdown(path: &Path) -> bool {
    let Ok(text) = read_text(path, MAX_REPORT_BYTES) else { return false };
    let named = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("md"));
    let of_job =
        std::env::var_os("GITHUB_STEP_SUMMARY").is_some_and(|summary| Path::new(&summary) == path);
    !text.contains('\0') && (named || of_job || text.contains(crate::recipe::STEPS_HEADER))
}

/// Refuses outputs of a run of `passes` that read `input`: places that overlap with what is read,
/// or with each other.
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

/// Refuses to write the plans of `passes` over anything but plans, and over these unless
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

/// What the plans that `passes` write to files are called in receipts.
pub(crate) fn plan_names<'p>(
    passes: impl Iterator<Item = &'p dyn Pass>,
) -> BTreeMap<&'p Path, String> {
    short_names(passes.filter_map(|pass| pass.outputs().plan).filter(|path| !is_stream(path)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_is_known_from_other_json() {
        assert!(is_plan(
            &json!({"method": "reap", "layers": {"0": {"experts": 4, "keep": [0, 1]}}})
        ));
        assert!(is_plan(&json!({})));
        for other in [
            json!({"model_type": "mixtral", "layers": {}}),
            json!([1]),
            json!({"layers": 4}),
            json!({"layers": {"0": {"experts": 4}}}),
            json!({"method": "reap"}),
            json!(null),
        ] {
            assert!(!is_plan(&other), "{other}");
        }
    }

    #[test]
    fn reports_replace_reports() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let is_junit = |text: &str| {
            std::fs::write(&path, text).unwrap();
            (JUNIT.holds)(&path)
        };
        let ours = crate::recipe::junit("a", &[]);
        assert!(is_junit(&ours));
        for other in [
            "<testsuite/>",
            "<testsuites></testsuites>",
            &ours.replace("name=\"a\"", "name=\"b\""),
            &format!("{ours}<!-- seen by Jane -->\n"),
            "<html><testsuite/></html>",
            "{}",
            "<?xml version=\"1.0\"?><svg/>",
            "<?xml <testsuite",
            "words",
        ] {
            assert!(!is_junit(other), "{other}");
        }
        let appends = |text: &str| {
            std::fs::write(&path, text).unwrap();
            check_summary(&path).is_ok()
        };
        assert!(appends("") && appends(&crate::recipe::markdown("a", &[], &[])));
        assert!(!appends("words") && !appends("{}") && !appends("# a comment\nkey = 1"));
        let notes = dir.path().join("notes.md");
        std::fs::write(&notes, "# Notes").unwrap();
        check_summary(&notes).unwrap();
    }
}
