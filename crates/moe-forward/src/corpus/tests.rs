use moe_math::sampling;

use super::label::{draw, truncate};
use super::*;

fn spec(text: &str) -> (String, String, Option<f64>) {
    let spec: DataSpec = text.parse().unwrap();
    (spec.label, spec.path.to_string_lossy().into_owned(), spec.weight)
}

#[test]
fn data_arguments() {
    assert_eq!(spec("a/b.txt"), ("b".into(), "a/b.txt".into(), None));
    assert_eq!(spec("code=x.jsonl@0.2"), ("code".into(), "x.jsonl".into(), Some(0.2)));
    assert_eq!(spec("a/k=v.txt"), ("k=v".into(), "a/k=v.txt".into(), None));
    assert_eq!(spec("x@home.txt"), ("x@home".into(), "x@home.txt".into(), None));
    for bad in ["", "code=", "a@0", "a@-1", "a@nan", "a@50%"] {
        assert!(bad.parse::<DataSpec>().is_err(), "{bad:?}");
    }
    assert!("c=a@50%".parse::<DataSpec>().unwrap_err().to_string().contains("write c=a@0.5"));
}

#[test]
fn ambiguous_data_arguments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |specs: &[&str]| {
        let file = |spec: &&str| -> DataSpec {
            let mut spec: DataSpec = spec.parse().unwrap();
            spec.path = dir.path().join(spec.path);
            std::fs::write(&spec.path, "words").unwrap();
            spec
        };
        let options = TokenizeOptions {
            sequence_length: 8,
            vocab: 9,
            max_tokens: None,
            pack: false,
            ..TokenizeOptions::default()
        };
        Corpus::load(&specs.iter().map(file).collect::<Vec<_>>(), dir.path(), options)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(refused(&["a.txt", "b.JSON"]).contains("cp "));
    assert!(refused(&["a=a.txt@0.9", "b=b.txt"]).contains("\"a\" has a weight, \"b\" has none"));
}

#[test]
fn drawn_sequences_keep_their_order_and_reach_the_limit() {
    let all: Vec<Vec<u32>> = (0..50).map(|i| vec![i; 4]).collect();
    let drawn = |seed| {
        let mut sequences = all.clone();
        draw(&mut sequences, 30, &mut sampling::generator(seed, 0));
        sequences
    };
    assert_eq!(drawn(1).len(), 8);
    assert!(drawn(1).is_sorted() && drawn(1) == drawn(1) && drawn(1) != drawn(2));
    let mut few = all[..3].to_vec();
    draw(&mut few, 30, &mut sampling::generator(1, 0));
    assert_eq!(few, all[..3]);
}

#[test]
fn truncation_keeps_order_and_pairs() {
    let mut sequences = vec![vec![1, 2, 3], vec![4, 5, 6], vec![7, 8]];
    truncate(&mut sequences, 5);
    assert_eq!(sequences, [vec![1, 2, 3], vec![4, 5]]);
    truncate(&mut sequences, 4);
    assert_eq!(sequences, [vec![1, 2, 3]]);
}
