//! Files that the outcome of a recipe is written to.

use std::path::Path;

use moe_checkpoint::{Error, FileKind, Kind, Result, Seal, check_file, read_text};

use super::outcome::STEPS_HEADER;

/// The report that `run --junit` writes; reports of other programs aren't replaced.
pub const JUNIT: FileKind = FileKind {
    content: "JUnit XML as moe-convert wrote it",
    holds: |path| {
        let text = read_text(path, MAX_REPORT_BYTES).unwrap_or_default();
        Seal::XML.is_intact(&text) && text.contains("<testsuites ")
    },
    is_text: true,
};

/// Maximum size of a report, larger than that of a recipe with the maximum number of steps, each
/// with an error.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Checks whether the summary of a recipe may be appended to the file at `path`, which must be
/// Markdown or not exist.
///
/// # Errors
/// [`Kind::Usage`] where something else exists, or the path can't be a file's; [`Kind::Missing`]
/// where its directory doesn't exist.
pub fn check_summary(path: &Path) -> Result<()> {
    const MARKDOWN: FileKind = FileKind { content: "Markdown", holds: is_markdown, is_text: true };
    // Nothing is replaced, so no permission is needed.
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

/// Whether the file `path` is text, and Markdown: by its name, because it is the page of a CI job,
/// or because it contains an earlier summary.
fn is_markdown(path: &Path) -> bool {
    let Ok(text) = read_text(path, MAX_REPORT_BYTES) else { return false };
    let named = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("md"));
    let of_job =
        std::env::var_os("GITHUB_STEP_SUMMARY").is_some_and(|summary| Path::new(&summary) == path);
    !text.contains('\0') && (named || of_job || text.contains(STEPS_HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;

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
