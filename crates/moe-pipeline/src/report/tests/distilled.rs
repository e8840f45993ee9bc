//! Tests of pages on layers that became dense.

use moe_passes::distill::{DistilledLayer, DistilledPart, DownFit, Look, PartSource, Trained};
use moe_passes::{Details, Kept, LayerRecord, PassInfo};

use super::{held_out, keep_to_look_at, page};
use crate::receipt::Receipt;
use crate::receipt::made_up::receipt;
use crate::trust::{HeldOutReport, StageReport};

/// The receipt of a model whose layers became dense.
pub(super) fn distilled() -> Receipt {
    let look = |step, error, loss| Look { step, error, loss };
    let looks = || vec![look(0, 0.41, None), look(20, 0.36, Some(0.2)), look(40, 0.37, Some(0.1))];
    let trained = || Trained { steps: 40, best: 20, diverged: None, looks: looks() };
    let part = |expert: usize| DistilledPart {
        from: PartSource::Expert { expert },
        neurons: 64,
        factor: 0.125,
    };
    let layer = |layer, parts: usize, fit: Option<DownFit>| LayerRecord {
        details: Some(Details::of(DistilledLayer {
            distinct: 3072,
            width: 520,
            zeros: 8,
            parts: (0..parts).map(part).collect(),
            gates: vec![0.125; 24],
            shared_gate: None,
            scores: Vec::new(),
            fit,
            trained: vec![trained()],
            output_error: Some(0.3341),
            kept: Kept::No,
        })),
        ..LayerRecord::unchanged(layer)
    };
    let fit = |lambda| Some(DownFit { lambda, tried: vec![(Some(0.001), 0.3), (None, 0.9)] });
    let stage = |stage: &str, kept, loss| StageReport {
        stage: stage.to_owned(),
        kept,
        report: held_out("english", loss),
    };
    let held_out = HeldOutReport {
        stages: vec![stage("made", true, 3.9970), stage("trained", false, 4.1234)],
        baseline_name: Some("mean of the experts".to_owned()),
        result: held_out("english", 3.9970),
        baseline: Some(held_out("english", 5.0631)),
    };
    let layers = vec![layer(0, 8, fit(Some(0.001))), layer(2, 2, fit(None)), layer(3, 2, None)];
    Receipt {
        pass: PassInfo::named("distill").unwrap(),
        layers,
        held_out: Some(held_out),
        ..receipt(Vec::new())
    }
}

#[test]
fn dense_layers_say_what_they_are_made_of() {
    let page = page(&distilled());
    let shown = [
        ("what training did", "0.4100 → 0.3600 in step 20 of 40"),
        (
            "what came of it",
            "one network of 520 neurons in each of 3 layers, down projections fitted in 2",
        ),
        ("parts", "64 of expert 0 × 0.1250; 64 of expert 1 × 0.1250"),
        ("more parts than are named", "and 2 others"),
        ("stages", "Behind each stage"),
        ("a stage that helped nothing", "trained (taken back)"),
        ("λ", "<td>1e-3</td>"),
        ("no λ", "kept as measured"),
        ("error", "0.3341"),
        ("control", "mean of the experts: Δ loss"),
        ("its value", "+1.6594"),
    ];
    for (what, text) in shown {
        assert!(page.contains(text), "{what}: no {text:?}");
    }
    assert!(!page.contains("random choice") && !page.contains("NaN"));
    keep_to_look_at("distilled.html", &page);
}
