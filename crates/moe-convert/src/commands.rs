//! What the commands do: call the libraries, render what comes back.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::DType;
use moe_checkpoint::{Error, Kind, json};
use moe_forward::{Batch, EvalReport};
use moe_math::{Compute, open_device};
use moe_model::Model;
use moe_passes::Pass;
use moe_pipeline::{
    Average, BenchOptions, ByteSize, ConvertOptions, EvalOptions, ObserveOptions, Progress, Recipe, Step, StepKind,
    Summary, Timings, bench, convert, eval, inspect, is_finished, observe, peak_memory_bytes, plan, selftest, verify,
    write_logits,
};
use serde::Serialize;

use crate::bar;
use crate::cli::{Cli, Command, Common, ComputeType, Writing};
use crate::{manual, render};

/// Runs the command.
pub fn run(cli: Cli) -> Result<()> {
    set_threads(cli.common.threads)?;
    let session = Session::new(cli.common)?;
    let mut timings = Timings::default();
    let result = match cli.command {
        Command::Inspect { model } => session.inspect(&model),
        Command::Logits { model, tokens, output, overwrite } => {
            timings.time("logits", || session.logits(&model, &tokens, &output, overwrite))
        }
        Command::Upcycle(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Heal(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Merge(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Quantize(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Distill(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Prune(c) => session.convert(&c.pass, &c.model, &c.output, &c.writing, &mut timings),
        Command::Observe { model, output, overwrite, options } => {
            timings.time("observe", || session.observe(&model, &options, &output, overwrite))
        }
        Command::Eval { model, against, options } => {
            timings.time("eval", || session.eval(&model, against.as_deref(), &options)).map(|_| ())
        }
        Command::Run { recipe, set, resume, dry_run } => session.recipe(&recipe, &set, resume, dry_run, &mut timings),
        Command::Bench(options) => session.bench(&options),
        Command::Selftest => timings.time("selftest", || session.selftest()),
        Command::Verify { model } => timings.time("verify", || session.verify(&model)),
        Command::Completions { shell } => write_stdout(&manual::completions(shell)),
        Command::Man { dir } => session.man(&dir),
    };
    if session.common.timings {
        bar::say(render::timings(&timings, peak_memory_bytes()).trim_end());
    }
    result
}

/// candle asks this variable, rayon's own threads a builder.
fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if !(1..=1024).contains(&threads) {
        return Err(Error::new(Kind::Usage, format!("--threads {threads}")).remedy("give 1 to 1024").into());
    }
    // SAFETY: no other thread exists yet, so nobody reads the environment at the same time.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    let started = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    Ok(started.map_err(|e| {
        Error::new(Kind::Io, format!("cannot start {threads} threads")).source(e).remedy("lower --threads")
    })?)
}

fn write_stdout(output: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that has seen enough, such as head, is no failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.map_err(|e| Error::io("cannot write the result", "stdout", e))?),
    }
}

/// What all commands share.
struct Session {
    common: Common,
    compute: Compute,
    progress: Box<dyn Progress>,
}

impl Session {
    fn new(common: Common) -> Result<Self> {
        let device = open_device(common.device)?;
        let progress = bar::progress(common.quiet);
        let dtype = match common.dtype {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
        };
        let device_memory = common.device_memory.map(|size| size.0);
        Ok(Self { compute: Compute { device, dtype, device_memory }, progress, common })
    }

