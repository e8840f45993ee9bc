//! Token ids in lines come back as windows, whatever their number and length.

use moe_forward::{Corpus, DataSpec, TokenizeOptions};
use proptest::collection::vec;
use proptest::prelude::*;

const VOCAB: usize = 50;

fn load(documents: &[Vec<u32>], sequence_length: usize, pack: bool) -> Option<Vec<Vec<u32>>> {
    let dir = tempfile::tempdir().unwrap();
    // Without a padding token, nothing is taken off.
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let path = dir.path().join("lines.jsonl");
    let lines: String = documents.iter().map(|ids| format!("{{\"input_ids\": {ids:?}}}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let options = TokenizeOptions { sequence_length, vocab: VOCAB, pack, ..TokenizeOptions::default() };
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
