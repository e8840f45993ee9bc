//! `observe`: gathers statistics of a model on calibration text.

mod options;
mod sums;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use moe_checkpoint::{
    Checkpoint, Error, FoundFile, Kind, Locations, Result, Snapshot, StagedFile, check_file,
};
use moe_forward::{
    Calibration, Group, ObserverOptions, Room, StatisticsObserver, Storage, Sweep, TextRead,
    digests_of,
};
use moe_math::Compute;
use moe_math::load::Load;
use moe_math::statistics::{CalibrationSums, Quantity};
use moe_model::Model;
use serde::Serialize;

pub use options::ObserveOptions;
use sums::ObservedSums;

use crate::budget;
use crate::calibration::{calibration, unchosen};
use crate::file_kinds::STATISTICS;
use crate::fingerprint::{self, Fingerprint};
use crate::memory::{Text, Watched};
use crate::needs::WorkLimits;
use crate::option_paths::PathlessOptions;
use crate::progress::{Progress, Unit};
use crate::resources::{ByteSize, directory_of, storage};
use crate::statistics::{self, About, StatisticsFile};

/// The outcome of `observe`.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Observation {
    /// The path of the statistics.
    #[serde(serialize_with = "moe_checkpoint::lossy_paths")]
    pub output: PathBuf,
    /// The groups of tokens.
    pub groups: Vec<Group>,
    /// Load and largest outputs of each layer with a mixture of experts.
    pub layers: Vec<ObservedLayer>,
    /// Tokens of the sweep; 0 if files were only added up.
    pub tokens: usize,
    /// Seconds of the sweep.
    pub seconds: f64,
    /// Warnings about the statistics.
    pub warnings: Vec<String>,
}

/// A summary of one layer's statistics.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct ObservedLayer {
    /// The layer's index.
    pub layer: usize,
    /// Tokens that chose each expert.
    pub load: Load,
    /// The largest |output| of any expert.
    pub largest_output: f64,
}

/// Observes the checkpoint `dir`, adds statistics of `options.add`, and writes `output`.
///
/// # Errors
/// [`Kind::Usage`] where there is nothing to do; [`Kind::Mismatch`] for statistics of another
/// model; errors of reading, computing and writing. No new file is left then.
pub fn observe(
    dir: &Path,
    options: &ObserveOptions,
    output: &Path,
    overwrite: bool,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<Observation> {
    let found = check_observe(dir, options, output, overwrite)?;
    let work = WorkLimits { budget: memory_budget, compute, scratch: directory_of(output) };
    let source = ObservedModel::open(dir, options, work, progress)?;
    let file = StagedFile::create(output, found)?;
    let start = Instant::now();
    let mut observed = source.observe()?;
    let seconds = start.elapsed().as_secs_f64();
    source.added.iter().try_for_each(|file| observed.add(file))?;
    let observation = Observation::new(output, &observed, seconds);
    source.write(file, observed)?;
    Ok(observation)
}

impl Observation {
    fn new(output: &Path, observed: &ObservedSums, seconds: f64) -> Self {
        let layers: Vec<ObservedLayer> =
            observed.layers.iter().map(|(index, sums)| ObservedLayer::new(*index, sums)).collect();
        let more = if observed.has_more {
            "raise --data-tokens"
        } else {
            "give more --data, or --add statistics of more text"
        };
        Self {
            output: output.to_owned(),
            groups: observed.groups.clone(),
            tokens: observed.tokens,
            seconds,
            warnings: Vec::from_iter(unchosen(layers.iter().map(|layer| &layer.load), more)),
            layers,
        }
    }
}

/// A checkpoint to observe, and statistics of it to add.
struct ObservedModel<'a> {
    checkpoint: Checkpoint,
    model: Model,
    fingerprint: Fingerprint,
    added: Vec<StatisticsFile>,
    /// The state of texts and statistics.
    snapshot: Snapshot,
    options: &'a ObserveOptions,
    work: WorkLimits<'a>,
    progress: &'a dyn Progress,
}

