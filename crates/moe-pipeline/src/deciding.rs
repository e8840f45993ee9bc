//! What decides in a sweep over text.

use std::path::Path;

use moe_checkpoint::Result;
use moe_forward::{Calibration, Corpus, EvalReport, Observer, Role, Room, Sweep, TextRead};
use moe_model::Model;
use moe_passes::quantize::PoolStats;
use moe_passes::{CalibrationOptions, LayerEdits, LayerPass};

use crate::budget;
use crate::memory::{Text, Watched};
use crate::needs::{Needs, Work};
use crate::observe::calibration;
use crate::options::ConvertOptions;
use crate::progress::{Progress, Unit};
use crate::resources::storage;
use crate::trust::StageReport;

/// What decides in a sweep, and its text.
pub(crate) struct Deciding {
    pub decider: Box<dyn LayerPass>,
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

impl Deciding {
    /// Reads the text of `decider`, which converts `source`, by the tokenizer of the model in
    /// `input`; `work` says what may be held.
    ///
    /// # Errors
    /// What reading returns; [`moe_checkpoint::Kind::Usage`] for too little text.
    pub fn new(
        decider: Box<dyn LayerPass>,
        source: &Model,
        input: &Path,
        work: &Work<'_>,
    ) -> Result<Self> {
        let length = decider.text().sequence_length;
        let of_text =
            |option, live: &dyn Fn(usize) -> Result<u64>| budget::room(work.budget, option, live);
        let room = of_text("--data-tokens", &|tokens| {
            swept_bytes(&*decider, source, [tokens, 0], length, work)
        });
        // Fewer than it can decide by aren't asked for.
        let least = decider.least_tokens(length);
        let room =
            room.map(|room| if room.tokens < least { Room { tokens: 0, ..room } } else { room });
        let (text, corpus) = calibration(decider.text(), input, source.vocab, room)?;
        let own = text.batch.tokens();
        let read_pool = |text: CalibrationOptions| {
            let room = of_text("--pool-tokens", &|tokens| {
                swept_bytes(&*decider, source, [own, tokens], length, work)
            });
            calibration(&text, input, source.vocab, room)
        };
        let (pool, of_pool) = decider.pool_text().map(read_pool).transpose()?.unzip();
        // What is too little is so for a reason that isn't seen in the text.
        decider
            .check_text(&text, pool.as_ref())
            .map_err(|error| error.source(account(&text, &corpus)))?;
        let of_pool: Option<Corpus> = of_pool;
        let read = corpus
            .texts
            .into_iter()
            .chain(of_pool.into_iter().flat_map(|pool| pool.texts))
            .collect();
        Ok(Self { decider, text, read, pool, pulled: None })
    }

    /// All windows that it may look at.
    pub fn windows(&self) -> impl Iterator<Item = &[u32]> {
        let pool = self.pool.iter().flat_map(|pool| pool.batch.sequences());
        self.text.batch.sequences().chain(pool)
    }

    /// The most bytes that deciding on `source` holds, and what it would with less text.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a budget that no block of tokens fits in.
    pub fn needs(&self, source: &Model, work: &Work<'_>) -> Result<Needs> {
        let tokens =
            [self.text.batch.tokens(), self.pool.as_ref().map_or(0, |pool| pool.batch.tokens())];
        let option =
            if self.pool.is_some() { "--data-tokens and --pool-tokens" } else { "--data-tokens" };
        Needs::of_text(option, self.text.batch.longest(), |share, length| {
            let [own, pool] = tokens;
            let shares = [share.of_least(own, self.decider.least_tokens(length)), share.of(pool)];
            swept_bytes(&*self.decider, source, shares, length, work)
        })
    }

    /// About how many floating-point operations deciding takes.
    pub fn flops(&self) -> f64 {
        let sequence = self.text.batch.longest();
        self.decider.flops(self.text.batch.tokens(), sequence)
    }

    /// Lets what decides see all that it must have seen of `source` before the first layer, and the
    /// tokens that are to come.
    fn begin(
        &mut self,
        source: &Model,
        options: &ConvertOptions,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let layers = source.layers.len();
        let watched = |name: &str, text: &Calibration, observer: &mut dyn Observer| -> Result<()> {
            let tokens = text.batch.tokens();
            progress.stage(
                &format!("{name} {tokens} tokens"),
                layers as u64,
                Unit::Layers { tokens },
            );
            let storage =
                storage(source, tokens, options.memory_budget, &options.compute, scratch)?;
            let mut sweep = Sweep::stored(source, &text.batch, &options.compute, &storage)?;
            for index in 0..layers {
                sweep.layer(index, observer)?;
                observer.layer_done(index, layers)?;
                progress.advance(1);
            }
            Ok(())
        };
        if let Some(pool) = self.pool.take() {
            let all = self.text.joined(&pool);
            let own = self.text.batch.spans.len();
            if let Some(mut pool) = self.decider.pool(&all, own) {
                watched("scan", &all, pool.as_mut())?;
                let (joining, found) = pool.choose();
                self.text = all.selected((0..own).chain(joining));
                self.pulled = Some(found);
            }
        }
        self.decider.begin(&self.text);
        let sample = self.text.sampled(SURVEY_TOKENS);
        if let Some(observer) = self.decider.survey(&sample) {
            watched("survey", &sample, observer)?;
        }
        Ok(())
    }

