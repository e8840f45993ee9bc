//! Runs commands: calls the libraries, and renders their results.

mod recipe;

use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::DType;
use moe_checkpoint::{Error, Existing, Kind, OutputDir, counted, json, shown_path};
use moe_forward::EvalReport;
use moe_math::meter::Meter;
use moe_math::{Compute, DeviceError, FoundDevice, RouterDtype, find_device};
use moe_passes::{Pass, ReportKind, refuse_unused};
use moe_pipeline::{
    BenchOptions, ConvertOptions, Difference, EvalOptions, FoundResult, ObserveOptions, Progress,
    RECEIPT_FILE, Run, Timings, UNCHECKED, WritingOptions, bench, check_small_budget, eval,
    inspect, not_met, observe, passed_budget, receipt_schema, recipe_schema, report, selftest,
    training_left, verify, verify_bytes, write_logits, write_report,
};
use serde::Serialize;

use crate::allocator::{giving_back, remember_remedy};
use crate::bar::{self, Stderr};
use crate::cli::{Cli, Command, Common, ComputeType, Convert, RouterType, SchemaOf, Writing};
use crate::render::After;
use crate::stdout::{print_error, write_stdout};
use crate::{manual, render};
use recipe::{How, Reports};

/// Runs the command. With --json, a failure is also an object on stdout, after the command's own
/// object if that is printed.
pub fn run(cli: Cli) -> Result<()> {
    let is_json = cli.common.json;
    let done = run_command(cli);
    if let Err(error) = done.as_ref()
        && is_json
    {
        match error.downcast_ref::<Error>() {
            Some(error) => print_error(error),
            None => print_error(&Error::new(Kind::Io, format!("{error:#}"))),
        }
    }
    done
}

fn run_command(cli: Cli) -> Result<()> {
    start_threads(cli.common.threads)?;
    remember_remedy(less_memory(&cli.command));
    let session = Session::new(cli.common)?;
    cli.notes.iter().for_each(|note| session.progress.note(note));
    if let Some(live) = small_work(&cli.command) {
        check_small_budget(session.common.memory_budget, live, None)?;
    }
    let mut timings = Timings::default();
    let result = session.run(cli.command, &mut timings);
    if session.common.timings {
        bar::say(render::timings(&timings).trim_end());
    }
    // The warning is not a note, so --quiet doesn't hide it: a promise was broken. Refused
    // commands, including those with too small a budget, promised nothing.
    let is_refused = result.as_ref().is_err_and(|error| kind(error) == Some(Kind::Usage));
    let passed = session.common.memory_budget.filter(|_| !is_refused).and_then(passed_budget);
    passed.iter().for_each(|warning| bar::say(&format!("warning: {warning}")));
    result
}

/// The remedy that makes `command` hold less, by options that it has.
fn less_memory(command: &Command) -> &'static str {
    match command {
        Command::Convert(convert) => convert.pass.info().less_memory,
        Command::Observe { .. } | Command::Eval { .. } => {
            "lower --data-tokens or --sequence-length"
        }
        Command::Logits { .. } => "give fewer tokens at once",
        Command::Run { .. } => "lower data-tokens, batch-tokens or sequence-length of the step",
        _ => "lower --threads",
    }
}

/// The bytes that a command without a plan holds; None for commands that plan or check for
/// themselves, and for `report`, which holds about as much as its receipt.
fn small_work(command: &Command) -> Option<u64> {
    match command {
        Command::Inspect { .. }
        | Command::Schema { .. }
        | Command::Completions { .. }
        | Command::Man { .. } => Some(2 << 20),
        Command::Selftest => {
            Some(SELFTEST_BYTES + rayon::current_num_threads() as u64 * SELFTEST_BYTES_A_THREAD)
        }
        _ => None,
    }
}

/// The bytes of the built-in models, goldens and passes on them; most are for the built-in MoE.
const SELFTEST_BYTES: u64 = if cfg!(feature = "goldens") { 36 << 20 } else { 8 << 20 };
/// The bytes that each thread adds for its own buffers.
const SELFTEST_BYTES_A_THREAD: u64 = 1 << 20;

