//! Estimates the memory of a run before it starts: the live bytes of its largest stage.
//! Every term names a buffer of its stage; `tests/it/budget/` compares these promises with
//! measurements.

use moe_forward::{Corpus, LOGIT_BYTES, Storage};
use moe_math::Compute;
use moe_model::{Attention, Expert, Ffn, Layer, Model, Moe, Weight};
use moe_passes::SweptText;

/// The forward pass attends to sequences of up to `ATTENTION_TOKENS` tokens together, scores
/// `QUERY_BLOCK` queries with all their keys at once, and runs an expert on up to `EXPERT_TOKENS`
/// tokens.
const ATTENTION_TOKENS: usize = 4096;
const QUERY_BLOCK: usize = 256;
const EXPERT_TOKENS: usize = 4096;
/// Maximum size of the experts' outputs that are kept in memory to leave experts out.
const LEFT_OUT_BYTES: usize = 512 << 20;
/// Up to this many rows, a product reads a matrix as it is stored; for more it is widened to f32.
const FEW_ROWS: usize = 128;
/// Bytes of the writer's buffers: eight of 2 MiB.
const WRITER_BYTES: u64 = 16 << 20;
/// Bytes for each token in addition to its states: its id in its sequence and in the batch, and its
/// group.
const TEXT_BYTES_A_TOKEN: u64 = 16;

/// Text that goes through a model.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    pub tokens: usize,
    /// Number of tokens of the longest sequence.
    pub longest: usize,
    pub storage: Storage,
}

/// The extra work of a sweep's observers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Watched {
    /// Whether each expert is left out in turn.
    pub left_out: bool,
    /// Whether the converted layer is run again, to compare its output with the original's.
    pub converted: bool,
}

impl Text {
    /// The first `tokens` of a text in sequences of `length`.
    pub fn first(tokens: usize, length: usize, storage: Storage) -> Self {
        Self { tokens, longest: length.min(tokens), storage }
    }

    /// All text of `corpus`.
    pub fn of(corpus: &Corpus, storage: Storage) -> Self {
        Self { tokens: corpus.tokens(), longest: corpus.longest(), storage }
    }

    /// The same text, for passes that decide in a sweep.
    pub fn swept(&self) -> SweptText {
        SweptText {
            tokens: self.tokens,
            block: self.block(),
            in_memory: self.storage.scratch.is_none(),
        }
    }

    fn block(&self) -> usize {
        self.storage.block_tokens.unwrap_or(usize::MAX).max(self.longest).min(self.tokens)
    }

    /// Bytes of the states of all tokens where they are in memory, or of one block where they are
    /// in a scratch file.
    fn states(&self, hidden: usize) -> u64 {
        let tokens = if self.storage.scratch.is_some() { self.block() } else { self.tokens };
        (tokens * hidden * 4) as u64
    }

    /// Live bytes of a sweep of `model` on this text, without its observers' own.
    pub fn sweep(&self, model: &Model, watched: Watched, compute: &Compute) -> u64 {
        let layers = model.layers.iter().map(|layer| self.layer(model, layer, watched, compute));
        self.kept(model, watched) + layers.max().unwrap_or(0)
    }

    /// Live bytes of such a sweep between its blocks: states, and weights that all blocks need.
    pub fn resting(&self, model: &Model, watched: Watched, compute: &Compute) -> u64 {
        let weights =
            model.layers.iter().map(|layer| layer_bytes(layer, compute)).max().unwrap_or(0);
        self.kept(model, watched) + if self.tokens > self.block() { weights } else { 0 }
    }

    /// Live bytes of a sweep whose observer looks at the inputs of feed-forward networks, and holds
    /// `working` bytes meanwhile.
    pub fn surveyed(&self, model: &Model, working: u64, compute: &Compute) -> u64 {
        let weights =
            model.layers.iter().map(|layer| attention_bytes(layer, compute)).max().unwrap_or(0);
        // The attention's output, and the same normalized.
        let entering = 2 * self.states(model.hidden) + weights;
        let looked_at = self.kept(model, Watched::default()) + entering + working;
        self.sweep(model, Watched::default(), compute).max(looked_at)
    }

