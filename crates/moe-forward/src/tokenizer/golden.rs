//! Compares tokens of test tokenizers with those of transformers (`golden/tokenizers/make.py`).

use std::path::Path;

use serde_json::Value;

use super::*;

fn golden(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tokenizers").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Makes a folder with the files of a case. A file given as a string stands for the one of `bases`.
fn folder(bases: &Value, case: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in case["files"].as_object().unwrap() {
        let content = content.as_str().map_or(content, |base| &bases[base]);
        let mut content = content.clone();
        if let Some(base) = content.as_object_mut().and_then(|fields| fields.remove("base")) {
            let changes = content.as_object().unwrap().clone();
            content = bases[base.as_str().unwrap()].clone();
            content.as_object_mut().unwrap().extend(changes);
        }
        std::fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    dir
}

#[test]
fn tokens_are_those_of_transformers() {
    let mut wrong = Vec::new();
    for file in ["cases.json", "more.json"] {
        compare(&golden(file), &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tokenizes the cases of `golden`, and appends a message for each difference to `wrong`.
fn compare(golden: &Value, wrong: &mut Vec<String>) {
    for case in golden["cases"].as_array().unwrap() {
        let dir = folder(&golden["bases"], case);
        let name = case["name"].as_str().unwrap();
        let tokenizer = match TextTokenizer::load(dir.path()) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (text, expected) in
            golden["texts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap())
        {
            for (special_tokens, expected) in [(true, &expected[0]), (false, &expected[1])] {
                let found = tokenizer.encode(text.as_str().unwrap(), special_tokens).unwrap();
                if serde_json::json!(found) != *expected {
                    wrong.push(format!(
                        "{name}: {text}, {special_tokens}: {found:?}, not {expected}"
                    ));
                }
            }
        }
        let named: Value = tokenizer
            .named()
            .iter()
            .cloned()
            .map(|(role, text)| (role, Value::from(text)))
            .collect();
        if named != case["named"] {
            wrong.push(format!("{name}: {named}, not {}", case["named"]));
        }
    }
}

fn write(tokenizer: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    dir
}

fn words() -> Value {
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    })
}

#[test]
fn a_decoder_that_is_not_json_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for decoder in ["", "x", &"[".repeat(1000)] {
        std::fs::write(
            dir.path().join(TOKENIZER_FILE),
            format!("{{\"version\":\"1.0\",\"decoder\":{decoder}"),
        )
        .unwrap();
        assert_eq!(TextTokenizer::load(dir.path()).err().unwrap().kind(), Kind::Malformed);
    }
}

#[test]
fn a_template_with_a_token_that_is_not_there_is_refused() {
    let mut tokenizer = words();
    tokenizer["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {},
    });
    let dir = write(&tokenizer);
    let found = TextTokenizer::load(dir.path()).and_then(|tokenizer| tokenizer.encode("a", true));
    let error = found.unwrap_err();
    assert!(
        error.to_string().contains(TOKENIZER_FILE) && error.kind() == Kind::Malformed,
        "{error}"
    );
    assert!(error.to_string().contains("remedy"), "{error}");
}

#[test]
fn a_tokenizer_neither_pads_nor_truncates() {
    let mut tokenizer = words();
    tokenizer["truncation"] = serde_json::json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = serde_json::json!({
        "strategy": {"Fixed": 1_000_000_000}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    });
    let dir = write(&tokenizer);
    assert_eq!(TextTokenizer::load(dir.path()).unwrap().encode("b a b", true).unwrap(), [1, 0, 1]);
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let dir = write(&words());
    std::fs::write(
        dir.path().join(TOKENIZER_CONFIG_FILE),
        r#"{"pad_token": "[PAD]", "extra_special_tokens": ["<x>"]}"#,
    )
    .unwrap();
    let tokenizer = TextTokenizer::load(dir.path()).unwrap();
    assert_eq!(tokenizer.beyond(2), [(2, "[PAD]".into()), (3, "<x>".into())]);
    assert_eq!(tokens_beyond_vocabulary(dir.path(), 3).unwrap(), [(3, "<x>".into())]);
    assert!(tokens_beyond_vocabulary(dir.path(), 4).unwrap().is_empty());
    let ids = tokenizer.encode("a<x>", true).unwrap();
    tokenizer.check(&ids, 4).unwrap();
    let error = tokenizer.check(&ids, 3).unwrap_err().to_string();
    assert!(error.contains("\"<x>\"") && error.contains("resize"), "{error}");
    assert_eq!(tokenizer.special_ids(), [2, 3].into());
}

#[test]
fn a_tokenizer_that_multiplies_text_is_refused_when_it_is_loaded() {
    let replace = |content: &str| serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
    let doubling = vec![replace("aa"); 60];
    let repeated = vec![serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}); 1000];
    let normalizers = [
        replace(&"a".repeat(1 << 20)),
        serde_json::json!({"type": "Prepend", "prepend": "a".repeat(1 << 20)}),
        serde_json::json!({"type": "Sequence", "normalizers": doubling}),
    ];
    for normalizer in normalizers {
        let mut tokenizer = words();
        tokenizer["normalizer"] = normalizer;
        let error = TextTokenizer::load(write(&tokenizer).path()).err().unwrap().to_string();
        assert!(error.contains("multiplies") && error.contains(TOKENIZER_FILE), "{error}");
    }
    let mut tokenizer = words();
    tokenizer["post_processor"] = serde_json::json!({"type": "TemplateProcessing", "single": repeated, "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {}});
    let error = TextTokenizer::load(write(&tokenizer).path()).err().unwrap().to_string();
    assert!(error.contains("repeats") && error.contains(TOKENIZER_FILE), "{error}");
}

#[test]
fn every_file_that_decides_tokens_is_listed() {
    let dir = write(&words());
    for name in [
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.txt",
    ] {
        std::fs::write(dir.path().join(name), "{}").unwrap();
    }
    let names: Vec<_> = tokenizer_files(dir.path()).unwrap();
    let names: Vec<_> =
        names.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    let expected = [
        "added_tokens.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        TOKENIZER_FILE,
        TOKENIZER_CONFIG_FILE,
    ];
    assert_eq!(names, expected);
}
