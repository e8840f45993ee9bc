//! Lines of text, conversations and token ids, and the same bytes as `--tokens`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_forward::{Batch, Calibration, Corpus, DataSpec, TOKENIZER_FILE, TokenizeOptions};
use moe_fuzz::{Base, accepted, write};

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let base = Base::of("families/llama/base/model", "model");
    base.write(TOKENIZER_FILE, include_bytes!("../corpus/tokenizer/words.json"));
    let template = "{% for message in messages %}{{ message['role'] + message['content'].strip() }}\n{% endfor %}";
    base.write("chat_template.jinja", template.as_bytes());
    base
});

fuzz_target!(|lines: &[u8]| {
    if let Some(batch) = accepted(Batch::from_json(&write("tokens.json", lines))) {
        assert!(batch.tokens() > 0 && batch.spans.last().map(|span| span.end) == Some(batch.tokens()));
    }
    let spec = DataSpec { label: "lines".into(), path: write("lines.jsonl", lines), weight: Some(0.5) };
    for pack in [false, true] {
        let options =
            TokenizeOptions { sequence_length: 8, vocab: 101, max_tokens: Some(64), pack, ..Default::default() };
        let Some(corpus) = accepted(Corpus::load(std::slice::from_ref(&spec), &BASE.dir(), options)) else { continue };
        assert!(corpus.domains.iter().flat_map(|d| &d.sequences).all(|s| (2..=8).contains(&s.len())));
        assert!(corpus.tokens() <= 64 && corpus.batch().ids.iter().all(|id| *id < 101));
        let calibration = Calibration::new(&corpus, &Default::default()).expect("there are tokens that count");
        assert_eq!(calibration.counted(), corpus.tokens() as u64);
    }
});
