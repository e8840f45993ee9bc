//! The sweep: hidden states of a batch flow through the model layer by layer.

mod converter;
mod embed;
mod head;
mod layer_run;
mod loaded;
mod weights;

use std::ops::Range;
use std::path::PathBuf;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_model::{Layer, Model};

pub use self::converter::{Converted, Converter, Forcing, Inputs, LayerChange, Role};
pub use self::embed::embed;
pub(crate) use self::embed::embed_with;
pub use self::head::{LOGIT_BYTES, LmHead};
pub(crate) use self::weights::weights_of;

use self::converter::Watching;
use self::layer_run::LayerRun;
use self::loaded::LoadedLayer;
use crate::batch::{Batch, check_ids};
use crate::context::Context;
use crate::ffn::{Capacity, RunningLayer};
use crate::finite;
use crate::loader::{Loader, Shared};
use crate::observer::Observer;
use crate::rotary::Rotary;
use crate::states::{States, Storage, blocks};

/// A batch on its way through a model.
pub struct Sweep<'a> {
    model: &'a Model,
    batch: &'a Batch,
    compute: &'a Compute,
    rotary: Rotary,
    shared: Option<&'a Shared>,
    scratch: Option<PathBuf>,
    capacity: Option<Capacity>,
    /// The range of each block's tokens.
    blocks: Vec<Range<usize>>,
    states: States,
}

impl<'a> Sweep<'a> {
    /// Embeds `batch`. All its states stay in memory and go through a layer at once.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Usage`] for a token id that the vocabulary doesn't have; errors of
    /// reading.
    pub fn new(model: &'a Model, batch: &'a Batch, compute: &'a Compute) -> Result<Self> {
        Self::stored(model, batch, compute, &Storage::default())
    }

    /// Embeds `batch`. `storage` is where its states are kept.
    ///
    /// # Errors
    /// As for [`Sweep::new`]; [`moe_checkpoint::Kind::Io`] if a scratch file can't be written.
    pub fn stored(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        storage: &Storage,
    ) -> Result<Self> {
        check_ids(&batch.ids, model.vocab).map_err(|e| e.file(&model.config_file))?;
        let rotary = Rotary::new(&model.rope, batch.longest(), compute)
            .context(|| "the rotary embedding".into())?;
        let blocks = blocks(&batch.spans, storage.block_tokens);
        let scratch = storage.scratch.clone();
        let mut states = States::new(&blocks, model.hidden, scratch.as_deref(), compute)?;
        for (index, block) in blocks.iter().enumerate() {
            let embedded = embed(&model.embed, &batch.ids[block.clone()], compute)?;
            finite::check(&embedded, "the embeddings of these tokens", [&model.embed])?;
            states.set(index, embedded)?;
        }
        Ok(Self { scratch, ..Self::over(model, batch, compute, rotary, blocks, states) })
    }

    /// Creates a sweep of `batch` whose states are set by [`Sweep::enter`].
    ///
    /// # Errors
    /// Errors of the device.
    pub(crate) fn without_states(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
    ) -> Result<Self> {
        let rotary = Rotary::new(&model.rope, batch.longest(), compute)
            .context(|| "the rotary embedding".into())?;
        let blocks = blocks(&batch.spans, None);
        let states = States::new(&blocks, model.hidden, None, compute)?;
        Ok(Self::over(model, batch, compute, rotary, blocks, states))
    }

    fn over(
        model: &'a Model,
        batch: &'a Batch,
        compute: &'a Compute,
        rotary: Rotary,
        blocks: Vec<Range<usize>>,
        states: States,
    ) -> Self {
        let (shared, scratch, capacity) = (None, None, None);
        Self { model, batch, compute, rotary, shared, scratch, capacity, blocks, states }
    }

    /// Sets the states of all tokens to `hidden`, `[tokens, hidden]`.
    pub(crate) fn enter(&mut self, hidden: Tensor) -> Result<()> {
        self.states.set(0, hidden)
    }

    /// From now on, looks for weights in `shared` first, and keeps loaded ones there.
    pub(crate) fn share(&mut self, shared: &'a Shared) {
        self.shared = Some(shared);
    }

    /// From now on, limits experts to `capacity`; None for no limit.
    pub(crate) fn limit(&mut self, capacity: Option<Capacity>) {
        self.capacity = capacity;
    }

    /// Runs all layers.
    ///
    /// # Errors
    /// As for [`Sweep::convert`].
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        for index in 0..self.model.layers.len() {
            self.layer(index, observer)?;
            observer.layer_done(index, self.model.layers.len())?;
        }
        Ok(())
    }

    /// Runs layer `index`.
    ///
    /// # Errors
    /// As for [`Sweep::convert`].
    pub fn layer(&mut self, index: usize, observer: &mut dyn Observer) -> Result<()> {
        let layer = &self.model.layers[index];
        self.convert(index, layer, &mut Watching(observer)).map(drop)
    }

    /// Runs `layer` in place of the model's layer `index`. What `converter` makes of it gives the
    /// states of the next one. Returns what changed in the layer.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Numeric`] if the result is not finite, naming the tensor if a weight
    /// caused it; errors of reading, of the device and of `converter`.
    pub fn convert(
        &mut self,
        index: usize,
        layer: &Layer,
        converter: &mut dyn Converter,
    ) -> Result<LayerChange> {
        let cache = self.cache();
        let loader = Loader::sharing(self.compute, self.shared.unwrap_or(&cache));
        let run = LayerRun {
            model: self.model,
            compute: self.compute,
            rotary: &self.rotary,
            spans: &self.batch.spans,
            blocks: &self.blocks,
            scratch: self.scratch.as_deref(),
            states: &mut self.states,
            running: RunningLayer { loader, index, capacity: self.capacity },
            layer,
            loaded: LoadedLayer::load(loader, self.model, layer)?,
        };
        run.run(converter)
    }

    /// Returns a cache of weights, which loads them once if several blocks need them.
    fn cache(&self) -> Shared {
        let cache = Shared::default();
        if self.blocks.len() > 1 {
            cache.record();
        }
        cache
    }

    /// Returns the hidden states of `tokens`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Errors of the device or of the scratch file.
    pub fn hidden(&self, tokens: Range<usize>) -> Result<Tensor> {
        self.states.rows(tokens)
    }
}
