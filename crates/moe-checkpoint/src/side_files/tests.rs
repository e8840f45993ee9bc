use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const CARRIED: [&str; 20] = [
    "LICENSE",
    "additional_chat_templates/deep/er.jinja",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "configuration_x.py",
    "generation_config.json",
    "modeling_x.py",
    "params.json",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "readme.py",
    "runs/again.py",
    "spiece.bin",
    "sub/README.md",
    "sub/run.json",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "vocab.zip",
    "whatever",
];

/// Folders end in a slash.
const LEFT_OUT: [&str; 24] = [
    ".git/",
    ".gitattributes",
    "README.md",
    "README_zh.md",
    "__pycache__/",
    "adapter_config.json",
    "checkpoint-500/",
    "global_step3/",
    "logs/",
    "model.Q4_K_M.gguf",
    "moe-convert.json",
    "onnx/",
    "optimizer.pt",
    "original/",
    "other.onnx/",
    "other/x.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "quantize_config.json",
    "report.html/",
    "run.json",
    "runs/optimizer.pt",
    "trainer_state.json",
    "training_args.bin",
];

fn write(dir: &Path, name: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, name).unwrap();
}

/// A folder with all of `CARRIED` and `LEFT_OUT`.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in CARRIED.iter().chain(&["config.json", "SHA256SUMS"]) {
        write(dir.path(), name);
    }
    for name in LEFT_OUT {
        match name.strip_suffix('/') {
            Some(folder) => write(dir.path(), &format!("{folder}/file")),
            None => write(dir.path(), name),
        }
    }
    dir
}

fn found(dir: &TempDir) -> SideFiles {
    SideFiles::of(&Folder::of(dir.path()).unwrap()).unwrap()
}

fn carried(found: &SideFiles) -> Vec<&str> {
    found.carried.iter().map(|file| file.name.as_str()).collect()
}

#[test]
fn weights_and_files_that_are_known_not_to_belong_are_left_out() {
    let dir = model();
    // A folder that leads back isn't walked forever.
    symlink(".", dir.path().join("additional_chat_templates/back")).unwrap();
    let found = found(&dir);
    assert_eq!(carried(&found), CARRIED);
    assert_eq!(found.left_out.keys().collect::<Vec<_>>(), LEFT_OUT);
}

#[test]
fn files_can_be_left_out_for_a_reason() {
    let mut found = found(&model());
    found.leave_out("of another family", |name| name.ends_with(".py"));
    assert_eq!(carried(&found).len(), CARRIED.len() - 4);
    assert_eq!(found.left_out["modeling_x.py"], "of another family");
}

#[test]
fn the_config_of_mistrals_own_weights_is_left_out_with_them() {
    let dir = model();
    write(dir.path(), "consolidated.safetensors");
    assert!(found(&dir).left_out.contains_key("params.json"));
}

#[test]
fn large_files_are_left_out_unless_loaders_know_the_name() {
    let dir = model();
    for name in ["corpus.txt", "tokenizer.large"] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(MAX_UNKNOWN_BYTES + 1).unwrap();
    }
    let found = found(&dir);
    assert!(found.left_out.contains_key("corpus.txt"));
    assert!(carried(&found).contains(&"tokenizer.large"));
}

#[test]
fn links_out_of_the_folder_are_refused() {
    for (name, target) in [("NOTICE", "/etc/passwd"), ("templates", "/etc")] {
        let dir = model();
        symlink(target, dir.path().join(name)).unwrap();
        let error = SideFiles::of(&Folder::of(dir.path()).unwrap()).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}
