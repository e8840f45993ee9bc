//! Pages of a finished result, made again from its receipt.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use moe_checkpoint::{
    Error, FileKind, Kind, RECEIPT_FILE, Result, StagedFile, check_file, read_text,
};

use super::{html, pages};
use crate::receipt::Receipt;

/// A page that this program wrote, of any result.
const PAGE: FileKind = FileKind {
    content: "a report of moe-convert",
    holds: |path| {
        read_text(path, MAX_PAGE_BYTES).is_ok_and(|page| page.starts_with(html::BEGINNING))
    },
    is_text: false,
};
const MAX_PAGE_BYTES: u64 = 256 << 20;

/// The pages of the result in `dir` by file name, the last pass's first: byte for byte what the run
/// wrote.
///
/// # Errors
/// As for [`Receipt::read`]; [`Kind::Usage`] for a result without pages.
pub fn report(dir: &Path) -> Result<Vec<(String, String)>> {
    let pages = pages(&Receipt::read(dir)?);
    if pages.is_empty() {
        let what =
            "this result has no report: nothing was decided about its experts, and nothing trained";
        return Err(Error::new(Kind::Usage, what)
            .file(dir.join(RECEIPT_FILE))
            .remedy("its README.md says how it was made"));
    }
    Ok(pages)
}

/// Writes [`report`]'s pages to the directory `output`, which is created if it doesn't exist.
/// Earlier pages are replaced where `overwrite` is set. If one can't be written, none is.
///
/// # Errors
/// As for [`report`], and errors of writing; [`Kind::Usage`] where a page may not be replaced, or
/// `output` holds a model, whose files are listed by their hashes.
pub fn write_report(dir: &Path, output: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    let pages = report(dir)?;
    fs::create_dir_all(output).map_err(|e| Error::io("cannot make this directory", output, e))?;
    let mut found = Vec::new();
    for (name, _) in &pages {
        let path = output.join(name);
        found.push((check_file(&path, &PAGE, overwrite)?, path));
    }
    for ((found, path), (_, page)) in found.iter().zip(&pages) {
        StagedFile::create(path, *found)?.commit(|file| file.write_all(page.as_bytes()))?;
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}