/// Starts the computing threads, `threads` of them if given. `main` has already set candle's
/// number.
fn start_threads(threads: Option<usize>) -> Result<()> {
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = threads {
        if !(1..=1024).contains(&threads) {
            let what = format!("--threads {threads} is not a number of threads from 1 to 1024");
            return Err(Error::new(Kind::Usage, what)
                .remedy("give 1 to 1024, or leave --threads out to use all cores")
                .into());
        }
        pool = pool.num_threads(threads);
    }
    // rayon would start them on first use, and end the program if they can't be started.
    Ok(pool.build_global().map_err(|e| {
        let remedy =
            "lower --threads, or allow more processes (ulimit -u) and address space (ulimit -v)";
        Error::new(Kind::Io, "cannot start the threads that compute").source(e).remedy(remedy)
    })?)
}

fn no_device(error: DeviceError) -> Error {
    let kind = match error {
        DeviceError::Unknown(_) => Kind::Usage,
        DeviceError::MissingLibrary { .. } | DeviceError::Unavailable { .. } => Kind::Missing,
        DeviceError::NotBuilt(..) | DeviceError::NoKernel { .. } => Kind::Unsupported,
    };
    Error::new(kind, error.to_string()).remedy(error.remedy())
}

fn refuse_idle_device_memory(is_idle: bool) -> Result<(), Error> {
    let what = "bounds the memory of a GPU, and this run computes on the CPU";
    let remedy = "bound what a run on the CPU holds by --memory-budget SIZE";
    refuse_unused([("--device-memory", is_idle)], what, remedy)
}

/// The state that all commands share.
struct Session {
    common: Common,
    compute: Compute,
    progress: Stderr,
}

impl Session {
    fn new(common: Common) -> Result<Self> {
        let FoundDevice { device, note } = find_device(common.device).map_err(no_device)?;
        if let Some(note) = note.filter(|_| !common.quiet) {
            bar::say(&note);
        }
        let is_idle = device.is_cpu() && common.device_memory.is_some();
        refuse_idle_device_memory(is_idle)?;
        let dtype = match common.dtype {
            ComputeType::F32 => DType::F32,
            ComputeType::Bf16 => DType::BF16,
        };
        let router_dtype = match common.router_dtype {
            RouterType::F32 => RouterDtype::F32,
            RouterType::Model => RouterDtype::Model,
        };
        let device_memory = common.device_memory.map(|size| size.0);
        let meter = if common.timings { Meter::waiting() } else { Meter::default() };
        let progress = Stderr::new(common.quiet, &meter);
        Ok(Self {
            compute: Compute { device, dtype, router_dtype, device_memory, meter },
            progress,
            common,
        })
    }

    fn run(&self, command: Command, timings: &mut Timings) -> Result<()> {
        let meter = &self.compute.meter;
        match command {
            Command::Inspect { model } => self.inspect(&model),
            Command::Convert(Convert { places, pass, writing }) => {
                self.convert(&[pass.as_ref()], &places.model, &places.output, &writing, timings)
            }
            Command::Observe { model, output, overwrite, options } => {
                let observe = || self.observe(&model, &options, &output, overwrite);
                timings.time_metered("observe", meter, observe)
            }
            Command::Eval { model, original, options } => {
                let eval = || self.eval(&model, original.as_deref(), &options);
                timings.time_metered("eval", meter, eval).and_then(|(_, gates)| Ok(gates?))
            }
            Command::Verify { model } => timings.time("verify", || self.verify(&model)),
            Command::Run { recipe, set, resume, fresh, dry_run, junit, overwrite, summary } => {
                let reports = Reports::new(junit, overwrite, summary);
                self.recipe(&recipe, &set, How { resume, fresh, dry_run }, reports, timings)
            }
            Command::Report { model, output, overwrite } => {
                self.report(&model, output.as_deref(), overwrite)
            }
            Command::Schema { of } => write_stdout(&json::to_pretty(&match of {
                SchemaOf::Recipe => recipe_schema(),
                SchemaOf::Receipt => receipt_schema(),
            })),
            Command::Selftest => timings.time_metered("selftest", meter, || self.selftest()),
            Command::Bench(options) => self.bench(&options),
            Command::Logits { model, tokens, output, overwrite } => {
                let logits = || self.logits(&model, &tokens, &output, overwrite);
                timings.time_metered("logits", meter, logits)
            }
            Command::Completions { shell } => write_stdout(&manual::completions(shell)),
            Command::Man { dir, overwrite } => self.man(&dir, overwrite),
        }
    }