    /// Prints a result: `text`, or `value` with --json.
    fn print<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let output = if self.common.json { json::to_pretty(value) } else { text() };
        write_stdout(&output)
    }

    fn inspect(&self, model: &Path) -> Result<()> {
        let inspection = inspect(model)?;
        self.print(&inspection, || render::inspection(model, &inspection))
    }

    fn logits(&self, model: &Path, tokens: &Path, output: &Path, overwrite: bool) -> Result<()> {
        let batch = Batch::from_json(tokens)?;
        let model = Model::open(model)?;
        batch.check_vocabulary(model.vocab, tokens)?;
        write_logits(&model, &batch, output, overwrite, &self.compute, self.progress.as_ref())?;
        let shape = [batch.tokens(), model.vocab];
        self.print(&serde_json::json!({ "output": output, "shape": shape }), || {
            format!("logits {shape:?} f32 written to {}\n", output.display())
        })
    }

    fn convert<P: Pass>(
        &self,
        pass: &P,
        input: &Path,
        output: &Path,
        writing: &Writing,
        timings: &mut Timings,
    ) -> Result<()> {
        let options = ConvertOptions {
            overwrite: writing.overwrite,
            resume: writing.resume,
            max_shard_size: writing.max_shard_size,
            probe_tokens: writing.probe_tokens,
            compute: self.compute.clone(),
            memory_budget: self.common.memory_budget,
        };
        if writing.dry_run {
            let planned = plan(pass, input, output, &options)?;
            self.check_budget(planned.memory_estimate_bytes)?;
            return self.print(&planned, || render::plan(output, &planned));
        }
        if writing.resume && is_finished(pass, input, output, &options)? {
            return self.print(&serde_json::json!({ "finished": output }), || {
                format!("{} is finished already: same pass, options and source\n", output.display())
            });
        }
        if self.common.memory_budget.is_some() {
            self.check_budget(plan(pass, input, output, &options)?.memory_estimate_bytes)?;
        }
        let done = convert(pass, input, output, &options, self.progress.as_ref())?;
        timings.0.extend(done.timings.0.iter().cloned());
        self.print(&done, || render::conversion(input, output, &done))
    }

    fn check_budget(&self, estimate: u64) -> Result<()> {
        match self.common.memory_budget.filter(|b| estimate > b.0) {
            None => Ok(()),
            Some(budget) => {
                let what = format!("this run holds about {} in memory, the budget is {budget}", ByteSize(estimate));
                Err(Error::new(Kind::Usage, what).remedy("raise --memory-budget, or lower --probe-tokens").into())
            }
        }
    }

    fn eval(&self, model: &Path, against: Option<&Path>, options: &EvalOptions) -> Result<EvalReport> {
        let report = eval(model, against, options, self.common.memory_budget, &self.compute, self.progress.as_ref())?;
        let failures = options.gates.failures(&report);
        let value =
            serde_json::json!({ "model": model, "against": against, "report": report, "gates_failed": failures });
        self.print(&value, || render::evaluation(model, against, &report))?;
        if failures.is_empty() {
            return Ok(report);
        }
        let text: Vec<_> =
            failures.iter().map(|f| format!("{} is {}, measured {:.6}", f.gate, f.limit, f.measured)).collect();
        let what = format!("quality gate not met: {}", text.join("; "));
        let remedy = "keep more of the model, calibrate on more text or heal it; or loosen the gate";
        Err(Error::new(Kind::Gate, what).file(model).remedy(remedy).into())
    }

    fn observe(&self, model: &Path, options: &ObserveOptions, output: &Path, overwrite: bool) -> Result<()> {
        let budget = self.common.memory_budget;
        let done = observe(model, options, output, overwrite, budget, &self.compute, self.progress.as_ref())?;
        self.print(&done, || render::observation(model, &done))
    }

    fn verify(&self, model: &Path) -> Result<()> {
        let report = verify(model, self.progress.as_ref())?;
        self.print(&report, || render::verification(model, &report))
    }

    fn man(&self, dir: &Path) -> Result<()> {
        let pages = manual::write(dir)?;
        self.print(&serde_json::json!({ "pages": pages }), || {
            format!("{} pages written to {}\n", pages.len(), dir.display())
        })
    }

    fn bench(&self, options: &BenchOptions) -> Result<()> {
        let run = ConvertOptions {
            overwrite: false,
            resume: false,
            max_shard_size: "5GB".parse()?,
            probe_tokens: 0,
            compute: self.compute.clone(),
            memory_budget: self.common.memory_budget,
        };
        let report = bench(options, &run, self.progress.as_ref())?;
        self.print(&report, || render::bench(&report))
    }

    fn selftest(&self) -> Result<()> {
        // What it is compared with is exact to f32.
        let compute = Compute { dtype: DType::F32, ..self.compute.clone() };
        let checks = selftest(&compute, self.progress.as_ref())?;
        let failed: Vec<_> = checks.iter().filter(|c| !c.passed()).map(|c| c.name.clone()).collect();
        self.print(&checks, || render::selftest(&compute, &checks))?;
        if failed.is_empty() {
            return Ok(());
        }
        let what = format!("selftest failed: {}", failed.join(", "));
        Err(Error::new(Kind::Numeric, what)
            .remedy("don't trust results on this device; please report the table")
            .into())
    }

    fn recipe(
        &self,
        path: &Path,
        set: &[(String, String)],
        resume: bool,
        dry_run: bool,
        timings: &mut Timings,
    ) -> Result<()> {
        let recipe = Recipe::read(path, set)?;
        let count = recipe.steps.len();
        let mut rows = Vec::new();
        for (index, step) in recipe.steps.iter().enumerate() {
            let (number, name) = (index + 1, step.name());
            self.progress.note(&format!("{}, step {number} of {count}: {name}", recipe.name));
            if let Some((path, maker)) = recipe.awaited(index).filter(|_| dry_run) {
                self.progress.note(&format!("not planned: step {maker} is yet to make {}", path.display()));
                continue;
            }
            let report = self
                .step(step, resume, dry_run, timings)
                .with_context(|| format!("step {number} ({name}) of {} failed", path.display()))?;
            rows.extend(report.map(|report| Summary::new(step.row(), &report)));
        }
        if rows.len() < 2 {
            return Ok(());
        }
        let averages = Average::of(&rows);
        self.print(&serde_json::json!({ "summary": rows, "averages": averages }), || render::summary(&averages))
    }

    /// Runs one step; what an evaluation finds goes into the recipe's summary.
    fn step(&self, step: &Step, resume: bool, dry_run: bool, timings: &mut Timings) -> Result<Option<EvalReport>> {
        let writing = |overwrite| Writing { overwrite, resume, dry_run, ..Writing::default() };
        match &step.kind {
            StepKind::Upcycle { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            StepKind::Prune { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            StepKind::Quantize { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            StepKind::Distill { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            StepKind::Merge { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            StepKind::Heal { output, overwrite, options } => {
                self.convert(options, &step.model, output, &writing(*overwrite), timings)?;
            }
            // What reads a result can't run before there is one.
            _ if dry_run => {}
            StepKind::Observe { output, overwrite, options } => {
                timings.time("observe", || self.observe(&step.model, options, output, *overwrite))?;
            }
            StepKind::Eval { against, options } => {
                return timings.time("eval", || self.eval(&step.model, against.as_deref(), options)).map(Some);
            }
            StepKind::Verify => timings.time("verify", || self.verify(&step.model))?,
            StepKind::Inspect => self.inspect(&step.model)?,
        }
        Ok(None)
    }
}
