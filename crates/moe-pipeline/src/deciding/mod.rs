//! Deciding in sweeps over text: one sweep, then further ones, one for each stage.

mod pool;
mod together;

use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::{Result, Saved};
use moe_forward::{Calibration, Converter, Corpus, EvalReport, Observer, Role, Sweep, TextRead};
use moe_model::Model;
use moe_passes::{LayerEdits, LayerPass, LayerSweep, PoolStats};

use self::pool::PoolScan;
use crate::budget;
use crate::calibration::calibration;
use crate::context::RunContext;
use crate::memory::{Text, Watched};
use crate::needs::{StageMemory, WorkLimits};
use crate::progress::Unit;
use crate::resources::storage;
use crate::trust::StageReport;

pub(crate) use self::together::decide_together;

/// A pass that decides in sweeps, and its text.
pub(crate) struct Deciding {
    pub sweep: LayerSweep,
    text: Calibration,
    /// Records of the files that were read for the text and the pool.
    pub read: Vec<TextRead>,
    /// Text of which some sequences may join the calibration.
    pool: Option<Calibration>,
    /// Statistics on the sequences that joined from the pool; None until they are chosen.
    pub pool_stats: Option<PoolStats>,
}

/// Approximate number of tokens that go through the whole original model before anything is
/// decided.
const SURVEY_TOKENS: usize = 4096;
/// The name of the first sweep's stage in reports; passes name the later stages.
const FIRST_STAGE: &str = "made";

/// Measures the outcome of a stage; None without held-out text.
pub(crate) type Measure<'a> = &'a dyn Fn(&LayerEdits) -> Result<Option<EvalReport>>;

impl Deciding {
    /// Reads the text of `sweep`, which converts `source`, by the tokenizer of the model in
    /// `input`; `work` gives the memory limits.
    ///
    /// # Errors
    /// Errors of reading; [`moe_checkpoint::Kind::Usage`] for too little text.
    pub fn new(
        sweep: LayerSweep,
        source: &Model,
        input: &Path,
        work: &WorkLimits<'_>,
    ) -> Result<Self> {
        let pass = &*sweep.pass;
        let length = sweep.text.sequence_length;
        let mut room = budget::room(work.budget, "--data-tokens", |tokens| {
            swept_bytes(pass, source, [tokens, 0], length, work)
        });
        // Advice never asks for fewer tokens than the pass can decide by.
        let least = pass.least_tokens(length);
        room.iter_mut().filter(|room| room.tokens < least).for_each(|room| room.tokens = 0);
        let (text, corpus) = calibration(&sweep.text, input, source.vocab, room)?;
        let own = text.batch.tokens();
        let room = budget::room(work.budget, "--pool-tokens", |tokens| {
            swept_bytes(pass, source, [own, tokens], length, work)
        });
        let pool = sweep.pool.as_ref();
        let pool = pool.map(|pool| calibration(&pool.text, input, source.vocab, room));
        let (pool, of_pool): (_, Option<Corpus>) = pool.transpose()?.unzip();
        // The pass knows why the text is too little; the text itself doesn't show it.
        pass.check_text(&text, pool.as_ref())
            .map_err(|error| error.source(account(&text, &corpus)))?;
        let of_pool = of_pool.into_iter().flat_map(|pool| pool.texts);
        let read = corpus.texts.into_iter().chain(of_pool).collect();
        Ok(Self { sweep, text, read, pool, pool_stats: None })
    }

    /// All windows that the pass may look at.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let pool = self.pool.iter().flat_map(|pool| pool.batch.sequences());
        self.text.batch.sequences().chain(pool)
    }

    /// Whether the pass has stages, whose expensive steps are saved.
    pub fn has_stages(&self) -> bool {
        !self.sweep.stages.is_empty()
    }

    /// Whether the pass must see the whole original model before it converts the first layer.
    pub fn looks_ahead(&self) -> bool {
        self.sweep.pass.looks_ahead() || self.sweep.pool.is_some()
    }

    /// Live bytes of deciding on `source`, and those with less text.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of tokens fits in.
    pub fn needs(&self, source: &Model, work: &WorkLimits<'_>) -> Result<StageMemory> {
        let pass = &*self.sweep.pass;
        let own = self.text.batch.tokens();
        let pool = self.pool.as_ref().map_or(0, |pool| pool.batch.tokens());
        let option =
            if self.pool.is_some() { "--data-tokens and --pool-tokens" } else { "--data-tokens" };
        StageMemory::of_text(option, self.text.batch.longest(), |share, length| {
            let shares = [share.of_at_least(own, pass.least_tokens(length)), share.of(pool)];
            swept_bytes(pass, source, shares, length, work)
        })
    }

    /// The approximate number of floating-point operations of deciding.
    pub fn flops(&self) -> f64 {
        self.sweep.pass.flops(self.text.batch.tokens(), self.text.batch.longest())
    }

    /// Shows the pass what it must have seen of `source` before the first layer, and the tokens to
    /// come.
    fn begin(&mut self, source: &Model, run: &RunContext<'_>) -> Result<()> {
        if let Some((pool, text)) = self.sweep.pool.as_ref().zip(self.pool.take()) {
            let own = self.text.batch.spans.len();
            let most = pool.most.unwrap_or(self.text.batch.tokens());
            let all = self.text.joined(&text);
            let mut scan = PoolScan::new(&all, own, pool.least, most);
            watch("scan", source, &all, &mut scan, run)?;
            let (joining, found) = scan.choose();
            self.text = all.selected((0..own).chain(joining));
            self.pool_stats = Some(found);
        }
        let pass = &mut self.sweep.pass;
        pass.begin(&self.text);
        let sample = self.text.sampled(SURVEY_TOKENS);
        match pass.survey(&sample) {
            Some(observer) => watch("survey", source, &sample, observer, run),
            None => Ok(()),
        }
    }

    /// Decides layer by layer; the states that reach a layer have gone through the converted layers
    /// before it. Where there are several stages, the outcome of each is `measured`, and taken back
    /// if it isn't better than the state before; their steps are saved in `saved`.
    ///
    /// # Errors
    /// Errors of sweeps.
    pub fn run(
        &mut self,
        source: &Model,
        name: &str,
        saved: Option<Saved>,
        measured: Measure<'_>,
        run: &RunContext<'_>,
    ) -> Result<(LayerEdits, Vec<StageReport>)> {
        self.begin(source, run)?;
        let Self { sweep: LayerSweep { pass, stages, .. }, text, .. } = self;
        convert(name, source, text, &mut **pass, run)?;
        let mut edits = pass.finish()?;
        let Some(saved) = saved.map(Arc::new) else { return Ok((edits, Vec::new())) };
        let mut reports = StageReports(Vec::new());
        if let Some(report) = measured(&edits)? {
            reports.0.push(StageReport { stage: word(FIRST_STAGE), kept: true, report });
        }
        for stage in stages {
            stage.begin(text, edits, saved.clone());
            convert("train", source, text, &mut **stage, run)?;
            edits = stage.finish();
            let Some(report) = measured(&edits)? else { continue };
            if !reports.is_kept(stage.name(), report) {
                edits = stage.taken_back();
            }
        }
        Ok((edits, reports.0))
    }
}