    fn kept(&self, model: &Model, watched: Watched) -> u64 {
        let kept = if watched.converted { 2 } else { 1 };
        kept * self.states(model.hidden) + self.tokens as u64 * TEXT_BYTES_A_TOKEN
    }

    fn layer(&self, model: &Model, layer: &Layer, watched: Watched, compute: &Compute) -> u64 {
        let block = self.block();
        let several = self.tokens > block;
        let state = (model.hidden * 4) as u64;
        let attention = attention_bytes(layer, compute);
        let (kept, largest) = match &layer.ffn {
            Ffn::Dense(network) => (expert_bytes(network, compute), expert_bytes(network, compute)),
            Ffn::Moe(moe) => (mixture_bytes(moe, every, compute), largest_expert(moe, compute)),
        };
        let weights = attention + if several { kept } else { largest };
        let attending = attention_work(
            model,
            &layer.attention,
            block.min(ATTENTION_TOKENS.max(self.longest)),
            self.longest,
        );
        // The attention's normalized output, the sum of outputs, and its concatenated parts.
        let around = 4 * block as u64 * state;
        let running = match &layer.ffn {
            Ffn::Dense(network) => network_work(model, network, block.min(EXPERT_TOKENS), block),
            Ffn::Moe(moe) => {
                let shared = moe.shared.as_ref().map_or(0, |shared| {
                    network_work(model, &shared.expert, block.min(EXPERT_TOKENS), block)
                });
                self.mixture(model, moe, block, watched).max(shared)
            }
        };
        weights + (2 * block as u64 * state + attending).max(around + running)
    }

    fn mixture(&self, model: &Model, moe: &Moe, block: usize, watched: Watched) -> u64 {
        let (top_k, experts) = (moe.router.top_k, moe.experts.len().max(1));
        // The most popular expert gets about one and a half times its even share.
        let of_one = (3 * block * top_k / experts / 2).clamp(1, block).min(EXPERT_TOKENS);
        let widest = moe.experts.iter().max_by_key(|expert| expert.elements());
        let running = widest.map_or(0, |expert| network_work(model, expert, of_one, of_one));
        let routing = (block * experts * 4 * 3 + block * top_k * 16) as u64;
        let kept = if watched.left_out && experts > top_k {
            let outputs = (top_k * block * model.hidden * 4).min(LEFT_OUT_BYTES) as u64;
            // Concatenated outputs, half as many further ones, both together, and their numbers on
            // the host.
            outputs * 11 / 2
        } else {
            0
        };
        routing + running.max(kept)
    }
}

/// Buffers of attention on `tokens` tokens in sequences of `longest`.
fn attention_work(model: &Model, attention: &Attention, tokens: usize, longest: usize) -> u64 {
    let widths: usize = attention.linears().iter().map(|linear| linear.weight.shape()[0]).sum();
    let widened =
        attention.linears().iter().map(|linear| linear.weight.elements()).max().unwrap_or(0);
    let widened = if tokens > FEW_ROWS { widened } else { 0 };
    let attended = attention.linears().last().map_or(0, |output| output.weight.shape()[1]);
    // Raw and masked scores, or masked scores and weights; in addition, products in a narrow dtype.
    let keys = attention.window().map_or(longest, |window| longest.min(window + QUERY_BLOCK));
    let scores = 5 * model.heads * QUERY_BLOCK.min(longest) * keys / 2;
    // The parts of the attention's output are held together with scores, and later with their
    // concatenation.
    let attending = tokens * attended + scores.max(tokens * attended);
    // Queries, keys and values before and after rotation; normalized states and the output.
    4 * (tokens * (2 * widths + model.hidden) + attending + widened) as u64
}

