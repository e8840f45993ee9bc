//! What decides in sweeps over text: one sweep, then a stage each.

mod pool;
mod together;

use std::path::Path;
use std::sync::Arc;

use moe_checkpoint::{Result, Saved};
use moe_forward::{
    Calibration, Converter, Corpus, EvalReport, Observer, Role, Room, Sweep, TextRead,
};
use moe_model::Model;
use moe_passes::{LayerEdits, LayerPass, LayerSweep, PoolStats};

use self::pool::PoolScan;
use crate::budget;
use crate::calibration::calibration;
use crate::context::RunContext;
use crate::memory::{Text, Watched};
use crate::needs::{Needs, Work};
use crate::progress::Unit;
use crate::resources::storage;
use crate::trust::StageReport;

pub(crate) use self::together::decide_together;

/// What decides in sweeps, and its text.
pub(crate) struct Deciding {
    pub sweep: LayerSweep,
    text: Calibration,
    /// What was read for it, and for the pool.
    pub read: Vec<TextRead>,
    /// Text of which some may join.
    pool: Option<Calibration>,
    /// What did, once that is known.
    pub pulled: Option<PoolStats>,
}

/// What is looked for in the whole original model, before anything is decided, is looked for in
/// about this many tokens.
const SURVEY_TOKENS: usize = 4096;
/// What the first sweep does, where there are more.
const FIRST_STAGE: &str = "made";

/// Measures what a stage gave; None without held-out text.
pub(crate) type Measure<'a> = &'a dyn Fn(&LayerEdits) -> Result<Option<EvalReport>>;

impl Deciding {
    /// Reads the text of `sweep`, which converts `source`, by the tokenizer of the model in
    /// `input`; `work` says what may be held.
    ///
    /// # Errors
    /// What reading returns; [`moe_checkpoint::Kind::Usage`] for too little text.
    pub fn new(sweep: LayerSweep, source: &Model, input: &Path, work: &Work<'_>) -> Result<Self> {
        let pass = &*sweep.pass;
        let length = sweep.text.sequence_length;
        let of_text =
            |option, live: &dyn Fn(usize) -> Result<u64>| budget::room(work.budget, option, live);
        let room = of_text("--data-tokens", &|tokens| {
            swept_bytes(pass, source, [tokens, 0], length, work)
        });
        // Fewer than it can decide by aren't asked for.
        let least = pass.least_tokens(length);
        let room =
            room.map(|room| if room.tokens < least { Room { tokens: 0, ..room } } else { room });
        let (text, corpus) = calibration(&sweep.text, input, source.vocab, room)?;
        let own = text.batch.tokens();
        let room = of_text("--pool-tokens", &|tokens| {
            swept_bytes(pass, source, [own, tokens], length, work)
        });
        let pool = sweep.pool.as_ref();
        let pool = pool.map(|pool| calibration(&pool.text, input, source.vocab, room));
        let (pool, of_pool) = pool.transpose()?.unzip();
        // What is too little is so for a reason that isn't seen in the text.
        pass.check_text(&text, pool.as_ref())
            .map_err(|error| error.source(account(&text, &corpus)))?;
        let of_pool: Option<Corpus> = of_pool;
        let of_pool = of_pool.into_iter().flat_map(|pool| pool.texts);
        let read = corpus.texts.into_iter().chain(of_pool).collect();
        Ok(Self { sweep, text, read, pool, pulled: None })
    }

