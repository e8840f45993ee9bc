//! Tests that distilling an upcycled model gives the dense weights back, or says why not.

use std::path::Path;

use moe_checkpoint::{Checkpoint, Kind};
use moe_model::Model;
use moe_passes::{DistillOptions, Identity, UpcycleOptions};
use moe_pipeline::{Quiet, verify};

use super::{ids, run};
use crate::common::golden;

const COPIES: &str = "experts = 8\ntop-k = 2";
const SHARDS: &str = "experts = 8\ntop-k = 4\ngranularity = 2";

/// `found` has every tensor of `dense` under its name, with its bytes, and no others.
#[track_caller]
fn assert_same_bytes(dense: &Path, found: &Path, what: &str) {
    let (dense, found) = (Checkpoint::open(dense).unwrap(), Checkpoint::open(found).unwrap());
    let names = |c: &Checkpoint| c.tensors().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&dense), names(&found), "{what}");
    for (name, tensor) in dense.tensors() {
        let read = |t: &moe_checkpoint::Stored| {
            let mut bytes = vec![0; t.bytes() as usize];
            t.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(tensor), read(&found.tensors()[name]), "{what}: {name}");
    }
}

/// Upcycles `dense` and distills the result to its width again. Returns the receipt's promise.
fn there_and_back(dense: &Path, upcycle: &str, distill: &str) -> (Identity, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(dense).unwrap();
    let width = model.layers[0].ffn.dense().unwrap().width();
    let (moe, back) = (dir.path().join("moe"), dir.path().join("back"));
    run::<UpcycleOptions>(dense, &moe, upcycle).unwrap_or_else(|e| panic!("{upcycle}: {e}"));
    let text = ids(dir.path(), 10, model.vocab);
    let toml = format!("width = {width}\ndown = \"measured\"\n{text}{distill}");
    let receipt =
        run::<DistillOptions>(&moe, &back, &toml).unwrap_or_else(|e| panic!("{upcycle}: {e}"));
    verify(&back, &Quiet).unwrap();
    (receipt.identity, dir)
}

/// A dense golden that is upcycled with each of these lines comes back bit for bit.
fn comes_back(family: &str, target: &str, lines: &[&str]) {
    let dense = golden(&format!("families/{family}/base/model"));
    for line in lines {
        for select in ["neurons", "experts"] {
            let upcycle = format!("{line}\ntarget = {target:?}");
            let distill = format!("select = {select:?}\ntarget = {family:?}");
            let (identity, dir) = there_and_back(&dense, &upcycle, &distill);
            assert_eq!(identity, Identity::Exact, "{family}, {line}");
            assert_same_bytes(
                &dense,
                &dir.path().join("back"),
                &format!("{family}, {line}, {select}"),
            );
        }
    }
}

#[test]
fn upcycling_and_distilling_gives_the_dense_weights_back_bit_for_bit() {
    let any =
        [COPIES, SHARDS, "experts = 5\ntop-k = 3", "experts = 6\ntop-k = 2\nrouter = 'zeros'"];
    comes_back("mistral", "mixtral", &any);
    comes_back("llama", "mixtral", &any);
    let unnormalised =
        "experts = 8\ntop-k = 2\nnorm-topk-prob = false\nrouter = 'zeros'\nrouter-std = 0.0";
    let all = "experts = 4\ntop-k = 4\nnorm-topk-prob = false";
    let wide = "experts = 12\ntop-k = 8\ngranularity = 4\nrouter = 'orthogonal'";
    comes_back("qwen3", "qwen3_moe", &[COPIES, SHARDS, unnormalised, all, wide]);
    let shared = |share: &str| format!("{COPIES}\nshared-fraction = {share}");
    let (none, half, whole) = (shared("0.0"), shared("0.5"), shared("1.0"));
    comes_back("qwen2", "qwen2_moe", &[COPIES, SHARDS, unnormalised, &none, &half, &whole]);
    comes_back("llama", "qwen2_moe", &[COPIES, SHARDS]);
}

/// Inexact results aren't called exact: gates that vary are measured, and scales that round are
/// approximate.
#[test]
fn what_cannot_come_back_exactly_says_so() {
    let qwen3 = golden("families/qwen3/base/model");
    let (identity, _dir) = there_and_back(&qwen3, "experts = 4\ntop-k = 2\nnoise-std = 0.01", "");
    assert!(matches!(identity, Identity::Changed { .. }), "{identity:?}");
    let varying = "experts = 4\ntop-k = 2\nnorm-topk-prob = false\nrouter-std = 1.0";
    let (identity, _dir) = there_and_back(&qwen3, varying, "");
    assert!(matches!(identity, Identity::Changed { .. }), "{identity:?}");
    let rounding =
        "experts = 6\ntop-k = 4\nnorm-topk-prob = false\nrouter = 'zeros'\nrouter-std = 0.0";
    let (identity, _dir) = there_and_back(&qwen3, rounding, "");
    assert!(matches!(identity, Identity::Approximate { .. }), "{identity:?}");
}

/// Every golden of every MoE family becomes a sound and readable dense model of a family that the
/// family file names.
#[test]
fn every_moe_family_becomes_dense_or_says_why_not() {
    let out = tempfile::tempdir().unwrap();
    let mut distilled = 0;
    for family in std::fs::read_dir(golden("families"))
        .unwrap()
        .filter_map(|e| e.unwrap().path().read_dir().ok())
    {
        for case in family.map(|e| e.unwrap().path().join("model")).filter(|model| model.is_dir()) {
            let model = Model::open(&case).unwrap();
            if model.moes().next().is_none() {
                continue;
            }
            let output = out.path().join("out");
            let toml = format!("{}down = \"measured\"", ids(out.path(), 10, model.vocab));
            let name = case.display();
            match run::<DistillOptions>(&case, &output, &toml) {
                Ok(_) => {
                    verify(&output, &Quiet).unwrap_or_else(|e| panic!("{name}: {e}"));
                    let dense = Model::open(&output).unwrap();
                    assert!(dense.moes().next().is_none() && dense.mtp.is_empty(), "{name}");
                    assert!(model.family.distills_to.contains(&dense.family.model_type), "{name}");
                    distilled += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    let known = [
                        "normalises queries and keys",
                        "quantized",
                        "with biases",
                        "cannot express",
                    ];
                    assert!(
                        error.kind() == Kind::Unsupported && known.iter().any(|w| text.contains(w)),
                        "{name}: {text}"
                    );
                }
            }
        }
    }
    assert!(distilled >= 20, "{distilled}");
}
