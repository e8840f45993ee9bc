//! Tests that text, token ids, tokenizers and templates which can't be read are refused.

use super::{Request, contents_refused, requests_refused};
use crate::common::{Sandbox, assert_none};

/// Contents of a file of token ids that are refused, with their exit codes and words of the
/// messages.
const NO_SEQUENCES: &[(&str, i32, &[&str])] = &[
    ("", 1, &["JSON", "[[1, 2, 3], [4, 5]]"]),
    ("one two", 1, &["JSON", "[[1, 2, 3], [4, 5]]"]),
    ("[[1, 2", 1, &["JSON"]),
    ("[1, 2]", 1, &["JSON"]),
    (r#"{"ids": [[1]]}"#, 1, &["JSON"]),
    ("[[-1]]", 1, &["-1"]),
    ("[[1.5]]", 1, &["1.5"]),
    ("[[4294967296]]", 1, &["4294967296"]),
    (r#"[["1"]]"#, 1, &["JSON"]),
    ("[]", 1, &["without tokens"]),
    ("[[1, 2], []]", 1, &["without tokens"]),
    ("[[1, 2], [100, 101]]", 2, &["101", "vocabulary"]),
];

#[test]
fn token_files_without_sequences_are_refused() {
    let line = "logits golden/families/llama/base/model --tokens ids.json -o logits.safetensors";
    let mut problems = Vec::new();
    for (content, code, words) in NO_SEQUENCES {
        let sandbox = Sandbox::new();
        sandbox.write("ids.json", content);
        let words = [*words, &["ids.json"]].concat();
        problems.extend(sandbox.refuses(line, *code, &words).map(|p| format!("{content}: {p}")));
    }
    assert_none(&problems);
}

#[test]
fn data_that_eval_cannot_read_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("broken.jsonl", "{\"text\": \"good\"}\n\n{\"text\": \"bad\n");
    sandbox.write("keys.jsonl", "{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n");
    sandbox.write("large.jsonl", "{\"input_ids\": [1, 2, 2048]}\n");
    sandbox.write("latin1.txt", b"caf\xe9 au lait");
    sandbox.write("folder/x.txt", "text");
    let requests: &[Request] = &[
        ("nowhere.txt", 1, &["nowhere.txt", "--data"]),
        ("folder", 1, &["folder"]),
        ("broken.jsonl", 1, &["broken.jsonl", "line 3"]),
        ("keys.jsonl", 1, &["keys.jsonl", "line 2", "input_ids"]),
        ("large.jsonl", 2, &["2048", "vocabulary", "large.jsonl"]),
        ("latin1.txt", 1, &["latin1.txt", "UTF-8"]),
    ];
    requests_refused(&sandbox, "eval golden/models/dense --data", requests);
    let line = "eval golden/families/llama/base/model --data golden/text/english.heldout.txt";
    sandbox.must_refuse(line, 1, &["tokenizer.json"]);
}

#[test]
fn data_without_a_token_to_predict_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("empty.txt", "");
    sandbox.write("empty.jsonl", "\n\n");
    sandbox.write("one.jsonl", "{\"input_ids\": [5]}\n");
    let requests: &[Request] = &[
        ("empty.txt", 2, &["empty.txt", "nothing to predict"]),
        ("empty.jsonl", 2, &["empty.jsonl", "nothing to predict"]),
        ("one.jsonl", 2, &["one.jsonl", "nothing to predict"]),
    ];
    requests_refused(&sandbox, "eval golden/models/dense --data", requests);
}

#[test]
fn a_broken_tokenizer_is_refused() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    model.truncate("tokenizer.json", 1000);
    let line = "eval model --data golden/text/english.heldout.txt";
    sandbox.must_refuse(line, 1, &["model/tokenizer.json"]);
}

/// JSON whose lists are nested deeper than any reader may follow.
fn deep() -> String {
    "[".repeat(1_000_000)
}

#[test]
fn hostile_tokenizers_are_refused_in_bounds() {
    let deep = deep();
    let cases: &[(&[u8], &[&str])] = &[
        (deep.as_bytes(), &[]),
        (b"{}", &[]),
        // The library that reads this file panics on it.
        (b"{\"decoder\":", &[]),
        (b"\xff\xfe", &[]),
    ];
    contents_refused("model/tokenizer.json", "eval model --data text.txt", cases);
    let config = "model/tokenizer_config.json";
    contents_refused(config, "eval model --data chat.jsonl", &[(deep.as_bytes(), &[])]);
}

#[test]
fn hostile_templates_are_refused_in_bounds() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let doubling = format!("{{% set s = 'ha' %}}{}{{{{ s }}}}", "{% set s = s ~ s %}".repeat(60));
    let unclosed = "{{ ".repeat(99_999);
    let cases: &[(&[u8], &[&str])] = &[
        (endless.as_bytes(), &["fuel"]),
        (doubling.as_bytes(), &["512 MiB"]),
        (b"\xff", &["UTF-8"]),
        (unclosed.as_bytes(), &["template"]),
    ];
    contents_refused("model/chat_template.jinja", "eval model --data chat.jsonl", cases);
}

#[test]
fn hostile_data_is_refused_in_bounds() {
    let deep = deep();
    let deep_messages = format!("{{\"messages\":{deep}");
    let cases: &[(&[u8], &[&str])] = &[
        (deep.as_bytes(), &["line 1"]),
        (deep_messages.as_bytes(), &["line 1"]),
        (b"{\"text\": \"\xff\"}", &["UTF-8"]),
        (b"\xef\xbb\xbf{\"text\": \"a\"}", &["nothing to predict"]),
        (b"{\"input_ids\": [1, 4294967296]}", &["line 1"]),
        (b"{\"input_ids\": [1, 4294967295]}", &["4294967295"]),
        (b"{\"input_ids\": [1, -1]}", &["line 1"]),
    ];
    contents_refused("lines.jsonl", "eval model --data lines.jsonl", cases);
    contents_refused("lines.txt", "eval model --data lines.txt", &[(b"abc\0\xffdef", &["UTF-8"])]);
}

#[test]
fn hostile_token_ids_and_prompts_are_refused_in_bounds() {
    let deep = deep();
    let cases: &[(&[u8], &[&str])] = &[(deep.as_bytes(), &[]), (b"[[1, 1e99]]", &[])];
    contents_refused("ids.json", "logits model --tokens ids.json -o logits", cases);
    let upcycle =
        "upcycle model -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json";
    contents_refused("prompts.json", upcycle, &[(deep.as_bytes(), &[])]);
}
