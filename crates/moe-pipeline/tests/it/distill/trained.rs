//! Tests that training brings the dense model nearer to its original.

use moe_passes::DistillOptions;
use moe_pipeline::Receipt;

use super::{calibration, kl, layers, run, texts};
use crate::common::golden;

/// Distillations of the built-in mixture on the same text, with the teacher's states: each layer has
/// the same inputs in all of them, so that its errors can be compared.
struct Runs {
    dir: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn run(&self, name: &str, training: &str) -> Receipt {
        let text = format!("{}{}512\n", calibration(1024), texts("held-out", "heldout"));
        let toml = format!(
            "forcing = \"teacher\"\ndown = \"measured\"\nno-baseline = true\n{training}\n{text}"
        );
        run::<DistillOptions>(&golden("models/moe"), &self.dir.path().join(name), &toml).unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name).join("model.safetensors")).unwrap()
    }
}

/// The name of each stage, whether it is kept, and its KL divergence on the held-out text.
fn stages(receipt: &Receipt) -> Vec<(&str, bool, f64)> {
    let stages = &receipt.held_out.as_ref().unwrap().stages;
    stages.iter().map(|s| (s.stage.as_str(), s.kept, s.report.all.kl().unwrap())).collect()
}

#[test]
fn training_brings_every_layer_nearer_to_its_mixture_and_the_model_to_its_original() {
    let runs = Runs::new();
    let plain = runs.run("plain", "steps = 0");
    let trained = runs.run("trained", "steps = 12");
    for (before, after) in layers(&plain).iter().zip(layers(&trained)) {
        let (before, after_error) = (before.output_error.unwrap(), after.output_error.unwrap());
        let training = &after.trained[0];
        let [first, kept] = training.errors().unwrap();
        // This test runs the network in f32, the pass as it is stored.
        assert!(
            (first - before).abs() < 2e-2 && (kept - after_error).abs() < 2e-2,
            "{first} {before}, {kept} {after_error}"
        );
        // The weights with the best measurement are kept.
        assert!(kept < first, "{kept} {first}");
        assert_eq!((after.trained.len(), training.steps), (1, 12));
        assert!(training.looks.iter().skip(1).all(|look| look.loss.is_some_and(f64::is_finite)));
    }
    let (before, after) = (kl(&plain), kl(&trained));
    assert!(after < before, "a stage that is kept is better: {after} {before}");
    assert!(stages(&plain).is_empty());
}

/// Each stage is measured on the held-out text, as the written result is in the end.
#[test]
fn a_second_sweep_goes_through_the_layers_that_the_first_made() {
    const TWICE: &str = "steps = 12\nstudent-steps = 4";
    let runs = Runs::new();
    let plain = runs.run("plain", "steps = 0");
    let trained = runs.run("trained", "steps = 12");
    let again = runs.run("again", TWICE);
    for (once, twice) in layers(&trained).iter().zip(layers(&again)) {
        assert_eq!((&once.trained[0], twice.trained.len()), (&twice.trained[0], 2));
    }
    runs.run("same", TWICE);
    assert_eq!(runs.bytes("again"), runs.bytes("same"));
    let names: Vec<_> = stages(&again).iter().map(|(stage, ..)| *stage).collect();
    assert_eq!(names, ["made", "trained", "trained-on-own-states"]);
    let first_two = [("made", true, kl(&plain)), ("trained", true, kl(&trained))];
    assert_eq!(stages(&again)[..2], first_two);
}

#[test]
fn a_training_that_diverges_is_reported_and_leaves_the_earlier_weights() {
    let runs = Runs::new();
    let plain = runs.run("plain", "steps = 0");
    let wild = runs.run("wild", "steps = 4\nrelative-learning-rate = 1e20");
    for layer in layers(&wild) {
        let training = &layer.trained[0];
        assert!(training.diverged.is_some() && training.best == 0);
    }
    let remedy = "lower --relative-learning-rate";
    assert!(wild.warnings.iter().any(|text| text.contains(remedy)), "{:?}", wild.warnings);
    assert_eq!(runs.bytes("wild"), runs.bytes("plain"));
    // A stage that doesn't help is taken back.
    assert_eq!(stages(&wild), [("made", true, kl(&plain)), ("trained", false, kl(&plain))]);
    assert_eq!(kl(&wild), kl(&plain));
}
