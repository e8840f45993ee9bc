//! Several passes in one run, with no checkpoint between them, give the same result as one after
//! the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use moe_checkpoint::{Kind, json, sha256_file};
use moe_pipeline::{Conversion, FoundResult, Quiet, Recipe, StepKind, convert, find_result};

use crate::common::{golden, run};

/// A folder with text of two vocabularies.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, vocab) in [("large", 2000), ("small", 60)] {
            let ids = |line: usize| {
                (0..64).map(|t| (line * 577 + t * (91 + line % 7)) % vocab).collect::<Vec<_>>()
            };
            let lines = (0..24)
                .map(|line| serde_json::json!({ "input_ids": ids(line) }).to_string() + "\n");
            std::fs::write(place.path(&format!("{name}.jsonl")), lines.collect::<String>())
                .unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The steps of a recipe with `$large`, `$small` and `$out` for paths.
    fn recipe(&self, text: &str) -> Result<Recipe, moe_checkpoint::Error> {
        let path = self.path("recipe.toml");
        let text = text.replace("$large", &self.path("large.jsonl").display().to_string());
        let text = text.replace("$small", &self.path("small.jsonl").display().to_string());
        std::fs::write(&path, text.replace("$out", &self.0.path().display().to_string())).unwrap();
        Recipe::read(&path, &[])
    }

    fn run(&self, text: &str) -> Vec<Conversion> {
        let steps = self.recipe(text).unwrap().steps;
        let done = steps.into_iter().map(|step| {
            let StepKind::Convert { passes, output, .. } = &step.kind else {
                panic!("no conversion: {step:?}")
            };
            let passes: Vec<_> = passes.iter().map(Box::as_ref).collect();
            convert(&passes, &step.model, output, &run(), &Quiet).unwrap()
        });
        done.collect()
    }
}

/// A step that runs `passes` on `model` in one run.
fn together(model: &Path, passes: &[&str]) -> String {
    let mut text =
        format!("[[step]]\nrun = 'convert'\nmodel = {model:?}\noutput = '$out/together'\n");
    passes.iter().for_each(|pass| _ = writeln!(text, "[[step.pass]]\n{pass}"));
    text
}

/// Hashes of config, index and weights.
fn weights(dir: &Path) -> BTreeMap<String, String> {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let read = names.filter(|name| name.contains("safetensors") || name == "config.json");
    read.map(|name| (name.clone(), sha256_file(&dir.join(name)).unwrap())).collect()
}

/// Runs `passes` in one run and one by one, and compares all files that loaders read. Returns the
/// names of the first run's stages.
fn assert_same(model: &str, passes: &[&str]) -> Vec<String> {
    let place = Place::new();
    let mut recipe = together(&golden(model), passes);
    let mut source = golden(model).display().to_string();
    for (index, pass) in passes.iter().enumerate() {
        let _ = writeln!(recipe, "[[step]]\n{pass}\nmodel = {source:?}\noutput = '$out/{index}'");
        source = format!("$out/{index}");
    }
    let done = place.run(&recipe);
    let (at_once, last) = (place.path("together"), place.path(&(passes.len() - 1).to_string()));
    assert_eq!(weights(&at_once), weights(&last), "{passes:?}");
    assert!(weights(&last).len() > 1, "no weights");
    // Layers are recorded for the pass that made them.
    let receipt =
        |dir: &Path| json::read::<serde_json::Value>(&dir.join("moe-convert.json")).unwrap();
    let all = receipt(&at_once);
    for index in 0..passes.len() {
        let (found, wanted) = match index == passes.len() - 1 {
            true => (&all, receipt(&last)),
            false => (&all["before"][index], receipt(&place.path(&index.to_string()))),
        };
        for key in ["pass", "options", "layers", "decided"] {
            assert_eq!(found[key], wanted[key], "{key} of {}", passes[index]);
        }
        let page = match index == passes.len() - 1 {
            true => "report.html".to_owned(),
            false => format!("report-{}-{}.html", index + 1, found["pass"].as_str().unwrap()),
        };
        let reported = place.path(&index.to_string()).join("report.html").is_file();
        assert_eq!(at_once.join(page).is_file(), reported);
    }
    assert_eq!(all["source"]["sha256"], receipt(&place.path("0"))["source"]["sha256"]);
    done[0].timings.0.iter().map(|stage| stage.name.clone()).collect()
}

const PRUNE: &str = "run = 'prune'\nkeep = 0.75\ncriterion = 'reap'\ndata = ['$large']\nno-super-expert-guard = true";
const QUANTIZE: &str =
    "run = 'quantize'\nscheme = 'w4a16'\ngroup-size = 32\ntop-up-below = 0.1\ndata = ['$large']";

#[test]
fn pruning_and_quantizing() {
    let stages = assert_same("models/moe", &[PRUNE, QUANTIZE]);
    assert!(stages.contains(&"prune, quantize: decide".to_owned()), "{stages:?}");
}

#[test]
fn quantized_experts_are_pruned() {
    let stages = assert_same("models/moe", &[QUANTIZE, PRUNE]);
    assert!(stages.contains(&"quantize, prune: decide".to_owned()), "{stages:?}");
}

#[test]
fn three_passes_decide_in_one_sweep() {
    let merge = "run = 'merge'\nexperts = 12\nalgorithm = 'ream'\nno-super-expert-guard = true\ndata = ['$large']\ndata-tokens = 700";
    let stages = assert_same("models/moe", &[PRUNE, merge, QUANTIZE]);
    assert!(stages.contains(&"prune, merge, quantize: decide".to_owned()), "{stages:?}");
}

