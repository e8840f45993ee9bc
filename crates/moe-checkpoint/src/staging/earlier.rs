//! Earlier results, which `--overwrite` replaces as long as all that is in them is theirs.

use std::fs;
use std::path::{Path, PathBuf};

use super::OutputOptions;
use crate::error::{Error, Kind, Result};
use crate::manifest::{MANIFEST_FILE, Manifest};

/// Refuses to replace `target` by a new result, unless it is an empty directory or an earlier result in which nothing else lies.
///
/// # Errors
/// [`Kind::Usage`], naming what would be lost.
pub(super) fn check(target: &Path, options: OutputOptions<'_>) -> Result<()> {
    let kind = target.symlink_metadata().map_err(|e| Error::io("cannot look at the output", target, e))?.file_type();
    if kind.is_symlink() {
        return Err(Error::new(Kind::Usage, "the output exists and is a link, which was not written by moe-convert")
            .file(target)
            .remedy("give the path that the link leads to, remove it yourself, or choose another name"));
    }
    let entries = fs::read_dir(target).map(|mut entries| entries.next().is_some());
    if entries.as_ref().is_ok_and(|has_some| !has_some) {
        return Ok(());
    }
    if !target.join(options.replaceable_if).is_file() {
        return Err(Error::new(Kind::Usage, "the output exists and was not written by moe-convert")
            .file(target)
            .remedy("--overwrite replaces earlier results only; remove it yourself or choose another name"));
    }
    let listed = match Manifest::read(target) {
        Ok(Some(manifest)) => manifest,
        Ok(None) | Err(_) => {
            let what = format!("the output exists, and no {MANIFEST_FILE} says which of its files are a result's");
            return Err(Error::new(Kind::Usage, what)
                .file(target.join(MANIFEST_FILE))
                .remedy("remove the output yourself, or choose another name"));
        }
    };
    match foreign(target, Path::new(""), &listed, options)? {
        None => Ok(()),
        Some(file) => Err(Error::new(Kind::Usage, "--overwrite would remove this, which no run has written")
            .file(target.join(file))
            .remedy("move it elsewhere, or choose another output")),
    }
}

/// Something in the folder `below` of `target` that is not the result's.
fn foreign(target: &Path, below: &Path, listed: &Manifest, options: OutputOptions<'_>) -> Result<Option<PathBuf>> {
    let dir = target.join(below);
    let fail = |e| Error::io("cannot look through this earlier result", &dir, e);
    let mut entries = fs::read_dir(&dir).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (name, kind) = (below.join(entry.file_name()), entry.file_type().map_err(fail)?);
        let shown = name.to_string_lossy();
        let is_ours = || {
            let unlisted = [MANIFEST_FILE, options.replaceable_if].into_iter().chain(options.unlisted.iter().copied());
            listed.files.contains_key(shown.as_ref()) || unlisted.into_iter().any(|ours| ours == shown)
        };
        if kind.is_dir() {
            let lists_some = listed.files.keys().any(|file| Path::new(file).starts_with(&name));
            let found = if lists_some { foreign(target, &name, listed, options)? } else { Some(name) };
            if found.is_some() {
                return Ok(found);
            }
        } else if !is_ours() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