    /// Decides layer by layer; what reaches a layer has gone through the converted ones before it.
    /// What each stage of several gave is `measured`, and taken back where it is no better than
    /// what was there before.
    ///
    /// # Errors
    /// What sweeps return.
    pub fn run(
        &mut self,
        source: &Model,
        name: &str,
        options: &ConvertOptions,
        scratch: &Path,
        progress: &dyn Progress,
        measured: &mut dyn FnMut(&LayerEdits) -> Result<Option<EvalReport>>,
    ) -> Result<(LayerEdits, Vec<StageReport>)> {
        self.begin(source, options, scratch, progress)?;
        let layers = source.layers.len();
        let (decider, text) = (self.decider.as_mut(), &self.text);
        let tokens = text.batch.tokens();
        let storage = storage(source, tokens, options.memory_budget, &options.compute, scratch)?;
        let mut name = name;
        let mut stages: Vec<StageReport> = Vec::new();
        loop {
            progress.stage(
                &format!("{name} on {tokens} tokens"),
                layers as u64,
                Unit::Layers { tokens },
            );
            let mut sweep = Sweep::stored(source, &text.batch, &options.compute, &storage)?;
            for index in 0..layers {
                sweep.convert(index, &source.layers[index], decider)?;
                progress.advance(1);
            }
            let stage = decider.stage();
            let report = stage.map(|_| measured(&decider.finish()?)).transpose()?.flatten();
            if let Some((stage, report)) = stage.zip(report) {
                let best = stages.iter().rev().find(|stage| stage.kept);
                let kept = best.is_none_or(|best| report.all.kl() < best.report.all.kl());
                stages.push(StageReport { stage, kept, report });
                if !kept {
                    decider.take_back();
                }
            }
            if !decider.again() {
                return Ok((decider.finish()?, stages));
            }
            name = "train";
        }
    }
}

/// Lets several decide in one sweep: what one makes of a layer is what the next converts, on tokens
/// that have gone through what all up to it made of the layers before. Each is given with what it
/// converts, of which only the first one's layers must be more than planned.
///
/// Every one sees what it would see in a sweep of its own over the result of the one before it:
/// what comes of it is the same.
///
/// # Errors
/// What sweeps return.
pub(crate) fn decide_together(
    parts: &mut [(&Model, &mut Deciding)],
    name: &str,
    options: &ConvertOptions,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    for (source, deciding) in parts.iter_mut() {
        deciding.begin(source, options, scratch, progress)?;
    }
    let tokens = parts.iter().map(|(_, deciding)| deciding.text.batch.tokens()).sum();
    let Some(source) = parts.first().map(|(source, _)| *source) else { return Ok(()) };
    let storage = storage(source, tokens, options.memory_budget, &options.compute, scratch)?;
    let mut sweeps = Vec::new();
    for (source, deciding) in parts {
        let Deciding { decider, text, .. } = &mut **deciding;
        sweeps.push((Sweep::stored(source, &text.batch, &options.compute, &storage)?, decider));
    }
    progress.stage(
        &format!("{name} on {tokens} tokens"),
        source.layers.len() as u64,
        Unit::Layers { tokens },
    );
    for (index, layer) in source.layers.iter().enumerate() {
        let mut layer = layer.clone();
        for (sweep, decider) in &mut sweeps {
            decider.model_mut().layers[index] = layer.clone();
            layer = sweep.convert(index, &layer, decider.as_mut())?.applied_to(layer);
        }
        progress.advance(1);
    }
    Ok(())
}

/// The most bytes that `decider` holds while it decides on `source` by so many `own` tokens and
/// tokens of a pool, in sequences of `length` at most.
fn swept_bytes(
    decider: &dyn LayerPass,
    source: &Model,
    [own, pool]: [usize; 2],
    length: usize,
    work: &Work<'_>,
) -> Result<u64> {
    let text = |tokens: usize| -> Result<Text> {
        let storage = storage(source, tokens, work.budget, work.compute, work.scratch)?;
        Ok(Text::first(tokens, length, storage))
    };
    let converted = decider.role() == Role::Converts;
    let watched = Watched { left_out: decider.leaves_out(), converted };
    let (own, all) = (text(own)?, text(own + pool)?);
    // What joins of the pool is decided on, too.
    let working = decider.working_bytes(all.swept());
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
