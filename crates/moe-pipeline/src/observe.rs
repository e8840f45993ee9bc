//! `observe`: gathers statistics of a model on calibration text.

mod options;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moe_checkpoint::{
    Checkpoint, Error, FoundFile, Kind, Locations, Result, Snapshot, StagedFile, check_file,
};
use moe_forward::{
    Calibration, Group, ObserverOptions, Room, StatisticsObserver, Sweep, TextRead, digests_of,
};
use moe_math::Compute;
use moe_math::load::Load;
use moe_math::statistics::{Quantity, Sizes, Sums};
use moe_model::Model;
use moe_passes::LayerStatistics;
use serde::Serialize;

pub use options::ObserveOptions;

use crate::budget;
use crate::calibration::{calibration, unchosen};
use crate::file_kinds::STATISTICS;
use crate::fingerprint::{self, Fingerprint};
use crate::memory::{Text, Watched};
use crate::progress::{Progress, Unit};
use crate::resources::{ByteSize, directory_of, storage};
use crate::statistics::{self, About, StatisticsFile};

/// What was observed.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Observation {
    /// Where it is.
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
    /// What the user should know of them.
    pub warnings: Vec<String>,
}

/// A layer in short.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct ObservedLayer {
    /// Its index.
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
    let mut snapshot = Snapshot::default();
    snapshot.extend(options.calibration.data.iter().map(|spec| &spec.path).chain(&options.add));
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.warnings().iter().for_each(|warning| progress.note(warning));
    let model = Model::read(&checkpoint)?;
    check_mixtures(&model, dir)?;
    let fingerprint = Fingerprint::of(&checkpoint)?;
    let added =
        options.add.iter().map(|path| StatisticsFile::open(path)).collect::<Result<Vec<_>>>()?;
    added.iter().try_for_each(|file| file.check_model(&model, &fingerprint, dir))?;
    check_added(&options.add, &added)?;
    let file = StagedFile::create(output, found)?;
    let start = std::time::Instant::now();
    let mut groups = Vec::new();
    let mut layers: BTreeMap<usize, Vec<Sums>> = BTreeMap::new();
    let mut tokens = 0;
    let mut digests = BTreeMap::new();
    let mut has_more = false;
    if !options.calibration.data.is_empty() {
        let scratch = directory_of(output);
        let room = room(&model, options, memory_budget, compute, scratch);
        let (calibration, read) = calibration(&options.calibration, dir, model.vocab, room)?;
        read.texts.iter().filter_map(TextRead::note).for_each(|note| progress.note(&note));
        digests = digests_of(&read.texts)?;
        check_observed_before(&checkpoint, options, &digests, compute, &added)?;
        has_more = read.texts.iter().any(|text| text.has_more);
        tokens = calibration.batch.tokens();
        groups.clone_from(&calibration.groups);
        layers = sweep(&model, &calibration, options, output, memory_budget, compute, progress)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    for file in &added {
        add(&mut groups, &mut layers, file)?;
    }
    let sizes: BTreeMap<usize, Sizes> =
        layers.iter().map(|(index, sums)| (*index, sums[0].sizes())).collect();
    let observed: Vec<ObservedLayer> =
        layers.iter().map(|(index, sums)| ObservedLayer::new(*index, sums)).collect();
    let more = if has_more {
        "raise --data-tokens"
    } else {
        "give more --data, or --add statistics of more text"
    };
    let warnings: Vec<String> =
        unchosen(observed.iter().map(|layer| &layer.load), more).into_iter().collect();
    let layers: BTreeMap<usize, Arc<Vec<Sums>>> =
        layers.into_iter().map(|(index, sums)| (index, Arc::new(sums))).collect();
    let run = hash_of_run(&checkpoint, options, &digests, compute)?;
    let texts = texts_of(options, &digests, &added)?;
    let about = About::new(fingerprint, groups.clone(), sizes, Some(run), texts);
    checkpoint.check_unchanged()?;
    snapshot.check()?;
    statistics::write(file, &about, |index| Ok(layers[&index].clone()))?;
    Ok(Observation {
        output: output.to_owned(),
        groups,
        layers: observed,
        tokens,
        seconds,
        warnings,
    })
}

