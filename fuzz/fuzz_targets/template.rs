//! A chat template, and behind a NUL the record that it renders.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_forward::{Corpus, DataSpec, TOKENIZER_FILE};
use moe_fuzz::{Base, TOKENIZED, accepted, allow, let_caught_panics_pass, write};

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let base = Base::of("families/llama/base/model", "model");
    base.write(TOKENIZER_FILE, include_bytes!("../corpus/tokenizer/words.json"));
    base
});
const RECORD: &[u8] = br#"{"messages": [{"role": "system", "content": "one"}, {"role": "user", "content": "two, three"},
    {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5, "y": [true, null]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}"#;

/// What a template may take (512 MiB), and what else holds its text by then.
const MAX_BYTES: usize = 900 << 20;

fn init() {
    let_caught_panics_pass();
    allow(MAX_BYTES);
}

fuzz_target!(init: init(), |input: &[u8]| {
    let (template, record) = match input.iter().position(|byte| *byte == 0) {
        Some(end) => (&input[..end], input[end + 1..].to_vec()),
        None => (input, RECORD.to_vec()),
    };
    BASE.write("chat_template.jinja", template);
    // A record is a line.
    let line: Vec<u8> = record.into_iter().filter(|byte| *byte != b'\n').chain([b'\n']).collect();
    let spec = DataSpec { label: "text".into(), path: write("record.jsonl", &line), weight: None };
    accepted(Corpus::load(&[spec], &BASE.dir(), TOKENIZED));
});
