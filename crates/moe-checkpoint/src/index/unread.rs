//! Sentences about weights that aren't read here: which loaders read them.

/// Says what other loaders do with the files `unread` in a model's folder. `is_indexed` says
/// whether an index names the files that are read here.
pub(super) fn warnings(unread: &[&str], is_indexed: bool) -> Vec<String> {
    let warnings = [
        listed(unread, is_mistral).map(|files| of_mistral(&files)),
        listed(unread, is_safetensors).map(|files| of_safetensors(&files, is_indexed)),
        listed(unread, is_index).map(|files| of_index(&files)),
        listed(unread, is_pickled).map(|files| of_pickled(&files)),
    ];
    warnings.into_iter().flatten().collect()
}

/// Lists the `wanted` ones of `names` in a few words; None if there are none.
fn listed(names: &[&str], wanted: fn(&str) -> bool) -> Option<String> {
    let wanted: Vec<&&str> = names.iter().filter(|name| wanted(name)).collect();
    match wanted.as_slice() {
        [] => None,
        [one] => Some(one.escape_debug().to_string()),
        [first, .., last] => Some(format!(
            "{} … {} ({} files)",
            first.escape_debug(),
            last.escape_debug(),
            wanted.len()
        )),
    }
}

fn is_mistral(name: &str) -> bool {
    name.starts_with("consolidated") && name.ends_with(".safetensors")
}

fn is_safetensors(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".safetensors") && !is_mistral(name)
}

/// Variants, as transformers calls them, have their own index: `model.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    name.contains(".safetensors.index") && name.ends_with(".json")
}

fn is_pickled(name: &str) -> bool {
    ["pytorch_model", "consolidated", "model"].iter().any(|start| name.starts_with(start))
        && [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
}

fn of_mistral(files: &str) -> String {
    format!(
        "a second set of weights, {files}: transformers and this program read the weights in Hugging Face's format, \
         vLLM reads that instead: remove the set that isn't meant"
    )
}

fn of_safetensors(files: &str, is_indexed: bool) -> String {
    let who = if is_indexed {
        "no index names it, so that neither transformers nor this program reads it"
    } else {
        "without an index, vLLM and SGLang read all .safetensors files; transformers and this program don't"
    };
    format!("{files} next to the weights: {who}: move unused files to another folder")
}

fn of_index(files: &str) -> String {
    format!(
        "{files}, an index of other weights, is not followed by transformers and this program unless it is asked \
         for: move unused files to another folder"
    )
}

fn of_pickled(files: &str) -> String {
    format!(
        "a second set of weights, {files}, is not read: all loaders take .safetensors files first"
    )
}