impl<'a> ObservedModel<'a> {
    /// Opens the checkpoint `dir` and the statistics of `options.add`, which must be of it.
    fn open(
        dir: &Path,
        options: &'a ObserveOptions,
        work: WorkLimits<'a>,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let mut snapshot = Snapshot::default();
        snapshot.extend(options.calibration.data.iter().map(|spec| &spec.path).chain(&options.add));
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.warnings().iter().for_each(|warning| progress.note(warning));
        let model = Model::read(&checkpoint)?;
        check_mixtures(&model, dir)?;
        let fingerprint = Fingerprint::of(&checkpoint)?;
        let added = options
            .add
            .iter()
            .map(|path| StatisticsFile::open(path))
            .collect::<Result<Vec<_>>>()?;
        added.iter().try_for_each(|file| file.check_model(&model, &fingerprint, dir))?;
        check_added(&options.add, &added)?;
        Ok(Self { checkpoint, model, fingerprint, added, snapshot, options, work, progress })
    }

    /// Observes the model on the text, if there is some.
    fn observe(&self) -> Result<ObservedSums> {
        let options = &self.options.calibration;
        if options.data.is_empty() {
            return Ok(ObservedSums::default());
        }
        let (calibration, read) =
            calibration(options, self.checkpoint.dir(), self.model.vocab, self.room())?;
        read.texts.iter().filter_map(TextRead::note).for_each(|note| self.progress.note(&note));
        let digests = digests_of(&read.texts)?;
        self.check_observed_before(&digests)?;
        Ok(ObservedSums {
            groups: calibration.groups.clone(),
            tokens: calibration.batch.tokens(),
            digests,
            has_more: read.texts.iter().any(|text| text.has_more),
            layers: self.sweep(&calibration)?,
        })
    }

    /// Writes what was `observed`, if the inputs are still what they were.
    fn write(&self, file: StagedFile, observed: ObservedSums) -> Result<()> {
        let sizes = observed.sizes();
        let ObservedSums { groups, layers, digests, .. } = observed;
        let layers: BTreeMap<usize, Arc<Vec<CalibrationSums>>> =
            layers.into_iter().map(|(index, sums)| (index, Arc::new(sums))).collect();
        let run = hash_of_run(&self.checkpoint, self.options, &digests, self.work.compute)?;
        let texts = texts_of(self.options, &digests, &self.added)?;
        let about = About::new(self.fingerprint.clone(), groups, sizes, Some(run), texts);
        self.checkpoint.check_unchanged()?;
        self.snapshot.check()?;
        statistics::write(file, &about, |index| Ok(layers[&index].clone()))
    }

    /// Refuses to observe text that added statistics were made of.
    fn check_observed_before(&self, digests: &BTreeMap<PathBuf, String>) -> Result<()> {
        let alone = ObserveOptions { add: Vec::new(), ..self.options.clone() };
        let run = Some(hash_of_run(&self.checkpoint, &alone, digests, self.work.compute)?);
        let Some(at) = self.added.iter().position(|file| file.about().run == run) else {
            return Ok(());
        };
        Err(Error::new(
            Kind::Usage,
            "these statistics are of the same text as --data, which would count twice",
        )
        .options(&["--data", "--add"])
        .file(&self.options.add[at])
        .remedy("give other text, or leave --data or --add out"))
    }

    /// Returns how much text fits in memory; None without a budget.
    fn room(&self) -> Option<Room> {
        budget::room(self.work.budget, "--data-tokens", |tokens| {
            let storage = self.storage(tokens, self.work.budget)?;
            let text = Text::first(tokens, self.options.calibration.sequence_length, storage);
            Ok(text.sweep(&self.model, self.watched(), self.work.compute))
        })
    }

    fn watched(&self) -> Watched {
        Watched { left_out: !self.options.no_left_out, converted: false }
    }

    /// Storage for the states of `tokens` tokens under `budget`.
    fn storage(&self, tokens: usize, budget: Option<ByteSize>) -> Result<Storage> {
        storage(&self.model, tokens, budget, self.work.compute, self.work.scratch)
    }