    /// All windows that it may look at.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let pool = self.pool.iter().flat_map(|pool| pool.batch.sequences());
        self.text.batch.sequences().chain(pool)
    }

    /// Whether it has stages, whose costly steps are saved.
    pub fn has_stages(&self) -> bool {
        !self.sweep.stages.is_empty()
    }

    /// Whether it must see the whole original model before it converts the first layer.
    pub fn looks_ahead(&self) -> bool {
        self.sweep.pass.looks_ahead() || self.sweep.pool.is_some()
    }

    /// The most bytes that deciding on `source` holds, and what it would with less text.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of tokens fits in.
    pub fn needs(&self, source: &Model, work: &Work<'_>) -> Result<Needs> {
        let pass = &*self.sweep.pass;
        let own = self.text.batch.tokens();
        let pool = self.pool.as_ref().map_or(0, |pool| pool.batch.tokens());
        let option =
            if self.pool.is_some() { "--data-tokens and --pool-tokens" } else { "--data-tokens" };
        Needs::of_text(option, self.text.batch.longest(), |share, length| {
            let shares = [share.of_least(own, pass.least_tokens(length)), share.of(pool)];
            swept_bytes(pass, source, shares, length, work)
        })
    }

    /// About how many floating-point operations deciding takes.
    pub fn flops(&self) -> f64 {
        self.sweep.pass.flops(self.text.batch.tokens(), self.text.batch.longest())
    }

    /// Lets what decides see all that it must have seen of `source` before the first layer, and the
    /// tokens that are to come.
    fn begin(&mut self, source: &Model, run: &RunContext<'_>) -> Result<()> {
        if let Some((pool, text)) = self.sweep.pool.as_ref().zip(self.pool.take()) {
            let own = self.text.batch.spans.len();
            let most = pool.most.unwrap_or(self.text.batch.tokens());
            let all = self.text.joined(&text);
            let mut scan = PoolScan::new(&all, own, pool.least, most);
            watch("scan", source, &all, &mut scan, run)?;
            let (joining, found) = scan.choose();
            self.text = all.selected((0..own).chain(joining));
            self.pulled = Some(found);
        }
        let pass = &mut self.sweep.pass;
        pass.begin(&self.text);
        let sample = self.text.sampled(SURVEY_TOKENS);
        match pass.survey(&sample) {
            Some(observer) => watch("survey", source, &sample, observer, run),
            None => Ok(()),
        }
    }

    /// Decides layer by layer; what reaches a layer has gone through the converted ones before it.
    /// What each stage of several gave is `measured`, and taken back where it is no better than
    /// what was there before; their steps go to `saved`.
    ///
    /// # Errors
    /// What sweeps return.
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
        let made = measured(&edits)?;
        let mut reports = Vec::from_iter(made.map(|report| StageReport {
            stage: word(FIRST_STAGE),
            kept: true,
            report,
        }));
        for stage in stages {
            stage.begin(text, edits, saved.clone());
            convert("train", source, text, &mut **stage, run)?;
            edits = stage.finish();
            let Some(report) = measured(&edits)? else { continue };
            let best = reports.iter().rev().find(|stage| stage.kept);
            let kept = best.is_none_or(|best| report.all.kl() < best.report.all.kl());
            reports.push(StageReport { stage: word(stage.name()), kept, report });
            if !kept {
                edits = stage.taken_back();
            }
        }
        Ok((edits, reports))
    }
}

/// The name of a stage as a word.
fn word(stage: &str) -> String {
    stage.replace(' ', "-")
}

/// A sweep of `text` over `source`, which `observer` watches.
fn watch(
    name: &str,
    source: &Model,
    text: &Calibration,
    observer: &mut dyn Observer,
    run: &RunContext<'_>,
) -> Result<()> {
    let (layers, tokens) = (source.layers.len(), text.batch.tokens());
    run.progress.stage(&format!("{name} {tokens} tokens"), layers as u64, Unit::Layers { tokens });
    let storage = run.storage(source, tokens)?;
    let mut sweep = Sweep::stored(source, &text.batch, run.compute(), &storage)?;
    for index in 0..layers {
        sweep.layer(index, observer)?;
        observer.layer_done(index, layers)?;
        run.progress.advance(1);
    }
    Ok(())
}

/// A sweep of `text` over `source`, whose layers `converter` converts.
fn convert(
    name: &str,
    source: &Model,
    text: &Calibration,
    converter: &mut dyn Converter,
    run: &RunContext<'_>,
) -> Result<()> {
    let (layers, tokens) = (source.layers.len(), text.batch.tokens());
    let storage = run.storage(source, tokens)?;
    run.progress.stage(
        &format!("{name} on {tokens} tokens"),
        layers as u64,
        Unit::Layers { tokens },
    );
    let mut sweep = Sweep::stored(source, &text.batch, run.compute(), &storage)?;
    for index in 0..layers {
        sweep.convert(index, &source.layers[index], converter)?;
        run.progress.advance(1);
    }
    Ok(())
}

/// The most bytes that `pass` holds while it decides on `source` by so many `own` tokens and tokens
/// of a pool, in sequences of `length` at most.
fn swept_bytes(
    pass: &dyn LayerPass,
    source: &Model,
    [own, pool]: [usize; 2],
    length: usize,
    work: &Work<'_>,
) -> Result<u64> {
    let text = |tokens: usize| -> Result<Text> {
        let storage = storage(source, tokens, work.budget, work.compute, work.scratch)?;
        Ok(Text::first(tokens, length, storage))
    };
    let watched =
        Watched { left_out: pass.wants().left_out, converted: pass.role() == Role::Converts };
    let (own, all) = (text(own)?, text(own + pool)?);
    // What joins of the pool is decided on, too.
    let working = pass.working_bytes(all.swept());
    let decided = own.resting(source, watched, work.compute) + working;
    let decided = decided.max(own.sweep(source, watched, work.compute));
    Ok(decided.max(all.sweep(source, Watched::default(), work.compute)))
}

/// What became of all tokens of a text.
fn account(text: &Calibration, corpus: &Corpus) -> String {
    let special = text.batch.tokens() as u64 - text.counted();
    let special = if special > 0 {
        format!(", {special} are special, which --mask-special leaves out")
    } else {
        String::new()
    };
    format!("{}{special}", corpus.account())
}
