//! Tests of pages on training.

use moe_math::load::Load;
use moe_passes::PassInfo;

use super::{held_out, keep_to_look_at, page, render};
use crate::receipt::Receipt;
use crate::receipt::made_up::receipt;
use crate::train::{LoadChange, Measurement, StepRecord, TrainingRecord};

/// The receipt of a model that was trained.
pub(super) fn trained() -> Receipt {
    let step = |step: u64| StepRecord {
        step,
        loss: 3.1 - 0.01 * step as f64,
        cross_entropy: 3.0 - 0.01 * step as f64,
        teacher: if step == 3 { f64::NAN } else { 0.5 / step as f64 },
        balance: 4.5,
        gradient_norm: 0.7,
        learning_rate: 1e-3,
        tokens: 512.0,
        ..StepRecord::default()
    };
    let measured = |step, loss| Measurement { step, loss, kl: Some(loss / 10.0) };
    let load = [vec![5, 5, 5, 5], vec![20, 0, 0, 0]].map(Load::new);
    let [first, last] = load;
    let training = TrainingRecord {
        parameters: 12_288,
        steps: 40,
        stopped_early: true,
        written: 20,
        tokens: 20_480,
        memory_estimate_bytes: 1,
        curve: (1..=40).map(step).collect(),
        settings: Vec::new(),
        measurements: vec![measured(0, 3.5), measured(20, 3.25), measured(40, 3.3)],
        before: Some(held_out("english", 3.5)),
        after: Some(held_out("english", 3.25)),
        load: vec![LoadChange { layer: 2, first, last, dropped: 0.25 }],
    };
    Receipt {
        pass: PassInfo::named("heal").unwrap(),
        decided: None,
        training: Some(training),
        ..receipt(Vec::new())
    }
}

#[test]
fn a_training_shows_its_curves() {
    let mut bare = trained();
    let page = page(&bare);
    let shown = [
        ("what was trained", "12\u{202f}288"),
        ("what is written", "written: step 20; stopped early"),
        ("what it did", "−0.2500"),
        ("losses", "Loss, nats per token"),
        ("divergence", "KL(teacher ‖ model)"),
        ("what a line says", "next tokens of held-out text: 3.5000 at first, 3.3000 at last."),
        (
            "load",
            "<th scope=\"row\">2</th><td>4</td><td>1.000</td><td>0.000</td><td>0</td><td>3</td><td>25.0\u{a0}%</td>",
        ),
    ];
    for (what, text) in shown {
        assert!(page.contains(text), "{what}: no {text:?} in {page}");
    }
    let drawn: String =
        page.split("<svg").skip(1).filter_map(|svg| svg.split("</svg>").next()).collect();
    assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
    keep_to_look_at("trained.html", &page);

    let training = bare.training.as_mut().unwrap();
    (training.before, training.after) = (None, None);
    training.curve.clear();
    training.measurements.clear();
    training.load.clear();
    assert!(render(&bare).unwrap().contains("Nothing was held out"));
}
