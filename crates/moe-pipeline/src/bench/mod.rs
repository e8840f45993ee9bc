//! `bench`: measures what passes cost on layers of the size of real models, on any machine.

mod model;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Command};
use moe_checkpoint::{Error, Kind, Result, TemporaryDir};
use moe_math::Compute;
use moe_math::meter::Meter;
use moe_math::sampling::{choose, generator};
use moe_passes::{BenchmarkedModel, PASSES, Pass, PassInfo};
use serde::Serialize;
use serde_json::json;

use self::model::{Proportions, VOCABULARY};
use crate::budget::check_small_budget;
use crate::convert::{convert, plan};
use crate::options::ConvertOptions;
use crate::peaks::{self, Peaks};
use crate::progress::{Progress, Quiet, Stage, Unit};
use crate::resources::ByteSize;
use crate::spelling::{folded, has};

/// The model and the passes that are measured.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchOptions {
    /// The model whose layers are imitated: qwen3-30b-a3b, mixtral-8x7b or deepseek-v3
    #[arg(long, value_name = "MODEL", default_value = "qwen3-30b-a3b")]
    pub like: String,

    /// Layers of the random model
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub layers: usize,

    /// Tokens of calibration text, which are random
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    pub data_tokens: usize,

    /// Tokens of a sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub sequence_length: usize,

    /// Passes that are run, separated by commas: prune, merge, quantize, distill
    #[arg(
        long,
        value_name = "PASSES",
        value_delimiter = ',',
        default_value = "prune,merge,quantize,distill"
    )]
    pub passes: Vec<String>,

    /// Directory for the model and the results, which is removed afterwards
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub scratch: PathBuf,
}

/// The measurements of a benchmark.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct BenchReport {
    /// The model that was imitated.
    pub like: String,
    /// Layers that were run, and those of the whole model.
    pub layers: [usize; 2],
    /// Tokens that were run.
    pub tokens: usize,
    /// Bytes of the random model's weights.
    pub bytes: u64,
    /// The machine's own speed.
    pub peaks: Peaks,
    /// Each pass, in the order in which they were run.
    pub passes: Vec<BenchedPass>,
}

/// The time of one pass.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct BenchedPass {
    /// The pass.
    pub pass: &'static str,
    /// Wall time of the pass in seconds.
    pub seconds: f64,
    /// Estimate for the whole model, whose layers are taken to be alike.
    pub whole_model_seconds: f64,
    /// The stages of the pass; stages within another one come before it.
    pub stages: Vec<BenchedStage>,
}

/// The time of one stage.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct BenchedStage {
    /// The stage's time, operations and bytes.
    #[serde(flatten)]
    pub stage: Stage,
    /// Speed as a share of the machine's matrix product, or of its copy.
    pub of_peak: Option<f64>,
}