/// The mean number of keys that a query is scored with in a sequence of `length`.
pub(crate) fn mean_keys(attention: &Attention, length: usize) -> usize {
    // Keys before the query, and those after it in its block.
    let before = (length + QUERY_BLOCK.min(length)).div_ceil(2);
    attention.window().map_or(before, |window| before.min(window + QUERY_BLOCK))
}

/// Buffers of a network that runs on `tokens` tokens at a time and gives outputs for `all`.
fn network_work(model: &Model, network: &Expert, tokens: usize, all: usize) -> u64 {
    let widened = if tokens > FEW_ROWS { network.width() * model.hidden } else { 0 };
    4 * (tokens * (2 * model.hidden + 3 * network.width())
        + widened
        + (all - tokens.min(all)) * model.hidden) as u64
}

/// Bytes of `weights` in memory: matrices stay as they are stored, except quantized ones.
fn stored<'w>(weights: impl Iterator<Item = &'w Weight>, compute: &Compute) -> u64 {
    weights.map(|weight| loaded(weight, compute)).sum()
}

fn loaded(weight: &Weight, compute: &Compute) -> u64 {
    match weight.encoding() {
        moe_model::Encoding::Plain => weight.bytes(),
        _ => (weight.elements() * compute.dtype.size_in_bytes()) as u64,
    }
}

fn expert_bytes(expert: &Expert, compute: &Compute) -> u64 {
    expert_bytes_of(expert, every, compute)
}

/// A filter for the weights to count.
type WeightFilter = fn(&Weight) -> bool;

fn every(_: &Weight) -> bool {
    true
}

fn expert_bytes_of(expert: &Expert, counted: WeightFilter, compute: &Compute) -> u64 {
    let weights = expert.linears().into_iter().map(|linear| &linear.weight);
    stored(weights.filter(|weight| counted(weight)), compute)
}

/// Live bytes of a layer's experts. Experts that are made of the same bytes are loaded once.
fn mixture_bytes(moe: &Moe, counted: WeightFilter, compute: &Compute) -> u64 {
    let mut all = 0;
    for (index, expert) in moe.experts.iter().enumerate() {
        if index == 0 || !expert.same_source(&moe.experts[index - 1]) {
            all += expert_bytes_of(expert, counted, compute);
        }
    }
    all + moe.shared.as_ref().map_or(0, |shared| expert_bytes_of(&shared.expert, counted, compute))
}

fn largest_expert(moe: &Moe, compute: &Compute) -> u64 {
    let shared = moe.shared.iter().map(|shared| &shared.expert);
    moe.experts.iter().chain(shared).map(|expert| expert_bytes(expert, compute)).max().unwrap_or(0)
}

pub(crate) fn attention_bytes(layer: &Layer, compute: &Compute) -> u64 {
    stored(layer.attention.linears().into_iter().map(|linear| &linear.weight), compute)
}

/// Live bytes of all of a layer's weights.
pub(crate) fn layer_bytes(layer: &Layer, compute: &Compute) -> u64 {
    attention_bytes(layer, compute) + network_bytes(layer, every, compute)
}

/// Live bytes of a layer's attention, and of its other weights that the source's file holds
/// unchanged.
fn taken_over_bytes(layer: &Layer, compute: &Compute) -> u64 {
    attention_bytes(layer, compute)
        + network_bytes(layer, |weight| weight.stored().is_some(), compute)
}

fn network_bytes(layer: &Layer, counted: WeightFilter, compute: &Compute) -> u64 {
    match &layer.ffn {
        Ffn::Dense(network) => expert_bytes_of(network, counted, compute),
        Ffn::Moe(moe) => mixture_bytes(moe, counted, compute),
    }
}

fn head_bytes(model: &Model, rows: usize, compute: &Compute) -> u64 {
    let widened = if rows > FEW_ROWS { (model.vocab * model.hidden * 4) as u64 } else { 0 };
    loaded(model.head_weight(), compute) + widened
}

