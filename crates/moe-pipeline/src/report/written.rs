//! Pages of a finished result, made again from its receipt.

use std::fs;
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    Error, FileKind, Kind, MANIFEST_FILE, Manifest, RECEIPT_FILE, Result, Seal, check_file,
    lies_in_a_model, read_text, sha256_file, write_files,
};

use super::{html, pages};
use crate::file_names::REPORT_FILE;
use crate::progress::Progress;
use crate::receipt::Receipt;
use crate::verify::check_lists;

/// A page that this program wrote, of any result. An edited one belongs to its user.
const PAGE: FileKind = FileKind {
    content: "a report as moe-convert wrote it",
    holds: |path| {
        read_text(path, MAX_PAGE_BYTES)
            .is_ok_and(|page| page.starts_with(html::BEGINNING) && Seal::XML.is_intact(&page))
    },
    is_text: false,
};
const MAX_PAGE_BYTES: u64 = 256 << 20;

/// The pages of the result in `dir` by file name, the last pass's first: byte for byte what the run
/// wrote. Where the receipt isn't the one that the manifest lists, `progress` and the pages say so.
///
/// # Errors
/// As for [`Receipt::read`], and where the receipt is a link out of `dir`; [`Kind::Usage`] for a
/// result without pages.
pub fn report(dir: &Path, progress: &dyn Progress) -> Result<Vec<(String, String)>> {
    check_lists(dir)?;
    let mut receipt = Receipt::read(dir)?;
    if let Some(why) = unlisted(dir)? {
        progress.note(&format!("{}: {why}", dir.display()));
        receipt.warnings.insert(0, why);
    }
    let pages = pages(&receipt);
    if pages.is_empty() {
        let what =
            "this result has no report: nothing was decided about its experts, and nothing trained";
        return Err(Error::new(Kind::Usage, what)
            .file(dir.join(RECEIPT_FILE))
            .remedy("its README.md says how it was made"));
    }
    Ok(pages)
}

/// Why the receipt in `dir` may not be what the run wrote; None where the manifest lists it.
fn unlisted(dir: &Path) -> Result<Option<String>> {
    let found = sha256_file(&dir.join(RECEIPT_FILE))?;
    let manifest = Manifest::read(dir)?.unwrap_or_default();
    if manifest.files.get(RECEIPT_FILE) == Some(&found) {
        return Ok(None);
    }
    Ok(Some(format!(
        "{RECEIPT_FILE} isn't the one that {MANIFEST_FILE} lists, so that nothing says that its figures are those of a run"
    )))
}

/// Writes [`report`]'s pages to the directory `output`, which is created if it doesn't exist. With
/// `overwrite` they replace earlier pages that nobody edited. No page gets its name before all are
/// written, so that on a full disk the earlier ones stay.
///
/// # Errors
/// As for [`report`], and errors of writing; [`Kind::Usage`] where a page may not be replaced, or
/// `output` is or lies in a model, whose files are listed by their hashes.
pub fn write_report(
    dir: &Path,
    output: &Path,
    overwrite: bool,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let pages = report(dir, progress)?;
    if lies_in_a_model(&output.join(REPORT_FILE)) {
        let what = "pages can't be written into the folder of a model or a result";
        return Err(Error::new(Kind::Usage, what)
            .file(output)
            .remedy("give a path outside of models and results"));
    }
    fs::create_dir_all(output).map_err(|e| Error::io("cannot make this directory", output, e))?;
    let mut found = Vec::new();
    for (name, _) in &pages {
        let path = output.join(name);
        found.push((check_file(&path, &PAGE, overwrite)?, path));
    }
    write_files(
        found
            .iter()
            .zip(&pages)
            .map(|((found, path), (_, page))| (path.as_path(), *found, page.as_bytes())),
    )?;
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