/// Measurements after each stage, in order.
struct StageReports(Vec<StageReport>);

impl StageReports {
    /// Adds the measurement after `stage`. Returns whether it is better than the best before.
    fn is_kept(&mut self, stage: &str, report: EvalReport) -> bool {
        let best = self.0.iter().rev().find(|stage| stage.kept);
        let kept = best.is_none_or(|best| report.all.kl() < best.report.all.kl());
        self.0.push(StageReport { stage: word(stage), kept, report });
        kept
    }
}

/// The name of a stage as one word, with hyphens.
fn word(stage: &str) -> String {
    stage.replace(' ', "-")
}

/// Sweeps `text` over `source` while `observer` watches.
fn watch(
    name: &str,
    source: &Model,
    text: &Calibration,
    observer: &mut dyn Observer,
    run: &RunContext<'_>,
) -> Result<()> {
    let stage = format!("{name} {} tokens", text.batch.tokens());
    sweep(&stage, source, text, run, |states, index| {
        states.layer(index, observer)?;
        observer.layer_done(index, source.layers.len())
    })
}

/// Sweeps `text` over `source` while `converter` converts its layers.
fn convert(
    name: &str,
    source: &Model,
    text: &Calibration,
    converter: &mut dyn Converter,
    run: &RunContext<'_>,
) -> Result<()> {
    let stage = format!("{name} on {} tokens", text.batch.tokens());
    sweep(&stage, source, text, run, |states, index| {
        states.convert(index, &source.layers[index], converter).map(drop)
    })
}

/// Sweeps `text` over `source`: `layer` runs the layer of each index.
fn sweep(
    stage: &str,
    source: &Model,
    text: &Calibration,
    run: &RunContext<'_>,
    mut layer: impl FnMut(&mut Sweep<'_>, usize) -> Result<()>,
) -> Result<()> {
    let layers = source.layers.len();
    let tokens = text.batch.tokens();
    let storage = run.storage(source, tokens)?;
    run.progress.stage(stage, layers as u64, Unit::Layers { tokens });
    let mut states = Sweep::stored(source, &text.batch, run.compute(), &storage)?;
    for index in 0..layers {
        layer(&mut states, index)?;
        run.progress.advance(1);
    }
    Ok(())
}

/// The maximum number of bytes that `pass` holds while it decides on `source`, by `own` tokens and
/// tokens of a pool, in sequences of at most `length`.
fn swept_bytes(
    pass: &dyn LayerPass,
    source: &Model,
    [own, pool]: [usize; 2],
    length: usize,
    work: &WorkLimits<'_>,
) -> Result<u64> {
    let text = |tokens: usize| -> Result<Text> {
        let storage = storage(source, tokens, work.budget, work.compute, work.scratch)?;
        Ok(Text::first(tokens, length, storage))
    };
    let watched =
        Watched { left_out: pass.wants().left_out, converted: pass.role() == Role::Converts };
    let (own, all) = (text(own)?, text(own + pool)?);
    // Sequences that join from the pool are decided on, too.
    let working = pass.working_bytes(all.swept());
    let decided = own.resting(source, watched, work.compute) + working;
    let decided = decided.max(own.sweep(source, watched, work.compute));
    Ok(decided.max(all.sweep(source, Watched::default(), work.compute)))
}

/// Describes how many tokens of a text were used, and why the others weren't.
fn account(text: &Calibration, corpus: &Corpus) -> String {
    let special = text.batch.tokens() as u64 - text.counted();
    let special = if special > 0 {
        format!(", {special} are special, which --mask-special leaves out")
    } else {
        String::new()
    };
    format!("{}{special}", corpus.account())
}