/// Makes a random model, runs passes on it, and removes it.
///
/// # Errors
/// [`Kind::Usage`] for a model or pass that doesn't exist; errors of the passes.
pub fn bench(
    options: &BenchOptions,
    run: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<BenchReport> {
    let proportions = Proportions::of(&options.like)?;
    options.check()?;
    check_small_budget(run.memory_budget, peaks::bytes(&run.compute), None)?;
    let dir = options.made_dir()?;
    let passes = planned(dir.path(), options, &proportions, run)?;
    let peaks = Peaks::measure(&run.compute)
        .map_err(|e| Error::new(Kind::Numeric, "cannot measure the machine's speed").source(e))?;
    let BenchOptions { like, layers, data_tokens: tokens, .. } = options;
    let (like, bytes) = (folded(like), proportions.bytes(*layers));
    progress.note(&format!("a random model of {layers} layers like {like}: {}", ByteSize(bytes)));
    proportions.write(*layers, &dir.path().join(MODEL))?;
    let layers = [*layers, proportions.layers];
    let passes = Bench::new(dir.path(), layers, &peaks, run).run_all(&passes, progress)?;
    dir.remove()?;
    Ok(BenchReport { like, layers, tokens: *tokens, bytes, peaks, passes })
}

impl BenchOptions {
    /// Refuses to measure nothing, and more tokens than [`MAX_TOKENS`].
    fn check(&self) -> Result<()> {
        if self.layers == 0 || self.data_tokens == 0 || self.sequence_length == 0 {
            return Err(Error::new(Kind::Usage, "there is nothing to measure")
                .remedy("give --layers, --data-tokens and --sequence-length above 0"));
        }
        let tokens =
            [("--data-tokens", self.data_tokens), ("--sequence-length", self.sequence_length)];
        match tokens.into_iter().find(|(_, asked)| *asked > MAX_TOKENS) {
            Some((option, asked)) => {
                let what = format!("{option} {asked} is more than {MAX_TOKENS}");
                Err(Error::new(Kind::Usage, what).remedy(format!(
                    "lower {option}: time grows with tokens, so that fewer tell as much"
                )))
            }
            None => Ok(()),
        }
    }

    /// A new directory in the one for the model and the results.
    fn made_dir(&self) -> Result<TemporaryDir> {
        std::fs::create_dir_all(&self.scratch)
            .map_err(|e| Error::io("cannot make this directory", &self.scratch, e))?;
        let make =
            || Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(&self.scratch)?.keep());
        TemporaryDir::made(&self.scratch, make)
    }
}

/// A machine and a random model that passes are run on.
struct Bench<'a> {
    /// The directory of the model and the results.
    dir: &'a Path,
    /// Layers that are run, and those of the whole model.
    layers: [usize; 2],
    peaks: &'a Peaks,
    /// Options of a run that waits for the end of each stage, and of one that doesn't.
    waiting: ConvertOptions,
    unmetered: ConvertOptions,
}

impl<'a> Bench<'a> {
    fn new(dir: &'a Path, layers: [usize; 2], peaks: &'a Peaks, run: &ConvertOptions) -> Self {
        let (waiting, unmetered) = (metered(run, Meter::waiting()), metered(run, Meter::default()));
        Self { dir, layers, peaks, waiting, unmetered }
    }

    fn run_all(
        &self,
        passes: &[Box<dyn Pass>],
        progress: &dyn Progress,
    ) -> Result<Vec<BenchedPass>> {
        progress.stage("passes", passes.len() as u64, Unit::Parts);
        let mut benched = Vec::new();
        for pass in passes {
            let done = self.run(pass.as_ref());
            benched.push(done.map_err(|error| of_benchmark(error, pass.as_ref()))?);
            progress.advance(1);
        }
        Ok(benched)
    }

    fn run(&self, pass: &dyn Pass) -> Result<BenchedPass> {
        let (done, mut seconds) = self.timed(pass, &self.waiting)?;
        if !self.unmetered.compute.device.is_cpu() {
            // The time is that of a run that doesn't wait for the end of each stage.
            (_, seconds) = self.timed(pass, &self.unmetered)?;
        }
        let stages = done
            .into_iter()
            .map(|stage| BenchedStage { of_peak: of_peak(&stage, self.peaks), stage })
            .collect();
        let [layers, of_model] = self.layers.map(|layers| layers as f64);
        let whole_model_seconds = seconds * of_model / layers;
        let output = self.output();
        std::fs::remove_dir_all(&output)
            .map_err(|e| Error::io("cannot remove this result", &output, e))?;
        Ok(BenchedPass { pass: pass.name(), seconds, whole_model_seconds, stages })
    }

    /// Runs `pass`: its stages, and the seconds of all of it.
    fn timed(&self, pass: &dyn Pass, run: &ConvertOptions) -> Result<(Vec<Stage>, f64)> {
        let start = Instant::now();
        let done = convert(&[pass], &self.dir.join(MODEL), &self.output(), run, &Quiet)?;
        Ok((done.timings.0, start.elapsed().as_secs_f64()))
    }

