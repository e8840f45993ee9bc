//! Checks that a result is as it was written: no file is missing, changed or added.

use std::fs::{self, FileType};
use std::path::Path;

use moe_checkpoint::{
    CARD_FILE, Error, Folder, Kind, LOG_FILE, ListedFiles, MANIFEST_FILE, Manifest, RECEIPT_FILE,
    RUN_FILE, Result, is_own_log, is_own_run_record, is_run_record, is_weights, sha256_file,
};
use rayon::prelude::*;

use crate::progress::{Progress, Unit};

/// Maximum number of files in a folder; no model has more, and a folder with more is refused.
const MAX_FILES: usize = 1 << 16;

/// The manifest of `dir`, if there is one, and files that it doesn't list. A receipt records the
/// files that the manifest must list.
///
/// # Errors
/// [`Kind::Missing`] and [`Kind::Mismatch`] where a manifest isn't the one that was written with
/// the receipt, or where an unlisted file changes what loaders load.
pub(crate) fn listed(dir: &Path) -> Result<(Option<Manifest>, Vec<String>)> {
    if !dir.is_dir() {
        return Ok((None, Vec::new()));
    }
    check_lists(dir)?;
    let manifest = Manifest::read(dir)?;
    let has_receipt = dir.join(RECEIPT_FILE).is_file();
    if !has_receipt && is_run_record(&dir.join(RUN_FILE)) {
        return Err(without_receipt(dir));
    }
    let Some(manifest) = manifest else {
        return if has_receipt { Err(without_manifest(dir)) } else { Ok((None, Vec::new())) };
    };
    if has_receipt {
        ListedFiles::read(dir)?.check(dir, &manifest)?;
    } else if manifest.files.is_empty() {
        return Err(empty_manifest(dir));
    }
    let unlisted = unlisted(dir, &manifest)?;
    if has_receipt {
        refuse_loaded(dir, &unlisted)?;
    }
    Ok((Some(manifest), unlisted))
}

/// Refuses a manifest or a receipt of `dir` that leads elsewhere.
pub(crate) fn check_lists(dir: &Path) -> Result<()> {
    let folder = Folder::of(dir)?;
    for name in [MANIFEST_FILE, RECEIPT_FILE] {
        if dir.join(name).symlink_metadata().is_ok() {
            folder.check_file(&dir.join(name))?;
        }
    }
    Ok(())
}

fn without_receipt(dir: &Path) -> Error {
    let what = format!(
        "{RUN_FILE} is of a run that wrote a receipt here, {RECEIPT_FILE}, which is not there"
    );
    Error::new(Kind::Missing, what)
        .file(dir.join(RECEIPT_FILE))
        .remedy("copy the directory again, whole, or convert again")
}

fn without_manifest(dir: &Path) -> Error {
    let what = format!("there is a receipt ({RECEIPT_FILE}), but no {MANIFEST_FILE}");
    Error::new(Kind::Missing, what).file(dir.join(MANIFEST_FILE)).remedy(
        "nothing says what these files should be: copy the directory again, whole, or convert again",
    )
}

fn empty_manifest(dir: &Path) -> Error {
    Error::new(Kind::Mismatch, format!("{MANIFEST_FILE} lists no file"))
        .file(dir.join(MANIFEST_FILE))
        .remedy("copy the directory again, whole; a list that was never filled may be removed")
}

/// Refuses files among the `unlisted` ones that loaders would load.
fn refuse_loaded(dir: &Path, unlisted: &[String]) -> Result<()> {
    let names = unlisted.iter().map(String::as_str);
    let loaded: Vec<&str> = names.filter(|name| is_loaded(name)).collect();
    let Some(first) = loaded.first() else { return Ok(()) };
    let what =
        format!("{MANIFEST_FILE} doesn't list what loaders would load: {}", loaded.join(", "));
    Err(Error::new(Kind::Mismatch, what).file(dir.join(first)).remedy(
        "it was added after this result was written: move it elsewhere, or look at it before you load anything",
    ))
}

/// Files of `dir` and of its folders that the manifest doesn't list, sorted; a hidden folder is one
/// entry.
fn unlisted(dir: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let mut search = Search {
        dir,
        within: Folder::of(dir)?,
        manifest,
        folders: vec![String::new()],
        files: 0,
        unlisted: Vec::new(),
    };
    while let Some(prefix) = search.folders.pop() {
        search.folder(&prefix)?;
    }
    search.unlisted.sort();
    Ok(search.unlisted)
}

/// A search through the folders of a result.
struct Search<'a> {
    dir: &'a Path,
    within: Folder,
    manifest: &'a Manifest,
    /// The folders that are left, each with a slash at its end.
    folders: Vec<String>,
    /// The number of entries so far.
    files: usize,
    unlisted: Vec<String>,
}

