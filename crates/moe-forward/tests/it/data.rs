//! Token ids in lines come back as windows, whatever their number and length.

use std::path::Path;

use moe_forward::{Clock, Corpus, DataSpec, Room, TokenizeOptions, digests_of};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::golden;

const VOCAB: usize = 50;

fn load(documents: &[Vec<u32>], sequence_length: usize, pack: bool) -> Option<Vec<Vec<u32>>> {
    let dir = tempfile::tempdir().unwrap();
    // Without a padding token, nothing is taken off.
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let path = dir.path().join("lines.jsonl");
    let lines: String =
        documents.iter().map(|ids| format!("{{\"input_ids\": {ids:?}}}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let options =
        TokenizeOptions { sequence_length, vocab: VOCAB, pack, ..TokenizeOptions::default() };
    let spec = DataSpec { label: "lines".into(), path, weight: None };
    let corpus = Corpus::load(&[spec], dir.path(), options).ok()?;
    Some(corpus.domains.into_iter().flat_map(|domain| domain.sequences).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn token_ids_in_lines(documents in vec(vec(0..VOCAB as u32, 0..30), 1..8), length in 2..12usize) {
        // A window of one token has nothing to predict.
        let windows = |ids: &[u32]| ids.chunks(length).filter(|w| w.len() > 1).map(<[u32]>::to_vec).collect::<Vec<_>>();
        let wanted: Vec<_> = documents.iter().flat_map(|ids| windows(ids)).collect();
        prop_assert_eq!(load(&documents, length, false), (!wanted.is_empty()).then_some(wanted));
        let wanted = windows(&documents.concat());
        prop_assert_eq!(load(&documents, length, true), (!wanted.is_empty()).then_some(wanted));
    }

    #[test]
    fn an_id_that_the_vocabulary_lacks(ids in vec(0..VOCAB as u32, 2..30), at in any::<prop::sample::Index>(), id in VOCAB as u32..) {
        let mut ids = ids;
        let at = at.index(ids.len());
        ids[at] = id;
        prop_assert_eq!(load(&[ids], 8, false), None);
    }
}

/// A checkpoint's folder with the tokenizer of `golden/models/moe` and the template that the golden
/// conversations were written by.
fn tokenizer(template: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("models/moe/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::copy(
        golden("models/moe/tokenizer_config.json"),
        dir.path().join("tokenizer_config.json"),
    )
    .unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

fn spec(path: &Path) -> DataSpec {
    DataSpec { label: "data".into(), path: path.to_owned(), weight: None }
}

#[test]
fn files_of_all_forms_give_the_tokens_that_python_makes_of_them() {
    let expected = std::fs::read_to_string(golden("data/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let dir = tokenizer(expected["template"].as_str().unwrap());
    let options =
        TokenizeOptions { sequence_length: 100_000, vocab: 1 << 20, ..TokenizeOptions::default() };
    let documents = expected["documents"].as_object().unwrap();
    assert!(documents.len() >= 60);
    for (name, wanted) in documents {
        let corpus = Corpus::load(&[spec(&golden("data/files").join(name))], dir.path(), options);
        let corpus = corpus.unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted: Vec<Vec<u32>> = serde_json::from_value(wanted.clone()).unwrap();
        assert_eq!(corpus.domains[0].sequences, wanted, "{name}");
        // What its name doesn't say is said.
        let said = corpus.texts[0].note().is_some();
        assert_eq!(
            said,
            ["no-ending", "lines.jsonl.txt", "mixed", "mixed.md", "table.csv"]
                .contains(&name.as_str()),
            "{name}"
        );
    }
}

/// A folder with a tokenizer and text of 6 MB, as prose, as records and as one record.
fn large_texts() -> tempfile::TempDir {
    let text = std::fs::read_to_string(golden("text/english.calibration.txt")).unwrap();
    let record = |line: &str| serde_json::json!({ "text": line }).to_string() + "\n";
    let records = text.lines().map(record).collect::<String>();
    let whole = serde_json::json!({ "id": 1, "text": text.repeat(150) });
    let dir = tokenizer("");
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("prose", text.repeat(150));
    write("records", records.repeat(130));
    write("record", whole.to_string());
    dir
}

fn options(sequence_length: usize, max_tokens: usize) -> TokenizeOptions {
    TokenizeOptions {
        sequence_length,
        vocab: 1 << 20,
        max_tokens: Some(max_tokens),
        ..TokenizeOptions::default()
    }
}

/// A sample is read at places.
#[test]
fn a_sample_of_a_large_text_is_of_the_seed_alone() {
    let dir = large_texts();
    for name in ["prose", "records", "record"] {
        let load = |seed, max_tokens, pack| {
            let options = TokenizeOptions { sample: Some(seed), pack, ..options(128, max_tokens) };
            Corpus::load(&[spec(&dir.path().join(name))], dir.path(), options).unwrap()
        };
        for (tokens, pack) in [(2, false), (1000, false), (5000, true)] {
            let corpus = load(1, tokens, pack);
            assert_eq!(corpus.tokens(), tokens, "{name}");
            assert!(corpus.texts[0].note().is_some_and(|note| note.contains("places")), "{name}");
        }
        let windows = |seed| load(seed, 1000, false).domains.remove(0).sequences;
        assert_eq!(windows(1), windows(1), "{name}");
        assert_ne!(windows(1), windows(2), "{name}");
    }
}

#[test]
fn a_prefix_of_a_large_text_is_read_no_further_than_it_goes() {
    let dir = large_texts();
    for name in ["prose", "records", "record"] {
        let data = spec(&dir.path().join(name));
        let first = Corpus::load(&[data], dir.path(), options(64, 1000)).unwrap();
        assert_eq!(first.tokens(), 1000);
        assert!(first.texts[0].has_more && first.texts[0].tokens < 100_000, "{name}");
    }
}

#[test]
fn text_that_memory_does_not_hold_is_refused() {
    let dir = tokenizer("");
    let path = dir.path().join("text");
    std::fs::write(&path, "some words ".repeat(10_000)).unwrap();
    let options = TokenizeOptions {
        sequence_length: 64,
        vocab: 1 << 20,
        room: Some(Room { tokens: 200, bytes: 1800, option: "--data-tokens" }),
        ..TokenizeOptions::default()
    };
    let error = Corpus::load(&[spec(&path)], dir.path(), options).unwrap_err().to_string();
    assert!(error.contains("--memory-budget") && error.contains("--data-tokens 200"), "{error}");
    Corpus::load(&[spec(&path)], dir.path(), TokenizeOptions { max_tokens: Some(100), ..options })
        .unwrap();
}

/// What is drawn by a seed is the same where there is room for no more than that.
#[test]
fn what_is_drawn_does_not_depend_on_the_room() {
    let dir = tokenizer("");
    let path = dir.path().join("text.jsonl");
    let line = |number: usize| {
        serde_json::json!({ "text": "some words ".repeat(1 + number % 40) }).to_string() + "\n"
    };
    std::fs::write(&path, (0..500).map(line).collect::<String>()).unwrap();
    let load = |tokens| {
        let room = Some(Room { tokens, bytes: 9 * tokens as u64, option: "--data-tokens" });
        let options = TokenizeOptions { sample: Some(7), room, ..options(16, 400) };
        Corpus::load(&[spec(&path)], dir.path(), options)
    };
    let [little, much] = [3000, 1_000_000].map(|tokens| load(tokens).unwrap());
    assert_eq!(little.domains[0].sequences, much.domains[0].sequences);
    assert_eq!((little.texts.clone(), little.tokens()), (much.texts, 400));
    assert!(little.texts[0].tokens > 3000);
    assert!(load(300).is_err());
}

/// The digest and the note of a file of conversations, read on a day of December 2026.
fn dated(
    dir: &Path,
    data: &str,
    day: i64,
    options: TokenizeOptions,
) -> (Option<String>, Option<String>) {
    let clock = Clock::at(1_796_083_200 + (day - 1) * 86_400).unwrap();
    let corpus =
        Corpus::load(&[spec(&dir.join(data))], dir, TokenizeOptions { clock, ..options }).unwrap();
    (digests_of(&corpus.texts).unwrap().remove(&dir.join(data)), corpus.texts[0].note())
}

#[test]
fn a_text_with_a_date_in_it_is_another_on_another_day() {
    let body = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let dir = tokenizer(&format!(
        "{{% if messages[0].role == 'user' %}}{{{{ strftime_now('%d %b') }}}}{{% endif %}}{body}"
    ));
    let options =
        TokenizeOptions { sequence_length: 64, vocab: 1 << 20, ..TokenizeOptions::default() };
    let sampled = TokenizeOptions { max_tokens: Some(1000), sample: Some(1), ..options };
    let row = |role: &str| {
        format!("{{\"messages\": [{{\"role\": \"{role}\", \"content\": \"Some words.\"}}]}}\n")
    };
    std::fs::write(dir.path().join("few.jsonl"), row("user").repeat(3)).unwrap();
    std::fs::write(dir.path().join("many.jsonl"), row("user").repeat(90_000)).unwrap();
    std::fs::write(dir.path().join("timeless.jsonl"), row("system").repeat(3)).unwrap();
    for (data, options) in [("few.jsonl", options), ("many.jsonl", sampled)] {
        let ((first, note), (second, _)) =
            (dated(dir.path(), data, 1, options), dated(dir.path(), data, 2, options));
        assert!(note.is_some_and(|note| note.contains("\"01 Dec\" for \"%d %b\"")));
        assert!(first.as_ref().is_some_and(|digest| digest.starts_with("dated:")), "{first:?}");
        assert_ne!(first, second, "{data}");
        assert_eq!(first, dated(dir.path(), data, 1, options).0, "{data}");
    }
    // What has no date is hashed as ever: a small file whole.
    assert_eq!(dated(dir.path(), "timeless.jsonl", 1, options), (None, None));
}