/// SHA-256 of all text behind the statistics, including those `added`, by name.
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
        let of = match first == path {
            true => "are added twice".to_owned(),
            false => format!("are those of {}", first.display()),
        };
        return Err(Error::new(
            Kind::Usage,
            format!("these statistics {of}, whose text would count twice"),
        )
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

/// Refuses to observe text that statistics to be `added` were made of.
fn check_observed_before(
    checkpoint: &Checkpoint,
    options: &ObserveOptions,
    digests: &BTreeMap<PathBuf, String>,
    compute: &Compute,
    added: &[StatisticsFile],
) -> Result<()> {
    let alone = ObserveOptions { add: Vec::new(), ..options.clone() };
    let run = Some(hash_of_run(checkpoint, &alone, digests, compute)?);
    let Some(at) = added.iter().position(|file| file.about().run == run) else { return Ok(()) };
    Err(Error::new(
        Kind::Usage,
        "these statistics are of the same text as --data, which would count twice",
    )
    .file(&options.add[at])
    .remedy("give other text, or leave --data or --add out"))
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
    fingerprint::of_run(&serde_json::json!(options), compute, [checkpoint], read, digests)
}

impl ObservedLayer {
    fn new(layer: usize, sums: &[Sums]) -> Self {
        let pooled = Sums::pooled(sums.iter().map(|sums| (sums, 1.0)));
        let counts = pooled.get(Quantity::Tokens).iter().map(|n| *n as u64).collect();
        let largest_output = pooled.get(Quantity::Largest).iter().copied().fold(0.0, f64::max);
        Self { layer, load: Load::new(counts), largest_output }
    }
}

/// How many tokens of text fit in memory.
fn room(
    model: &Model,
    options: &ObserveOptions,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    scratch: &Path,
) -> Option<Room> {
    budget::room(memory_budget, "--data-tokens", |tokens| {
        let storage = storage(model, tokens, memory_budget, compute, scratch)?;
        let text = Text::first(tokens, options.calibration.sequence_length, storage);
        Ok(text.sweep(model, watched(options), compute))
    })
}

fn watched(options: &ObserveOptions) -> Watched {
    Watched { left_out: !options.no_left_out, converted: false }
}

fn sweep(
    model: &Model,
    calibration: &Calibration,
    options: &ObserveOptions,
    output: &Path,
    memory_budget: Option<ByteSize>,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<BTreeMap<usize, Vec<Sums>>> {
    let mut observer = StatisticsObserver::new(
        model,
        ObserverOptions {
            groups: calibration.groups.len(),
            group_of: calibration.group_of.clone(),
            left_out: !options.no_left_out,
            sample_every: options.all_experts_every,
        },
    );
    let tokens = calibration.batch.tokens();
    let stored = |budget| storage(model, tokens, budget, compute, directory_of(output));
    let live = |budget, watched| -> Result<u64> {
        let text =
            Text { tokens, longest: calibration.batch.longest(), storage: stored(Some(budget))? };
        Ok(text.sweep(model, watched, compute))
    };
    let ways = |budget| {
        let scratch = directory_of(output);
        let labels = moe_forward::labels(&calibration.groups).len();
        let room = room(model, options, memory_budget, compute, scratch);
        let fewer = room.and_then(|room| room.way(labels, Some(options.calibration.data_tokens)));
        let unwatched =
            live(budget, Watched::default()).is_ok_and(|live| budget::fits(live, budget));
        let no_left_out =
            (!options.no_left_out && unwatched).then(|| "give --no-left-out".to_owned());
        let ways: Vec<String> = fewer.into_iter().chain(no_left_out).collect();
        (!ways.is_empty()).then(|| ways.join(", or "))
    };
    budget::check_budget(memory_budget, ways, |budget| live(budget, watched(options)))?;
    let storage = stored(memory_budget)?;
    progress.stage(
        &format!("observe {tokens} tokens"),
        model.layers.len() as u64,
        Unit::Layers { tokens },
    );
    let mut sweep = Sweep::stored(model, &calibration.batch, compute, &storage)?;
    let mut layers = BTreeMap::new();
    for index in 0..model.layers.len() {
        sweep.layer(index, &mut observer)?;
        layers.extend(observer.take()?.map(|sums| (index, sums)));
        progress.advance(1);
    }
    Ok(layers)
}

/// Adds the sums of `file` to those of the same label and half.
fn add(
    groups: &mut Vec<Group>,
    layers: &mut BTreeMap<usize, Vec<Sums>>,
    file: &StatisticsFile,
) -> Result<()> {
    let place = |groups: &mut Vec<Group>, group: &Group| {
        let same = |g: &Group| g.label == group.label && g.half == group.half;
        match groups.iter().position(same) {
            Some(place) => {
                groups[place].tokens += group.tokens;
                place
            }
            None => {
                groups.push(group.clone());
                groups.len() - 1
            }
        }
    };
    let places: Vec<usize> = file.groups().iter().map(|group| place(groups, group)).collect();
    for (index, sizes) in &file.about().layers {
        let sums = layers.entry(*index).or_default();
        sums.resize(groups.len(), Sums::new(*sizes));
        let found = file.layer(*index)?.unwrap_or_default();
        for (place, found) in places.iter().zip(&found) {
            sums[*place].add(found, 1.0);
        }
    }
    Ok(())
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