/// Live bytes of evaluating `model` on `text`, compared with `original` if there is one.
pub(crate) fn evaluation(
    model: &Model,
    original: Option<&Model>,
    text: &Text,
    compute: &Compute,
) -> u64 {
    let first = text.sweep(model, Watched::default(), compute);
    let chosen = original.map_or(0, |original| choices_bytes(original, text.tokens));
    let rows = (LOGIT_BYTES / 8 / model.vocab.max(1)).clamp(1, text.longest.max(1));
    let logits = (rows * model.vocab) as u64;
    let states = text.states(model.hidden);
    let head = head_bytes(model, rows, compute);
    let Some(original) = original else {
        // Logits, in f64, and the buffers of their logarithm.
        return first.max(states + head + logits * (4 + 8 + 10));
    };
    let own = loaded(model.head_weight(), compute);
    let second = states + own + chosen + text.sweep(original, Watched::default(), compute);
    // Both logarithms, one of them as probabilities, their difference, and the product.
    let both = 2 * states + own + chosen + head_bytes(original, rows, compute) + logits * (5 * 8);
    first.max(second).max(both)
}

/// Bytes of the choices of `tokens` tokens in all layers of `original`, which tell how rare the
/// experts are that serve a token.
fn choices_bytes(original: &Model, tokens: usize) -> u64 {
    original.moes().map(|(_, moe)| (tokens * moe.router.top_k) as u64 * 8).sum()
}

/// Live bytes of writing the logits of `tokens` tokens.
pub(crate) fn logits(model: &Model, text: &Text, block: usize, compute: &Compute) -> u64 {
    let rows = block.min(text.tokens);
    // Logits, then their numbers together with their bytes, which grow while they are written.
    let written = head_bytes(model, rows, compute) + (rows * model.vocab * (4 + 3)) as u64;
    let sweep = text.sweep(model, Watched::default(), compute);
    sweep.max(text.states(model.hidden) + written)
}

/// Live bytes of writing `tensors` while a result is compared with its source on `probe_tokens`
/// tokens; the source is the first of the two models.
pub(crate) fn writing(
    models: [&Model; 2],
    tensors: &[(String, Weight)],
    probe_tokens: usize,
    compute: &Compute,
) -> u64 {
    // Made weights are summed in f64, from inputs that are read as stored and in f32.
    let made = tensors.iter().filter(|(_, weight)| weight.stored().is_none());
    let made =
        made.map(|(_, weight)| weight.bytes() + 12 * weight.elements() as u64).max().unwrap_or(0);
    let writing = WRITER_BYTES + made;
    if probe_tokens == 0 {
        return writing;
    }
    writing + probing(models, made, probe_tokens, compute)
}

/// Live bytes of comparing the second of two models with the first on `tokens` tokens, where a
/// weight of the second takes up to `made` bytes to make.
fn probing([source, result]: [&Model; 2], made: u64, tokens: usize, compute: &Compute) -> u64 {
    let text = Text { tokens, longest: tokens, storage: Storage::default() };
    let [of_source, of_result] =
        [source, result].map(|model| text.sweep(model, Watched::default(), compute));
    // Both models run in step, and weights that the result takes over are kept from the source; an
    // expert that is made is made when it is run.
    let shared =
        result.layers.iter().map(|layer| taken_over_bytes(layer, compute)).max().unwrap_or(0);
    let sweeps = of_source.max(of_result) + made + shared;
    let rows = (LOGIT_BYTES / 8 / source.vocab.max(1)).clamp(1, tokens);
    let own = result.head_weight();
    let own = if own.same_source(source.head_weight()) { 0 } else { loaded(own, compute) };
    // For a block, both logits, both logarithms, one of them as probabilities, their difference,
    // and the product.
    let logits = (rows * source.vocab) as u64 * (2 * 4 + 5 * 8);
    let states = 4 * text.states(source.hidden);
    let head = head_bytes(source, rows, compute) + own + states + logits;
    sweeps.max(head)
}
