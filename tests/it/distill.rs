//! Tests `distill`: what it prints of its stages, and that a killed run leads to the same bytes.

use crate::common::Sandbox;

/// Options for a short training in both stages, on text of two labels.
const LITTLE: &str = "--width 256 --steps 6 --student-steps 6 --sequence-length 128 --data-tokens 2048 \
                      --data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt \
                      --held-out english=golden/text/english.heldout.txt --held-out code=golden/text/code.heldout.txt \
                      --held-out-tokens 512";

/// The run is killed when the second stage has begun. Layers that were trained aren't trained
/// again.
#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let sandbox = Sandbox::new();
    let whole = sandbox.run(&format!("distill golden/models/moe -o whole {LITTLE}")).succeeds();
    for text in ["english: Δ loss", "code: Δ loss", "trained on own states", "top-1 same"] {
        assert!(whole.stdout.contains(text), "{text}: {}", whole.stdout);
    }
    let broken = format!("distill golden/models/moe -o broken {LITTLE}");
    sandbox.killed_at(&broken, "broken.training/trained-on-own-states.0");
    assert!(!sandbox.path("broken").exists());
    let resume = format!("{broken} --resume");
    let other = resume.replace("--steps 6 ", "--steps 7 ");
    sandbox.run(&other).exits(1).says(&["other options"]);
    // Saved files are checked.
    let saved = "broken.training/trained.1";
    let intact = sandbox.read(saved);
    sandbox.write(saved, &intact[..intact.len() - 1]);
    sandbox.run(&resume).exits(1).says(&["not what was saved", "trained.1"]);
    sandbox.write(saved, &intact);
    sandbox.run(&resume).succeeds().says(&["taken from what was saved"]);
    assert!(sandbox.read("whole/model.safetensors") == sandbox.read("broken/model.safetensors"));
    let receipts = ["whole", "broken"].map(|dir| sandbox.json(&format!("{dir}/moe-convert.json")));
    assert_eq!(receipts[0], receipts[1]);
    assert!(!sandbox.path("broken.training").exists() && !sandbox.path("whole.training").exists());
    let finished = sandbox.run(&resume).succeeds();
    assert!(finished.stdout.contains("finished already"), "{}", finished.stdout);
}