#[test]
fn attention_and_shared_experts_are_quantized_behind_a_merge() {
    let merge = "run = 'merge'\nkeep = 0.5\nalgorithm = 'hc-smoe'\ndata = ['$small']";
    let quantize = "run = 'quantize'\nscheme = 'w8a16'\ngroup-size = -1\ntop-up-below = 0.1\ninclude = ['shared', 'attention']\ndata = ['$small']";
    assert_same("families/qwen2_moe/fused/model", &[merge, quantize]);
    assert_same("families/deepseek_v3/fused/model", &[merge, quantize]);
}

#[test]
fn what_must_see_the_whole_model_gets_a_sweep_of_its_own() {
    let guarded = PRUNE.replace("no-super-expert-guard = true", "");
    let widths = "run = 'quantize'\ntarget-bits = 5.5\ngroup-size = 32\ntop-up-below = 0.1\ndata = ['$large']";
    let stages = assert_same("models/moe", &[&guarded, widths]);
    assert!(
        stages.contains(&"prune: decide".to_owned())
            && stages.contains(&"quantize: decide".to_owned()),
        "{stages:?}"
    );
    let again = "run = 'prune'\nexperts = 12\ncriterion = 'ean'\ndata = ['$large']";
    let nearest = "run = 'quantize'\nscheme = 'w8a16'\nsolver = 'rtn'\ngroup-size = 32";
    assert_same("models/moe", &[&guarded, again, nearest]);
}

#[test]
fn a_dense_model_becomes_small_experts() {
    let upcycle = "run = 'upcycle'\nexperts = 4\ntop-k = 2\ninit = 'drop'\nrouter = 'normal'";
    assert_same("models/dense", &[upcycle, &PRUNE.replace("0.75", "0.5"), QUANTIZE]);
}

#[test]
fn experts_become_dense_again() {
    let distill = "run = 'distill'\nwidth = 192\nsteps = 0\nstudent-steps = 0\ndata = ['$large']";
    let stages = assert_same("models/moe", &[PRUNE, distill]);
    assert!(stages.contains(&"prune, distill: decide".to_owned()), "{stages:?}");
    let stages = assert_same(
        "models/moe",
        &[PRUNE, &distill.replace("steps = 0\nstudent", "steps = 2\nstudent")],
    );
    assert!(
        stages.contains(&"distill: decide".to_owned()),
        "trained in a sweep of its own: {stages:?}"
    );
}

#[test]
fn training_between_two_passes() {
    let heal = "run = 'heal'\ndata = ['$large']\nsteps = 3\nbatch-tokens = 256\nsequence-length = 64\nlearning-rate = 1e-3";
    let stages = assert_same("models/moe", &[PRUNE, heal, QUANTIZE]);
    let wanted = ["prune: decide", "heal: train", "quantize: decide"];
    assert!(wanted.iter().all(|stage| stages.contains(&(*stage).to_owned())), "{stages:?}");
}

#[test]
fn a_finished_result_is_known_by_all_its_passes() {
    let place = Place::new();
    let text = together(&golden("models/moe"), &[PRUNE, QUANTIZE]);
    place.run(&text);
    let finished = |text: &str| {
        let steps = place.recipe(text).unwrap().steps;
        let StepKind::Convert { passes, output, .. } = &steps[0].kind else {
            panic!("no conversion")
        };
        let passes: Vec<_> = passes.iter().map(Box::as_ref).collect();
        find_result(&passes, &steps[0].model, output, &run()).unwrap() == FoundResult::Same
    };
    assert!(finished(&text));
    assert!(
        !finished(&text.replace("criterion = 'reap'", "criterion = 'ean'")),
        "the first pass is another"
    );
    assert!(!finished(&text.replace("w4a16", "w8a16")), "the last pass is another");
}

#[test]
fn what_cannot_run_together_is_refused() {
    let place = Place::new();
    let refused = |passes: &[&str]| {
        let error = place.recipe(&together(&golden("models/moe"), passes)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        error.to_string()
    };
    let heal = "run = 'heal'\ndata = ['$large']";
    assert!(refused(&[heal, heal]).contains("two passes train"));
    let held_out = format!("{PRUNE}\nheld-out = ['$large']");
    assert!(refused(&[&held_out, QUANTIZE]).contains("give the held-out text to the last pass"));
    assert!(refused(&[]).contains("the key \"pass\" is missing"));
    assert!(refused(&[PRUNE, "run = 'eval'"]).contains("pass 2: there is no pass \"eval\""));
    let passes = |passes: &[&str]| -> String {
        let step = place.recipe(&together(&golden("models/moe"), passes)).unwrap().steps.remove(0);
        let StepKind::Convert { passes, output, .. } = &step.kind else { panic!("no conversion") };
        let passes: Vec<_> = passes.iter().map(Box::as_ref).collect();
        convert(&passes, &step.model, output, &run(), &Quiet).unwrap_err().to_string()
    };
    assert!(passes(&[QUANTIZE, QUANTIZE]).contains("quantized already"));
    let stats = "run = 'prune'\nkeep = 0.5\ncriterion = 'reap'\nstats = 'recipe.toml'";
    assert!(passes(&[PRUNE, stats]).contains("statistics are of a checkpoint"));
    assert!(!place.path("together").exists());
}