    fn output(&self) -> PathBuf {
        self.dir.join(OUTPUT)
    }
}

/// Maximum number of tokens of a benchmark; more would take too long to wait for.
const MAX_TOKENS: usize = 1 << 24;

/// Names of what lies in the directory of a run.
const MODEL: &str = "model";
const TEXT: &str = "text.jsonl";
const OUTPUT: &str = "out";

/// The passes to run, on the text that is written into `dir`. Each is planned on headers alone
/// first, so that a refusal, such as too little text, comes before the machine is measured and the
/// model is made.
fn planned(
    dir: &Path,
    options: &BenchOptions,
    proportions: &Proportions,
    run: &ConvertOptions,
) -> Result<Vec<Box<dyn Pass>>> {
    let passes: Vec<Box<dyn Pass>> = options
        .passes
        .iter()
        .map(|name| passed(name, dir, options, proportions))
        .collect::<Result<_>>()?;
    let model = dir.join(MODEL);
    write_text(&dir.join(TEXT), options)?;
    proportions.write_headers(options.layers, &model)?;
    for pass in &passes {
        plan(&[pass.as_ref()], 1, false, &model, &dir.join(OUTPUT), run)
            .map_err(|error| of_benchmark(error, pass.as_ref()))?;
    }
    std::fs::remove_dir_all(&model)
        .map_err(|e| Error::io("cannot remove this directory", &model, e))?;
    Ok(passes)
}

/// The `error` of `pass`, with a remedy in the benchmark's options: the benchmark makes its text
/// itself.
fn of_benchmark(error: Error, pass: &dyn Pass) -> Error {
    let error = error.within(&format!("the benchmark of {}", pass.name()));
    let named = |option: &str| error.named_options().iter().any(|named| named == option);
    if named("--data") && named("--data-tokens") && named("--sequence-length") {
        error.better_remedy("raise --data-tokens, or lower --sequence-length")
    } else if named("--data") && named("--data-tokens") {
        error.better_remedy("raise --data-tokens")
    } else if error.named_options().iter().all(|option| is_own(option)) {
        error
    } else {
        error.better_remedy("raise --data-tokens, or choose other --passes")
    }
}

/// Whether the benchmark, or every command, has `option`.
fn is_own(option: &str) -> bool {
    const COMMON: [&str; 5] = ["memory-budget", "device-memory", "threads", "device", "dtype"];
    let name = option.trim_start_matches("--");
    COMMON.contains(&name) || has(&BenchOptions::augment_args(Command::new("bench")), name)
}

/// The pass `name`, with the text in `dir` as its data.
fn passed(
    name: &str,
    dir: &Path,
    options: &BenchOptions,
    proportions: &Proportions,
) -> Result<Box<dyn Pass>> {
    let (info, benchmark) = benchmarked(name)?;
    let Proportions { experts, active_width, .. } = *proportions;
    let wrong = |e| Error::new(Kind::Usage, "this benchmark's options").source(e);
    let mut table: toml::Table =
        benchmark(&BenchmarkedModel { experts, active_width, tokens: options.data_tokens })
            .parse()
            .map_err(wrong)?;
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    table.insert("data-tokens".to_owned(), count(options.data_tokens).into());
    table.insert("sequence-length".to_owned(), count(options.sequence_length).into());
    table.insert("data".to_owned(), vec![dir.join(TEXT).to_string_lossy().into_owned()].into());
    info.options.from_table(table).map_err(wrong)
}

/// `run` with this meter, over results of runs before it.
fn metered(run: &ConvertOptions, meter: Meter) -> ConvertOptions {
    let compute = Compute { meter, ..run.compute.clone() };
    ConvertOptions { compute, overwrite: true, ..run.clone() }
}