impl Search<'_> {
    /// Looks at all entries of the folder `prefix`.
    fn folder(&mut self, prefix: &str) -> Result<()> {
        let folder = self.dir.join(prefix);
        let fail = |e| Error::io("cannot list this directory", &folder, e);
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            self.count()?;
            let kind = entry.file_type().map_err(fail)?;
            self.entry(prefix, &entry.path(), kind);
        }
        Ok(())
    }

    /// Notes the entry `path` of the folder `prefix`: to look into it, or as one that isn't listed.
    fn entry(&mut self, prefix: &str, path: &Path, kind: FileType) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if kind.is_dir() && !name.starts_with('.') {
            self.folders.push(format!("{prefix}{name}/"));
            return;
        }
        // A link to a folder isn't followed: it counts as an unlisted file.
        if !kind.is_dir() && self.is_expected(&format!("{prefix}{name}"), path) {
            return;
        }
        // A link that doesn't lead to a file may lead to a folder, now or later, with any content.
        let is_folder = kind.is_dir() || kind.is_symlink() && !path.is_file();
        let end = if is_folder { "/" } else { "" };
        self.unlisted.push(format!("{prefix}{}{end}", name.escape_debug()));
    }

    /// Whether the file `name`, which is at `path`, is listed or one that runs write.
    fn is_expected(&self, name: &str, path: &Path) -> bool {
        // A hub cache has links to blobs in place of files.
        let is_run = is_own_unlisted(self.dir, name) && self.within.check_file(path).is_ok();
        is_run || self.manifest.files.contains_key(name)
    }

    fn count(&mut self) -> Result<()> {
        self.files += 1;
        if self.files <= MAX_FILES {
            return Ok(());
        }
        let what = format!("there are more than {MAX_FILES} files here, which no model has");
        Err(Error::new(Kind::Unsupported, what)
            .file(self.dir)
            .remedy("move what isn't the model's elsewhere"))
    }
}

/// Whether the file `name` of the result `dir` is one that runs write and no manifest lists, and is
/// unchanged since.
fn is_own_unlisted(dir: &Path, name: &str) -> bool {
    match name {
        MANIFEST_FILE => true,
        RUN_FILE => is_own_run_record(dir),
        LOG_FILE => is_own_log(dir),
        _ => false,
    }
}

/// Whether a loader may take the file `name` for a part of the model: weights, code, templates,
/// configs, a tokenizer's files.
fn is_loaded(name: &str) -> bool {
    let (folder, file) = name.rsplit_once('/').map_or(("", name), |(folder, file)| (folder, file));
    // A whole folder is listed where it is hidden, which loaders skip, or a link, which they
    // follow.
    if file.is_empty() {
        return !folder.rsplit('/').next().is_some_and(|last| last.starts_with('.'));
    }
    if file.starts_with('.') || folder.split('/').any(|part| part.starts_with('.')) {
        return false;
    }
    if [".py", ".jinja"].iter().any(|end| file.ends_with(end)) {
        return true;
    }
    (folder.is_empty() || is_module(folder))
        && (is_weights(file) || is_config(file) || is_vocabulary(file))
}

/// sentence-transformers models have a folder for each module: 1_Pooling.
fn is_module(folder: &str) -> bool {
    let number = folder.split('_').next();
    number.is_some_and(|number| !number.is_empty() && number.parse::<u8>().is_ok())
}

fn is_config(file: &str) -> bool {
    const NAMES: [&str; 2] = ["modules.json", "params.json"];
    let is_named = ["config", "chat_template"].iter().any(|part| file.contains(part));
    file.ends_with(".json") && is_named || NAMES.contains(&file)
}

fn is_vocabulary(file: &str) -> bool {
    const NAMES: [&str; 6] = [
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "tekken.json",
    ];
    let ends = [".model", ".tiktoken"];
    file.starts_with("tokenizer")
        || ends.iter().any(|end| file.ends_with(end))
        || NAMES.contains(&file)
}

/// Refuses files that differ from those that `manifest` lists; `what` names them in progress.
pub(crate) fn check_hashes(
    dir: &Path,
    manifest: &Manifest,
    what: &str,
    progress: &dyn Progress,
) -> Result<()> {
    if manifest.files.is_empty() {
        return Ok(());
    }
    progress.stage(&format!("check hashes of {what}"), manifest.files.len() as u64, Unit::Files);
    let folder = Folder::of(dir)?;
    manifest.files.par_iter().try_for_each(|(name, expected)| {
        let path = dir.join(name);
        let actual = hash(&folder, &path)?;
        progress.advance(1);
        if actual == *expected {
            return Ok(());
        }
        let what = format!("SHA-256 is {actual}, {MANIFEST_FILE} says {expected}");
        Err(Error::new(Kind::Mismatch, what).file(&path).remedy(remedy_for_changed(name)))
    })
}

/// The SHA-256 of the file `path`, which is to be in `folder`.
fn hash(folder: &Folder, path: &Path) -> Result<String> {
    if !path.is_file() {
        let what = format!("{MANIFEST_FILE} lists a file that is not there");
        return Err(Error::new(Kind::Missing, what)
            .file(path)
            .remedy("copy the directory again, whole"));
    }
    folder.check_file(path)?;
    sha256_file(path)
}

fn remedy_for_changed(name: &str) -> String {
    match name {
        CARD_FILE => format!(
            "copy it again; or, if you edited this card, put what `sha256sum {CARD_FILE}` prints there into {MANIFEST_FILE}"
        ),
        _ => "this file changed after it was written: copy or convert it again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loaders_look_for_is_told_from_what_people_add() {
        let loaded = [
            "pytorch_model.bin",
            "model.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "adapter_config.json",
            "adapter_model.bin",
            "modeling_x.py",
            "deep/er/code.py",
            "chat_template.jinja",
            "chat_template.json",
            "additional_chat_templates/tool_use.jinja",
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "generation_config.json",
            "preprocessor_config.json",
            "hf_quant_config.json",
            "vocab.json",
            "merges.txt",
            "config.json",
            "tf_model.h5",
            "params.json",
            "qwen.tiktoken",
            "modules.json",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
        ];
        let added = [
            ".git/",
            ".gitattributes",
            ".cache/",
            "LICENSE",
            "notes.txt",
            "results.json",
            "plot.png",
            "runs/model.bin",
            ".hidden.py",
            "README.md.orig",
        ];
        loaded.iter().for_each(|name| assert!(is_loaded(name), "{name}"));
        added.iter().for_each(|name| assert!(!is_loaded(name), "{name}"));
    }
}
