//! `tokenizer.json`, and behind a NUL the text that it makes tokens of.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_forward::{Corpus, DataSpec, TOKENIZER_FILE, special_tokens};
use moe_fuzz::{Base, TOKENIZED, accepted, let_caught_panics_pass, write};

static BASE: LazyLock<Base> = LazyLock::new(|| Base::of("families/llama/base/model", "model"));

fuzz_target!(init: let_caught_panics_pass(), |input: &[u8]| {
    let (tokenizer, text) = match input.iter().position(|byte| *byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, b"One two, three\n".as_slice()),
    };
    BASE.write(TOKENIZER_FILE, tokenizer);
    accepted(special_tokens(&BASE.dir()));
    let spec = DataSpec { label: "text".into(), path: write("text.txt", text), weight: None };
    let Some(corpus) = accepted(Corpus::load(&[spec], &BASE.dir(), TOKENIZED)) else { return };
    assert!(corpus.batch().ids.iter().all(|id| (*id as usize) < TOKENIZED.vocab));
});