    /// Returns those of `warnings` that no note has shown.
    fn unsaid<'w>(&self, warnings: &'w [String]) -> Vec<&'w str> {
        warnings
            .iter()
            .map(String::as_str)
            .filter(|warning| !self.progress.has_noted(warning))
            .collect()
    }

    /// Prints a result as `text`, or with --json as `value`.
    fn print<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let output = if self.common.json { json::to_pretty(value) } else { text() };
        write_stdout(&output)
    }

    fn inspect(&self, model: &Path) -> Result<()> {
        let inspection = inspect(model)?;
        self.print(&inspection, || render::inspection(model, &inspection))
    }

    fn logits(&self, model: &Path, tokens: &Path, output: &Path, overwrite: bool) -> Result<()> {
        let budget = self.common.memory_budget;
        let shape =
            write_logits(model, tokens, output, overwrite, budget, &self.compute, &self.progress)?;
        self.print(
            &serde_json::json!({ "output": output.to_string_lossy(), "shape": shape }),
            || format!("logits {shape:?} f32 written to {}\n", shown_path(output)),
        )
    }

    fn convert(
        &self,
        passes: &[&dyn Pass],
        input: &Path,
        output: &Path,
        writing: &Writing,
        timings: &mut Timings,
    ) -> Result<()> {
        let options = self.convert_options(writing.overwrite, writing.resume, writing.options);
        let mut run = Run::new(passes, input, output, &options, &self.progress);
        if writing.dry_run {
            return self.plan(run, passes.len()).map(drop);
        }
        if writing.resume && output.join(RECEIPT_FILE).is_file() {
            match run.find()? {
                FoundResult::Same => return self.kept(output),
                FoundResult::Other(how) if !writing.overwrite => {
                    return Err(other_result(&how, output).into());
                }
                FoundResult::Other(_) | FoundResult::Nothing => {}
            }
        }
        self.make(run, timings, After::Nothing)
    }

    /// Runs `run`, whether or not there is a result at the output.
    fn make(&self, run: Run<'_>, timings: &mut Timings, after: After) -> Result<()> {
        let (input, output) = (run.input(), run.output());
        // Layers that are fitted one by one while a pass decides have batches of one size: they
        // lose more by memory that moves than they gain from memory that is given back.
        let heals = run.passes().iter().any(|pass| pass.info().report == ReportKind::Training);
        let done = if heals { giving_back(|| run.convert()) } else { run.convert() }?;
        timings.0.extend(done.timings.0.iter().cloned());
        self.print(&done, || {
            render::conversion(input, output, &done, &self.unsaid(&done.receipt.warnings), after)
        })
    }

    /// Plans `run`, whose last `own` passes belong to this step. Returns the estimated seconds of
    /// these passes.
    fn plan(&self, run: Run<'_>, own: usize) -> Result<f64> {
        let output = run.output();
        let decide = own == run.passes().len();
        let planned = run.plan(own, decide)?.timed(&self.compute)?;
        self.print(&planned, || render::plan(output, &planned))?;
        Ok(planned.time_estimate_seconds.unwrap_or(0.0))
    }

    fn convert_options(
        &self,
        overwrite: bool,
        resume: bool,
        writing: WritingOptions,
    ) -> ConvertOptions {
        ConvertOptions {
            overwrite,
            resume,
            max_shard_size: writing.max_shard_size,
            probe_tokens: writing.probe_tokens,
            compute: self.compute.clone(),
            memory_budget: self.common.memory_budget,
        }
    }

    fn kept(&self, output: &Path) -> Result<()> {
        // A killed run that was making the result again may have left this.
        OutputDir::remove_leftover(output)?;
        if let Some(training) = training_left(output) {
            self.progress.note(&format!(
                "{} is left by a run that was stopped: remove it, unless that is to go on with its own options",
                shown_path(&training)
            ));
        }
        self.print(&serde_json::json!({ "finished": output.to_string_lossy() }), || {
            format!(
                "{} is finished already: same work, options, source and build\n",
                shown_path(output)
            )
        })
    }

    /// Evaluates a model. A gate that isn't met is returned as an error, next to the report.
    fn eval(
        &self,
        model: &Path,
        original: Option<&Path>,
        options: &EvalOptions,
    ) -> Result<(EvalReport, Result<(), Error>)> {
        let budget = self.common.memory_budget;
        let report = eval(model, original, options, budget, &self.compute, &self.progress)?;
        let (met, failures): (Vec<_>, Vec<_>) =
            options.gates.measured(&report, model)?.into_iter().partition(|gate| gate.met);
        let value = serde_json::json!({
            "model": model.to_string_lossy(),
            "original": original.map(Path::to_string_lossy),
            "report": report,
            "gates_failed": failures,
        });
        self.print(&value, || render::evaluation(model, original, &report, &met))?;
        if failures.is_empty() {
            return Ok((report, Ok(())));
        }
        Ok((report, Err(not_met(&failures, model))))
    }

    fn observe(
        &self,
        model: &Path,
        options: &ObserveOptions,
        output: &Path,
        overwrite: bool,
    ) -> Result<()> {
        options.check()?;
        let budget = self.common.memory_budget;
        let done =
            observe(model, options, output, overwrite, budget, &self.compute, &self.progress)?;
        self.print(&done, || render::observation(model, &done))
    }

    fn verify(&self, model: &Path) -> Result<()> {
        let fewer = (rayon::current_num_threads() > 1).then_some("lower --threads");
        check_small_budget(self.common.memory_budget, verify_bytes(), fewer)?;
        let report = verify(model, &self.progress)?;
        self.print(&report, || render::verification(model, &report))
    }

    fn report(&self, model: &Path, output: Option<&Path>, overwrite: bool) -> Result<()> {
        let Some(output) = output else {
            let pages = report(model, &self.progress)?;
            if let [_, others @ ..] = pages.as_slice()
                && !others.is_empty()
            {
                let pages = counted(others.len() as u64, "page");
                self.progress.note(&format!("-o DIR also writes {pages} of the earlier passes"));
            }
            return self.print(&serde_json::json!({ "html": pages[0].1 }), || pages[0].1.clone());
        };
        self.print_pages(&write_report(model, output, overwrite, &self.progress)?, output)
    }

    fn man(&self, dir: &Path, overwrite: bool) -> Result<()> {
        self.print_pages(&manual::write(dir, overwrite)?, dir)
    }

    /// Says that `pages` were written to `dir`.
    fn print_pages(&self, pages: &[PathBuf], dir: &Path) -> Result<()> {
        let paths: Vec<_> = pages.iter().map(|page| page.to_string_lossy()).collect();
        self.print(&serde_json::json!({ "pages": paths }), || {
            format!("{} written to {}\n", counted(pages.len() as u64, "page"), shown_path(dir))
        })
    }

    fn bench(&self, options: &BenchOptions) -> Result<()> {
        let run = ConvertOptions {
            overwrite: false,
            resume: false,
            max_shard_size: WritingOptions::default().max_shard_size,
            probe_tokens: 0,
            compute: self.compute.clone(),
            memory_budget: self.common.memory_budget,
        };
        let report = bench(options, &run, &self.progress)?;
        self.print(&report, || render::bench(&report))
    }

    fn selftest(&self) -> Result<()> {
        // The goldens are exact to f32.
        let compute =
            Compute { dtype: DType::F32, router_dtype: RouterDtype::F32, ..self.compute.clone() };
        let checks = selftest(&compute, &self.progress)?;
        let failed: Vec<_> =
            checks.iter().filter(|c| !c.passed()).map(|c| c.name.clone()).collect();
        self.print(&checks, || render::selftest(&compute, &checks))?;
        if let Some(unchecked) = UNCHECKED {
            self.progress.note(unchecked);
        }
        if failed.is_empty() {
            return Ok(());
        }
        let what = format!("selftest failed: {}", failed.join(", "));
        Err(Error::new(Kind::Numeric, what)
            .remedy("don't trust results on this device; please report the table")
            .into())
    }
}

/// The error for an output where another result lies. It proposes --overwrite where that would
/// replace the result.
fn other_result(found: &Difference, output: &Path) -> Error {
    let error = Error::new(Kind::Usage, format!("the output exists, and {}", found.how));
    let remedy = match (OutputDir::check(output, Existing::Replaced), found.instead) {
        (Ok(()), Some(instead)) => format!("give --overwrite, another name, or {instead}"),
        (Ok(()), None) => "give --overwrite, or another name".to_owned(),
        (Err(kept), _) => {
            let file = kept.named_file().unwrap_or(output);
            let why = format!("{} ({})", kept.what(), shown_path(file));
            format!("choose another name, or remove the output yourself; {why}")
        }
    };
    error.file(output).remedy(remedy)
}

/// The kind of `error`; None unless it is an error of this program.
pub fn kind(error: &anyhow::Error) -> Option<Kind> {
    error.downcast_ref::<Error>().map(Error::kind)
}
