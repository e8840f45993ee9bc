//! Every golden checkpoint is understood, and says the same after being declared and read again.

use std::path::{Path, PathBuf};

use moe_model::{Model, families};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn cases() -> Vec<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let mut cases: Vec<_> = list(golden("families")).flat_map(list).map(|case| case.join("model")).collect();
    cases.extend([golden("models/dense"), golden("models/moe")]);
    cases.sort();
    cases
}

/// What a decoder needs to know of a model: everything but the weights' bytes.
fn description(model: &Model) -> String {
    let Model { hidden, vocab, heads, kv_heads, head_dim, norm_eps, rope, embed, layers, final_norm, head, .. } = model;
    format!(
        "{hidden} {vocab} {heads} {kv_heads} {head_dim} {norm_eps} {rope:?} {embed:?} {layers:#?} {final_norm:?} {head:?}"
    )
}

/// A weight's name says where it was read from, which fused experts change.
fn without_names(description: &str) -> String {
    description
        .lines()
        .map(|l| l.split_once("model.").map_or(l, |(_, rest)| rest.split_once(' ').map_or("", |x| x.1)))
        .collect()
}

#[test]
fn every_family_has_a_golden() {
    for family in families().keys() {
        assert!(golden("families").join(family).is_dir(), "no golden for {family}");
    }
}

#[test]
fn goldens_survive_a_round_trip_through_names_and_config() {
    let cases = cases();
    assert!(cases.len() > 40, "only {} goldens", cases.len());
    for case in cases {
        let model = Model::open(&case).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let declared = model.declare().unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        let again = declared.reread().unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        assert_eq!(without_names(&description(&model)), without_names(&description(&again)), "{}", case.display());
        for key in model.config.keys().filter(|k| *k != "rope_scaling" && *k != "layer_types") {
            assert!(declared.config.contains_key(key), "{}: config key {key} was lost", case.display());
        }
    }
}