    /// The sums of each layer with a mixture of experts.
    fn sweep(&self, calibration: &Calibration) -> Result<BTreeMap<usize, Vec<CalibrationSums>>> {
        let mut observer = StatisticsObserver::new(&self.model, self.observer_options(calibration));
        self.check_budget(calibration)?;
        let tokens = calibration.batch.tokens();
        let storage = self.storage(tokens, self.work.budget)?;
        let count = self.model.layers.len();
        let stage = format!("observe {tokens} tokens");
        self.progress.stage(&stage, count as u64, Unit::Layers { tokens });
        let mut sweep =
            Sweep::stored(&self.model, &calibration.batch, self.work.compute, &storage)?;
        let mut layers = BTreeMap::new();
        for index in 0..count {
            sweep.layer(index, &mut observer)?;
            layers.extend(observer.take()?.map(|sums| (index, sums)));
            self.progress.advance(1);
        }
        Ok(layers)
    }

    fn observer_options(&self, calibration: &Calibration) -> ObserverOptions {
        ObserverOptions {
            groups: calibration.groups.len(),
            group_of: calibration.group_of.clone(),
            left_out: !self.options.no_left_out,
            sample_every: self.options.all_experts_every,
        }
    }

    /// Refuses a budget that the sweep doesn't fit in.
    fn check_budget(&self, calibration: &Calibration) -> Result<()> {
        let ways = |budget| self.ways(calibration, budget);
        budget::check_budget(self.work.budget, ways, |budget| {
            self.live_bytes(calibration, budget, self.watched())
        })
        .map(drop)
    }

    /// Live bytes of the sweep under `budget`.
    fn live_bytes(
        &self,
        calibration: &Calibration,
        budget: ByteSize,
        watched: Watched,
    ) -> Result<u64> {
        let tokens = calibration.batch.tokens();
        let storage = self.storage(tokens, Some(budget))?;
        let text = Text { tokens, longest: calibration.batch.longest(), storage };
        Ok(text.sweep(&self.model, watched, self.work.compute))
    }

    /// Names the options that make the sweep fit in `budget`; None where none do.
    fn ways(&self, calibration: &Calibration, budget: ByteSize) -> Option<String> {
        let labels = moe_forward::labels(&calibration.groups).len();
        let max_tokens = Some(self.options.calibration.data_tokens);
        let fewer = self.room().and_then(|room| room.way(labels, max_tokens));
        let unwatched = self
            .live_bytes(calibration, budget, Watched::default())
            .is_ok_and(|live| budget::fits(live, budget));
        let no_left_out =
            (!self.options.no_left_out && unwatched).then(|| "give --no-left-out".to_owned());
        let ways: Vec<String> = fewer.into_iter().chain(no_left_out).collect();
        (!ways.is_empty()).then(|| ways.join(", or "))
    }
}

/// SHA-256 of all text that the statistics were gathered on, including those `added`, by name.
fn texts_of(
    options: &ObserveOptions,
    digests: &BTreeMap<PathBuf, String>,
    added: &[StatisticsFile],
) -> Result<BTreeMap<String, String>> {
    let paths: Vec<&Path> =
        options.calibration.data.iter().map(|spec| spec.path.as_path()).collect();
    let mut texts = fingerprint::hashes_of(&paths, digests)?;
    for (name, hash) in added.iter().flat_map(|file| &file.about().texts) {
        statistics::add_text(&mut texts, name, hash);
    }
    Ok(texts)
}

/// Refuses to count text twice: two of the statistics `added`, read from `paths`, that come from
/// one run.
fn check_added(paths: &[PathBuf], added: &[StatisticsFile]) -> Result<()> {
    for (at, path) in paths.iter().enumerate() {
        let earlier = paths.iter().zip(added).take(at);
        let Some((first, _)) = earlier
            .into_iter()
            .find(|(first, of)| is_of_one_run((*first, *of), (path, &added[at])))
        else {
            continue;
        };
        let of = if first == path {
            "are added twice".to_owned()
        } else {
            format!("are those of {}", first.display())
        };
        return Err(Error::new(
            Kind::Usage,
            format!("these statistics {of}, whose text would count twice"),
        )
        .options(&["--add"])
        .file(path)
        .remedy("give --add once for each run of observe"));
    }
    Ok(())
}

