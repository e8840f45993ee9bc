use std::os::unix::fs::symlink;

use super::*;

#[test]
fn weights_and_files_that_are_known_not_to_belong_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let carried = [
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
    let left_out = [
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
    let write = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    };
    carried.iter().chain(&["config.json", "SHA256SUMS"]).for_each(|name| write(name));
    left_out.iter().for_each(|name| match name.strip_suffix('/') {
        Some(folder) => write(&format!("{folder}/file")),
        None => write(name),
    });
    // A folder that leads back isn't walked forever.
    symlink(".", dir.path().join("additional_chat_templates/back")).unwrap();
    let folder = Folder::of(dir.path()).unwrap();
    let mut found = SideFiles::of(&folder).unwrap();
    let names =
        |found: &SideFiles| found.carried.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found), carried);
    assert_eq!(found.left_out.keys().collect::<Vec<_>>(), left_out);
    found.leave_out("of another family", |name| name.ends_with(".py"));
    assert_eq!(names(&found).len(), carried.len() - 4);
    assert_eq!(found.left_out["modeling_x.py"], "of another family");
    // The config of Mistral's own weights is left out with them.
    write("consolidated.safetensors");
    assert!(SideFiles::of(&folder).unwrap().left_out.contains_key("params.json"));
    // Large files are left out, unless loaders know the name.
    let large = |name: &str| {
        File::create(dir.path().join(name)).unwrap().set_len(MAX_UNKNOWN_BYTES + 1).unwrap()
    };
    large("corpus.txt");
    large("tokenizer.large");
    let found = SideFiles::of(&folder).unwrap();
    assert!(
        found.left_out.contains_key("corpus.txt")
            && names(&found).contains(&"tokenizer.large".to_owned())
    );
    // Links out of the folder are refused, and so are files that never end.
    symlink("/etc/passwd", dir.path().join("NOTICE")).unwrap();
    assert!(SideFiles::of(&folder).unwrap_err().to_string().contains("NOTICE"));
    fs::remove_file(dir.path().join("NOTICE")).unwrap();
    symlink("/etc", dir.path().join("templates")).unwrap();
    assert!(SideFiles::of(&folder).unwrap_err().to_string().contains("templates"));
}