/// The pass `name`, and the options that its benchmark gives it.
fn benchmarked(name: &str) -> Result<(&'static PassInfo, Benchmark)> {
    let found = PassInfo::named(&folded(name)).and_then(|info| Some((info, info.benchmark?)));
    found.ok_or_else(|| {
        let known = PASSES.into_iter().filter(|info| info.benchmark.is_some());
        let known: Vec<&str> = known.map(|info| info.name).collect();
        Error::new(Kind::Usage, format!("there is no benchmark of {name:?}"))
            .remedy(format!("give {}, or some of them", known.join(", ")))
    })
}

/// Writes a pass's options for a model, as TOML.
type Benchmark = fn(&BenchmarkedModel) -> String;

fn of_peak(stage: &Stage, peaks: &Peaks) -> Option<f64> {
    let seconds = stage.seconds.max(1e-9);
    match (stage.flops, stage.bytes) {
        (Some(flops), _) => Some(flops / seconds / peaks.flops),
        (_, Some(bytes)) => Some(bytes as f64 / seconds / peaks.bytes),
        _ => None,
    }
}

/// Writes random tokens, split into sequences.
fn write_text(path: &Path, options: &BenchOptions) -> Result<()> {
    let mut random = generator(1, 0);
    let shuffled = std::iter::repeat_with(|| choose(VOCABULARY, VOCABULARY, &mut random));
    let ids: Vec<usize> = shuffled.flatten().take(options.data_tokens).collect();
    let line = |ids: &[usize]| json!({ "input_ids": ids }).to_string() + "\n";
    let lines: String = ids.chunks(options.sequence_length).map(line).collect();
    std::fs::write(path, lines).map_err(|e| Error::io("cannot write this text", path, e))
}

#[cfg(test)]
mod tests {
    use moe_model::Model;

    use super::*;

    /// Every model can be read by its family, and has the published number of parameters.
    #[test]
    fn proportions_are_those_of_the_models() {
        // Parameters of a layer: attention, router, norms and experts.
        for (name, billions) in
            [("qwen3-30b-a3b", 0.623), ("mixtral-8x7b", 1.451), ("deepseek-v3", 11.5)]
        {
            let proportions = Proportions::of(name).unwrap();
            let of_layer = (proportions.bytes(2) - proportions.bytes(1)) as f64 / 2e9;
            assert!((of_layer / billions - 1.0).abs() < 0.01, "{name}: {of_layer}");
        }
        assert_eq!(Proportions::of("llama").err().unwrap().kind(), Kind::Usage);
    }

    #[test]
    fn options_of_each_benchmark_are_those_of_its_pass() {
        let options = BenchOptions {
            like: "qwen3-30b-a3b".to_owned(),
            layers: 1,
            data_tokens: 4096,
            sequence_length: 512,
            passes: Vec::new(),
            scratch: PathBuf::new(),
        };
        let proportions = Proportions::of(&options.like).unwrap();
        for info in PASSES.into_iter().filter(|info| info.benchmark.is_some()) {
            passed(info.name, Path::new(""), &options, &proportions)
                .unwrap()
                .check_options()
                .unwrap();
        }
        assert!(passed("heal", Path::new(""), &options, &proportions).is_err());
    }

    /// The families read all of them from headers alone.
    #[test]
    fn proportions_are_models_that_can_be_read() {
        for (name, _) in model::MODELS {
            let dir = tempfile::tempdir().unwrap();
            let proportions = Proportions::of(name).unwrap();
            proportions.write_headers(2, dir.path()).unwrap();
            let model = Model::open(dir.path()).unwrap();
            assert_eq!((model.layers.len(), model.moes().count()), (2, 2), "{name}");
            let (_, moe) = model.moes().next().unwrap();
            assert_eq!(moe.experts.len(), proportions.experts);
            assert_eq!(moe.router.top_k * moe.experts[0].width(), proportions.active_width);
        }
    }
}
