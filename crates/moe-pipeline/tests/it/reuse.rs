//! A run finds out whether its result exists by the plan that it carries out.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use moe_model::Result;
use moe_passes::{Inputs, Outputs, Pass, PassInfo, Plan, Sources};
use moe_pipeline::{ConvertOptions, FoundResult, Quiet, Recipe, Run, StepKind, verify};
use serde_json::Value;

use crate::common::{golden, run, run_again};

/// A pass that counts how often it is planned.
#[derive(Debug)]
struct Counted {
    pass: Box<dyn Pass>,
    plans: AtomicUsize,
}

impl Pass for Counted {
    fn info(&self) -> &'static PassInfo {
        self.pass.info()
    }

    fn options(&self) -> Value {
        self.pass.options()
    }

    fn inputs(&self) -> Inputs<'_> {
        self.pass.inputs()
    }

    fn outputs(&self) -> Outputs<'_> {
        self.pass.outputs()
    }

    fn check_options(&self) -> Result<()> {
        self.pass.check_options()
    }

    fn plan(&self, sources: &Sources<'_>) -> Result<Plan> {
        self.plans.fetch_add(1, Relaxed);
        self.pass.plan(sources)
    }
}

/// A pass that decides on the text of a file, and a folder for that file and for results.
struct Place {
    folder: tempfile::TempDir,
    pass: Counted,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("recipe.toml");
        let step = format!(
            "[[step]]\nrun = 'prune'\nmodel = {:?}\noutput = 'a'\nkeep = 0.5\ncriterion = 'reap'\ndata = [{:?}]\n",
            golden("models/moe"),
            folder.path().join("text.jsonl"),
        );
        std::fs::write(&recipe, step).unwrap();
        let mut steps = Recipe::read(&recipe, &[]).unwrap().steps;
        let StepKind::Convert { mut passes, .. } = steps.remove(0).kind else {
            panic!("no conversion")
        };
        Self { folder, pass: Counted { pass: passes.remove(0), plans: AtomicUsize::new(0) } }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes every `step`-th id the text.
    fn write_text(&self, step: usize) {
        let ids: Vec<usize> = (0..256).map(|at| at * step % 2000).collect();
        let line = serde_json::json!({ "input_ids": ids }).to_string();
        std::fs::write(self.path("text.jsonl"), line + "\n").unwrap();
    }

    /// What `work` returns for the run that writes to `output`, and how often it plans.
    fn counted<T>(
        &self,
        output: &str,
        options: &ConvertOptions,
        work: impl FnOnce(Run<'_>) -> T,
    ) -> (T, usize) {
        self.pass.plans.store(0, Relaxed);
        let passes: [&dyn Pass; 1] = [&self.pass];
        let (input, output) = (golden("models/moe"), self.path(output));
        let done = work(Run::new(&passes, &input, &output, options, &Quiet));
        (done, self.pass.plans.load(Relaxed))
    }

    fn weights(&self, output: &str) -> Vec<u8> {
        std::fs::read(self.path(output).join("model.safetensors")).unwrap()
    }
}

#[test]
fn nothing_is_planned_twice() {
    let place = Place::new();
    place.write_text(7);
    let (_, plans) = place.counted("a", &run(), |run| run.convert().unwrap());
    assert_eq!(plans, 1);
    place.write_text(97);
    // The result in the way is of other text; so are those that could be copied.
    let replaced = |mut run: Run<'_>| {
        let found = run.find().unwrap();
        assert!(
            matches!(&found, FoundResult::Other(found) if found.how.contains("other text")),
            "{found:?}"
        );
        assert!(!run.copy_finished(&place.path("a")).unwrap());
        run.convert().unwrap()
    };
    let before = place.weights("a");
    let (_, plans) = place.counted("a", &run_again(), replaced);
    assert_eq!(plans, 1, "for comparisons with two results, and for the conversion");
    verify(&place.path("a"), &Quiet).unwrap();
    assert!(place.weights("a") != before, "decided on the text that was planned");
    let (_, plans) = place.counted("b", &run(), |run| run.convert().unwrap());
    assert!(plans == 1 && place.weights("a") == place.weights("b"));
    let (found, plans) = place.counted("a", &run(), |mut run| run.find().unwrap());
    assert_eq!((found, plans), (FoundResult::Same, 1));
    let (copied, plans) = place.counted("c", &run(), |mut run| {
        assert_eq!(run.find().unwrap(), FoundResult::Nothing);
        run.copy_finished(&place.path("a")).unwrap()
    });
    assert!(copied && plans == 1 && place.weights("a") == place.weights("c"));
}

#[test]
fn a_dry_run_is_of_the_compared_plan() {
    let place = Place::new();
    place.write_text(7);
    place.counted("a", &run(), |run| run.convert().unwrap());
    place.write_text(97);
    let (planned, plans) = place.counted("a", &run_again(), |mut run| {
        assert!(matches!(run.find().unwrap(), FoundResult::Other(_)));
        run.plan(1, true).unwrap()
    });
    assert_eq!(plans, 1);
    assert!(planned.flops > 0.0);
}
