//! Checks that a result is as it was written: no file is missing, changed or added.

use std::fs;
use std::path::Path;

use moe_checkpoint::{
    CARD_FILE, Error, Folder, Kind, LOG_FILE, MANIFEST_FILE, Manifest, RECEIPT_FILE, RUN_FILE,
    Result, Written, is_own_log, is_own_run_record, is_run_record, is_weights, sha256_file,
};
use rayon::prelude::*;

use crate::progress::{Progress, Unit};

/// No model has more files; a folder with more is refused.
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
    let folder = Folder::of(dir)?;
    for name in [MANIFEST_FILE, RECEIPT_FILE] {
        if dir.join(name).symlink_metadata().is_ok() {
            folder.check_file(&dir.join(name))?;
        }
    }
    let manifest = Manifest::read(dir)?;
    let written = dir.join(RECEIPT_FILE).is_file();
    if !written && is_run_record(&dir.join(RUN_FILE)) {
        let what = format!(
            "{RUN_FILE} is of a run that wrote a receipt here, {RECEIPT_FILE}, which is not there"
        );
        return Err(Error::new(Kind::Missing, what)
            .file(dir.join(RECEIPT_FILE))
            .remedy("copy the directory again, whole, or convert again"));
    }
    let Some(manifest) = manifest else {
        if written {
            return Err(Error::new(
                Kind::Missing,
                format!("there is a receipt ({RECEIPT_FILE}), but no {MANIFEST_FILE}"),
            )
            .file(dir.join(MANIFEST_FILE))
            .remedy("nothing says what these files should be: copy the directory again, whole, or convert again"));
        }
        return Ok((None, Vec::new()));
    };
    if written {
        Written::read(dir)?.check(dir, &manifest)?;
    } else if manifest.files.is_empty() {
        return Err(Error::new(Kind::Mismatch, format!("{MANIFEST_FILE} lists no file"))
            .file(dir.join(MANIFEST_FILE))
            .remedy(
                "copy the directory again, whole; a list that was never filled may be removed",
            ));
    }
    let unlisted = unlisted(dir, &manifest)?;
    let loaded: Vec<&str> =
        unlisted.iter().map(String::as_str).filter(|name| is_loaded(name)).collect();
    if written && !loaded.is_empty() {
        let what =
            format!("{MANIFEST_FILE} doesn't list what loaders would load: {}", loaded.join(", "));
        return Err(Error::new(Kind::Mismatch, what).file(dir.join(loaded[0])).remedy(
            "it was added after this result was written: move it elsewhere, or look at it before you load anything",
        ));
    }
    Ok((Some(manifest), unlisted))
}

/// Files of `dir` and of its folders that the manifest doesn't list, sorted; a hidden folder is one
/// entry.
fn unlisted(dir: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    let mut files = 0;
    let within = Folder::of(dir)?;
    while let Some(prefix) = folders.pop() {
        let folder = dir.join(&prefix);
        let fail = |e| Error::io("cannot list this directory", &folder, e);
        for entry in fs::read_dir(&folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            files += 1;
            if files > MAX_FILES {
                let what =
                    format!("there are more than {MAX_FILES} files here, which no model has");
                return Err(Error::new(Kind::Unsupported, what)
                    .file(dir)
                    .remedy("move what isn't the model's elsewhere"));
            }
            let shown = entry.file_name().to_string_lossy().escape_debug().to_string();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // A link to a folder isn't followed: it counts as an unlisted file.
            if entry.file_type().map_err(fail)?.is_dir() {
                match shown.starts_with('.') {
                    true => found.push(format!("{prefix}{shown}/")),
                    false => folders.push(name + "/"),
                }
                continue;
            }
            let path = entry.path();
            // A hub cache has links to blobs in place of files.
            let is_run = is_own_unlisted(dir, &name) && within.check_file(&path).is_ok();
            if !manifest.files.contains_key(&name) && !is_run {
                // A link that doesn't lead to a file may lead to a folder, now or later, with any
                // content.
                let is_open = entry.file_type().map_err(fail)?.is_symlink() && !path.is_file();
                found.push(format!("{prefix}{shown}{}", if is_open { "/" } else { "" }));
            }
        }
    }
    found.sort();
    Ok(found)
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
    const NAMES: [&str; 8] = [
        "modules.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "tekken.json",
        "params.json",
    ];
    // sentence-transformers models have a folder for each module: 1_Pooling.
    let is_module = folder
        .split('_')
        .next()
        .is_some_and(|number| !number.is_empty() && number.parse::<u8>().is_ok());
    let is_config = file.ends_with(".json")
        && ["config", "chat_template"].iter().any(|part| file.contains(part));
    let is_vocabulary =
        file.starts_with("tokenizer") || file.ends_with(".model") || file.ends_with(".tiktoken");
    (folder.is_empty() || is_module)
        && (is_weights(file) || is_config || is_vocabulary || NAMES.contains(&file))
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
        if !path.is_file() {
            return Err(Error::new(Kind::Missing, format!("{MANIFEST_FILE} lists a file that is not there"))
                .file(&path)
                .remedy("copy the directory again, whole"));
        }
        folder.check_file(&path)?;
        let actual = sha256_file(&path)?;
        progress.advance(1);
        if actual == *expected {
            return Ok(());
        }
        let remedy = match name.as_str() {
            CARD_FILE => format!(
                "copy it again; or, if you edited this card, put what `sha256sum {CARD_FILE}` prints there into {MANIFEST_FILE}"
            ),
            _ => "this file changed after it was written: copy or convert it again".to_owned(),
        };
        Err(Error::new(Kind::Mismatch, format!("SHA-256 is {actual}, {MANIFEST_FILE} says {expected}"))
            .file(&path)
            .remedy(remedy))
    })
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
