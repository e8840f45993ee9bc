//! Tests that training brings the dense model nearer to its original.

use moe_passes::DistillOptions;
use moe_pipeline::Receipt;

use super::{calibration, kl, layers, run, texts};
use crate::common::golden;

/// The same, with half as many held-out tokens.
fn text(tokens: usize) -> String {
    format!("{}{}{}\n", calibration(tokens), texts("held-out", "heldout"), tokens / 2)
}

/// With the teacher's states, each layer has the same inputs in all runs, so that its errors can be
/// compared.
#[test]
fn training_brings_every_layer_nearer_to_its_mixture_and_the_model_to_its_original() {
    let dir = tempfile::tempdir().unwrap();
    let text = text(1024);
    let run = |name: &str, training: &str| {
        let toml = format!(
            "forcing = \"teacher\"\ndown = \"measured\"\nno-baseline = true\n{training}\n{text}"
        );
        run::<DistillOptions>(&golden("models/moe"), &dir.path().join(name), &toml).unwrap()
    };
    let bytes =
        |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    let (plain, trained) = (run("plain", "steps = 0"), run("trained", "steps = 12"));
    for (before, after) in layers(&plain).iter().zip(layers(&trained)) {
        let (before, after_error) = (before.output_error.unwrap(), after.output_error.unwrap());
        let [first, kept] = after.trained[0].errors().unwrap();
        // This test runs the network in f32, the pass as it is stored.
        assert!(
            (first - before).abs() < 2e-2 && (kept - after_error).abs() < 2e-2,
            "{first} {before}, {kept} {after_error}"
        );
        // The weights with the best measurement are kept.
        assert!(kept < first, "{kept} {first}");
        assert_eq!((after.trained.len(), after.trained[0].steps), (1, 12));
        assert!(
            after.trained[0].looks.iter().skip(1).all(|look| look.loss.is_some_and(f64::is_finite))
        );
    }
    assert!(
        kl(&trained) < kl(&plain),
        "a stage that is kept is better: {} {}",
        kl(&trained),
        kl(&plain)
    );
    // A second sweep, through the layers that the first made.
    let again = run("again", "steps = 12\nstudent-steps = 4");
    for (once, twice) in layers(&trained).iter().zip(layers(&again)) {
        assert_eq!((&once.trained[0], twice.trained.len()), (&twice.trained[0], 2));
    }
    run("same", "steps = 12\nstudent-steps = 4");
    assert_eq!(bytes("again"), bytes("same"));
    // Each stage is measured on the held-out text, as the written result is in the end.
    let stages = |receipt: &Receipt| {
        let stages = &receipt.held_out.as_ref().unwrap().stages;
        stages
            .iter()
            .map(|s| (s.stage.clone(), s.kept, s.report.all.kl().unwrap()))
            .collect::<Vec<_>>()
    };
    assert!(stages(&plain).is_empty());
    let names = ["made", "trained", "trained-on-own-states"];
    assert_eq!(stages(&again).iter().map(|(stage, ..)| stage.as_str()).collect::<Vec<_>>(), names);
    let stage = |name: &str, kept, kl| (name.to_owned(), kept, kl);
    assert_eq!(
        stages(&again)[..2],
        [stage("made", true, kl(&plain)), stage("trained", true, kl(&trained))]
    );
    // A training that diverges is reported, and leaves the earlier weights.
    let wild = run("wild", "steps = 4\nrelative-learning-rate = 1e20");
    assert!(
        layers(&wild)
            .iter()
            .all(|layer| layer.trained[0].diverged.is_some() && layer.trained[0].best == 0)
    );
    assert!(
        wild.warnings.iter().any(|warning| warning.contains("lower --relative-learning-rate")),
        "{:?}",
        wild.warnings
    );
    assert_eq!(bytes("wild"), bytes("plain"));
    // A stage that doesn't help is taken back.
    assert_eq!(
        stages(&wild),
        [stage("made", true, kl(&plain)), stage("trained", false, kl(&plain))]
    );
    assert_eq!(kl(&wild), kl(&plain));
}