/// Whether both are the same file, or files that the same run wrote.
fn is_of_one_run(a: (&PathBuf, &StatisticsFile), b: (&PathBuf, &StatisticsFile)) -> bool {
    let [real_a, real_b] = [a, b].map(|(path, _)| path.canonicalize().ok());
    let [run_a, run_b] = [a, b].map(|(_, file)| file.about().run.as_ref());
    (real_a.is_some() && real_a == real_b) || (run_a.is_some() && run_a == run_b)
}

/// Refuses the model of the checkpoint `dir` if it has no experts to observe.
fn check_mixtures(model: &Model, dir: &Path) -> Result<()> {
    match model.moes().next() {
        Some(_) => Ok(()),
        None => Err(no_mixture(dir)),
    }
}

/// The error for a dense model in `dir`, which has nothing to observe.
pub(crate) fn no_mixture(dir: &Path) -> Error {
    Error::new(Kind::Usage, "this model has no mixture of experts").file(dir).remedy("give an MoE")
}

/// Whether `output` holds the statistics that observing the checkpoint `dir` would give.
///
/// # Errors
/// Errors of reading.
pub fn is_observed(
    dir: &Path,
    options: &ObserveOptions,
    output: &Path,
    compute: &Compute,
) -> Result<bool> {
    let Ok(file) = StatisticsFile::open(output) else { return Ok(false) };
    let checkpoint = Checkpoint::open(dir)?;
    let mut digests = BTreeMap::new();
    if !options.calibration.data.is_empty() {
        digests = digests_of(
            &calibration(&options.calibration, dir, Model::read(&checkpoint)?.vocab, None)?.1.texts,
        )?;
    }
    Ok(file.about().run == Some(hash_of_run(&checkpoint, options, &digests, compute)?))
}

/// Whether the file `output` holds statistics, of any model.
pub fn has_statistics(output: &Path) -> bool {
    StatisticsFile::open(output).is_ok()
}

fn hash_of_run(
    checkpoint: &Checkpoint,
    options: &ObserveOptions,
    digests: &BTreeMap<PathBuf, String>,
    compute: &Compute,
) -> Result<String> {
    let texts = options.calibration.data.iter().map(|spec| spec.path.as_path());
    let read = texts.chain(options.add.iter().map(PathBuf::as_path));
    let PathlessOptions { options, .. } = PathlessOptions::new(serde_json::json!(options));
    fingerprint::of_run(&options, compute, [checkpoint], read, digests)
}

impl ObservedLayer {
    fn new(layer: usize, sums: &[CalibrationSums]) -> Self {
        let pooled = CalibrationSums::pooled(sums.iter().map(|sums| (sums, 1.0)));
        let counts = pooled.get(Quantity::Tokens).iter().map(|n| *n as u64).collect();
        let largest_output = pooled.get(Quantity::Largest).iter().copied().fold(0.0, f64::max);
        Self { layer, load: Load::new(counts), largest_output }
    }
}

/// Refuses options that can't be observed with any model, and an output that can't be written.
/// Returns what lies there now.
///
/// # Errors
/// [`Kind::Usage`].
pub fn check_observe(
    dir: &Path,
    options: &ObserveOptions,
    output: &Path,
    overwrite: bool,
) -> Result<FoundFile> {
    options.check_any()?;
    let mut locations = Locations::default();
    let texts = options.calibration.data.iter().map(|spec| &spec.path);
    texts
        .chain(&options.add)
        .map(PathBuf::as_path)
        .chain([dir])
        .for_each(|path| locations.reads(path));
    locations.writes(output)?;
    check_file(output, &STATISTICS, overwrite)
}
