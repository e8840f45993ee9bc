//! Feed-forward blocks: one network for all tokens, or experts that run on their own tokens only.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::{Error, Result};
use moe_math::Compute;
use moe_math::combine::ExpertCombine;
use moe_math::device::is_out_of_memory;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::routing::{Routing, route_masked};
use moe_model::{Expert, Ffn, Moe};

use crate::context::{Context, failed};
use crate::left_out::LeftOutParts;
use crate::loader::Loader;
use crate::prefetcher::Prefetcher;
use crate::router::LoadedRouter;
use crate::sweep::{ExpertRun, Observer};

/// A block's activations are computed for this many tokens at a time.
const TOKEN_BLOCK: usize = 4096;
/// The stage of running experts.
const EXPERTS: &str = "experts";
/// The stage of whoever watches.
pub(crate) const STATISTICS: &str = "statistics";
/// Outputs of at most this many bytes are kept for an observer that wants to see them without each
/// expert.
const KEPT_BYTES: usize = 512 << 20;

/// Runs the block of layer `index` on `x`, `[tokens, hidden]`, already normalised.
pub(crate) fn forward(
    loader: Loader<'_>,
    index: usize,
    ffn: &Ffn,
    x: &Tensor,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    match ffn {
        Ffn::Dense(network) => {
            let (expert, work) =
                (loader.expert(network)?, Work::products(x.dims()[0], network.elements()));
            let run = || in_blocks(x, |x| expert.forward(x));
            loader
                .compute
                .stage("dense networks", work, run)
                .context(|| format!("the feed-forward block of layer {index}"))
        }
        Ffn::Moe(moe) => {
            let (tokens, hidden) = x.dims2().context(|| "a shape".into())?;
            let bytes_per_token = moe.router.top_k * hidden * loader.compute.dtype.size_in_bytes();
            let block = if observer.wants().left_out {
                (KEPT_BYTES / bytes_per_token).max(1)
            } else {
                tokens.max(1)
            };
            let mut parts = Vec::new();
            for start in (0..tokens).step_by(block) {
                let part =
                    x.narrow(0, start, block.min(tokens - start)).context(|| "a slice".into())?;
                parts.push(mixture(loader, index, moe, &part, observer)?);
            }
            Tensor::cat(&parts, 0).context(|| format!("the experts' output in layer {index}"))
        }
    }
}

/// What the neurons of `network` do on `x`, `[tokens, hidden]`: silu(gate x) ∘ (up x), `[tokens,
/// width]`.
///
/// # Errors
/// What reading and the device return.
pub fn neuron_activations(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    let loaded = Loader::new(compute).expert(network)?;
    loaded.activations(x).context(|| format!("activations behind {}", network.gate.weight.name()))
}

/// A mixture whose experts all ran on the same tokens.
pub struct ExpertsOn {
    /// The output of each expert, `[tokens, hidden]`, before any gate.
    pub outputs: Vec<Tensor>,
    logits: Tensor,
    router: LoadedRouter,
}

impl ExpertsOn {
    /// Where tokens go when the `masked` experts are not there.
    ///
    /// # Errors
    /// What the device returns.
    pub fn routed(&self, masked: &[bool]) -> CandleResult<Routing> {
        route_masked(&self.logits, self.router.rule(), Some(masked))
    }
}

/// Runs all experts of `moe` on `x`, `[tokens, hidden]`.
///
/// # Errors
/// What reading and the device return.
pub fn experts_on(moe: &Moe, x: &Tensor, compute: &Compute) -> Result<ExpertsOn> {
    let run = |expert: &Expert| expert_output(expert, x, compute);
    let outputs = moe.experts.iter().map(run).collect::<Result<_>>()?;
    let router = LoadedRouter::load(&moe.router, compute)?;
    let (logits, _) =
        router.route(x).context(|| format!("the logits of {}", moe.router.weight.name()))?;
    Ok(ExpertsOn { outputs, logits, router })
}

/// What `network` gives for `x`, `[tokens, hidden]`.
///
/// # Errors
/// What reading and the device return.
pub fn expert_output(network: &Expert, x: &Tensor, compute: &Compute) -> Result<Tensor> {
    output_of(Loader::new(compute), network, x)
}

/// The same with weights that `loader` loads.
pub(crate) fn output_of(loader: Loader<'_>, network: &Expert, x: &Tensor) -> Result<Tensor> {
    let (loaded, work) = (loader.expert(network)?, Work::products(x.dims()[0], network.elements()));
    let run = || in_blocks(x, |x| loaded.forward(x));
    loader
        .compute
        .stage(EXPERTS, work, run)
        .context(|| format!("the expert of {}", network.down.weight.name()))
}

/// What tokens `x`, `[tokens, hidden]`, rank the experts of `moe` by: logits or, with a expert
/// correction bias, scores plus bias; `[tokens, experts]`, row by row.
///
/// # Errors
/// What reading and the device return.
pub fn router_scores(moe: &Moe, x: &Tensor, compute: &Compute) -> Result<Vec<f32>> {
    let router = LoadedRouter::load(&moe.router, compute)?;
    let scores = || -> CandleResult<Vec<f32>> {
        let (logits, mut routing) = router.route(x)?;
        let Some(bias) = &router.rule().bias else { return logits.flatten_all()?.to_vec1() };
        for row in routing.scores.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        Ok(routing.scores)
    };
    scores().context(|| format!("the scores of {}", moe.router.weight.name()))
}

fn in_blocks(x: &Tensor, f: impl Fn(&Tensor) -> CandleResult<Tensor>) -> CandleResult<Tensor> {
    let mut parts = Vec::new();
    let run = |part: Range<usize>| f(&x.narrow(0, part.start, part.len())?);
    let take = |_, part| {
        parts.push(part);
        Ok(())
    };
    in_parts(x.dim(0)?, TOKEN_BLOCK, run, |error| error, take)?;
    Tensor::cat(&parts, 0)
}

/// Runs `run` on parts of `rows` rows and hands on what it gives: as many together as `most`, and
/// half of that where the device has no memory for them. `fail` says what couldn't be run.
fn in_parts<T, E>(
    rows: usize,
    most: usize,
    run: impl Fn(Range<usize>) -> CandleResult<T>,
    fail: impl Fn(candle_core::Error) -> E,
    mut take: impl FnMut(Range<usize>, T) -> Result<(), E>,
) -> Result<(), E> {
    let (mut from, mut most) = (0, most);
    while from < rows {
        let part = from..rows.min(from + most);
        match run(part.clone()) {
            Err(error) if part.len() > 1 && is_out_of_memory(&error) => {
                most = part.len().div_ceil(2)
            }
            found => {
                from = part.end;
                take(part, found.map_err(&fail)?)?;
            }
        }
    }
    Ok(())
}

/// What the experts of `moe` give for `x`, weighed and summed, with the shared one.
fn mixture(
    loader: Loader<'_>,
    index: usize,
    moe: &Moe,
    x: &Tensor,
    observer: &mut dyn Observer,
) -> Result<Tensor> {
    let compute = loader.compute;
    let router = LoadedRouter::load_with(&moe.router, loader)?;
    let work = Work::products(x.dims()[0], moe.router.weight.elements());
    let routed = compute.stage("routing", work, || router.route(x));
    let (logits, routing) = routed.context(|| format!("the routing of layer {index}"))?;
    compute.stage(STATISTICS, Work::UNCOUNTED, || observer.routed(index, &logits, &routing))?;
    let wants = observer.wants();
    let of_layer = || format!("the experts' output in layer {index}");
    let trained =
        router.gates(&logits, &routing).context(|| format!("the gates of layer {index}"))?;
    let capacity = observer.capacity(index, &routing).unwrap_or(usize::MAX);
    let mut mix = match &trained {
        Some(_) => ExpertCombine::tracked(routing.tokens(), x.dims()[1]),
        None => ExpertCombine::new(routing.tokens(), x.dims()[1], x.device()).context(of_layer)?,
    };
    let mut kept =
        (wants.left_out && routing.experts > routing.top_k).then(|| KeptOutputs::new(&routing));
    let mut groups = groups(moe, &routing, !wants.experts && trained.is_none());
    groups.iter_mut().for_each(|group| group.slots.truncate(capacity));
    let gathered: Vec<_> = groups.iter().map(|group| gathered(&group.slots, &routing)).collect();
    // All experts' tokens go to the device at once.
    let rows: Vec<u32> = gathered.iter().flat_map(|(tokens, _)| tokens.iter().copied()).collect();
    let rows = Tensor::from_slice(&rows, rows.len(), x.device()).context(of_layer)?;
    let linears = groups.iter().flat_map(|group| group.expert.linears());
    // On a CPU reading takes a twentieth of the time at most, and memory is short.
    let ahead = !compute.device.is_cpu();
    let missing = linears
        .map(|linear| &linear.weight)
        .filter(|weight| ahead && loader.reads(weight))
        .cloned();
    let mut from = 0;
    Prefetcher::reading(missing, |ahead| {
        let loader = Loader { ahead: Some(ahead), ..loader };
        for (ExpertGroup { first, expert, slots }, (tokens, gates)) in groups.iter().zip(&gathered)
        {
            compute.meter.at_expert(*first, moe.experts.len());
            let loaded = loader.expert(expert)?;
            let of = || format!("the expert of {} in layer {index}", expert.down.weight.name());
            let rows = rows.narrow(0, from, tokens.len()).context(of)?;
            from += tokens.len();
            let run = |part: Range<usize>| {
                compute.stage(EXPERTS, Work::products(part.len(), expert.elements()), || {
                    let x = x.index_select(&rows.narrow(0, part.start, part.len())?, 0)?;
                    let activations = loaded.activations(&x)?;
                    let output = loaded.output(&activations)?;
                    Ok((activations, output))
                })
            };
            let take =
                |part: Range<usize>, (activations, output): (Tensor, Tensor)| -> Result<()> {
                    let (tokens, gates, slots) =
                        (&tokens[part.clone()], &gates[part.clone()], &slots[part]);
                    match &trained {
                        // One expert alone: each of its slots is another token, in their order.
                        Some(trained) => Tensor::from_slice(slots, slots.len(), x.device())
                            .and_then(|slots| {
                                mix.add_tracked(&output, tokens, &trained.index_select(&slots, 0)?)
                            }),
                        None => mix.add(&output, tokens, gates),
                    }
                    .context(of)?;
                    if wants.experts {
                        let run = ExpertRun {
                            expert: *first,
                            tokens,
                            gates,
                            activations: &activations,
                            output: &output,
                        };
                        let values = (activations.elem_count() + output.elem_count())
                            * compute.dtype.size_in_bytes();
                        compute.stage(STATISTICS, Work::bytes(values as u64), || {
                            observer.expert_ran(index, &run)
                        })?;
                    }
                    kept.iter_mut().for_each(|kept| kept.push(&output));
                    Ok(())
                };
            in_parts(tokens.len(), TOKEN_BLOCK, run, |error| failed(error, of), take)?;
            kept.iter_mut().for_each(|kept| kept.place(slots, tokens));
        }
        Ok::<_, Error>(())
    })?;
    compute.meter.at_no_expert();
    let mixed =
        compute.stage(EXPERTS, Work::UNCOUNTED, || mix.finish(x.dtype())).context(of_layer)?;
    let y = with_shared(loader, index, moe, x, mixed)?;
    if let Some(kept) = kept {
        let outputs = Tensor::cat(&kept.outputs, 0).context(of_layer)?;
        let parts = LeftOutParts {
            loader,
            index,
            moe,
            x,
            logits: &logits,
            rule: router.rule(),
            routing: &routing,
        };
        compute.stage("experts left out", Work::UNCOUNTED, || {
            observer.left_out(index, &parts.without_each(&outputs, &kept.place, &y)?)
        })?;
    }
    run_all_experts(loader, index, moe, x, observer)?;
    Ok(y)
}

/// `y`, what the routed experts of `moe` give for `x`, and what its shared one adds.
pub(crate) fn with_shared(
    loader: Loader<'_>,
    index: usize,
    moe: &Moe,
    x: &Tensor,
    y: Tensor,
) -> Result<Tensor> {
    let Some(shared) = &moe.shared else { return Ok(y) };
    let expert = loader.expert(&shared.expert)?;
    let gate = shared.gate.as_ref().map(|gate| loader.matrix(gate)).transpose()?;
    let add = || {
        let out = in_blocks(x, |x| expert.forward(x))?;
        match &gate {
            Some(gate) => y + out.broadcast_mul(&candle_nn::ops::sigmoid(&product(x, gate)?)?)?,
            None => y + out,
        }
    };
    let work = Work::products(x.dims()[0], shared.expert.elements());
    loader
        .compute
        .stage("shared experts", work, add)
        .context(|| format!("the shared expert of layer {index}"))
}

/// Experts' outputs in the order of experts, and the row where that of each (token, choice) has
/// come to lie.
struct KeptOutputs {
    outputs: Vec<Tensor>,
    place: Vec<u32>,
    top_k: u32,
    rows: u32,
}

impl KeptOutputs {
    fn new(routing: &Routing) -> Self {
        Self {
            outputs: Vec::new(),
            place: vec![0; routing.selected.len()],
            top_k: routing.top_k as u32,
            rows: 0,
        }
    }

    fn push(&mut self, output: &Tensor) {
        self.outputs.push(output.clone());
    }

    /// All outputs of an expert for `tokens` were pushed, which are those of `slots`.
    fn place(&mut self, slots: &[u32], tokens: &[u32]) {
        for slot in slots {
            let row =
                tokens.binary_search(&(slot / self.top_k)).expect("every slot's token is there");
            self.place[*slot as usize] = self.rows + row as u32;
        }
        self.rows += tokens.len() as u32;
    }
}

/// Runs all experts on the tokens that the observer wants to see them on.
fn run_all_experts(
    loader: Loader<'_>,
    index: usize,
    moe: &Moe,
    x: &Tensor,
    observer: &mut dyn Observer,
) -> Result<()> {
    let tokens = observer.sampled(index);
    if tokens.is_empty() {
        return Ok(());
    }
    let select = || x.index_select(&Tensor::from_slice(&tokens, tokens.len(), x.device())?, 0);
    let x = select().context(|| format!("sampled tokens of layer {index}"))?;
    for (expert, network) in moe.experts.iter().enumerate() {
        observer.sampled_output(index, expert, &tokens, &output_of(loader, network, &x)?)?;
    }
    Ok(())
}

/// Neighbouring experts that are run as one: the first one's index, its network, and the positions
/// in `Routing::selected` that go to any of them.
struct ExpertGroup<'m> {
    first: usize,
    expert: &'m Expert,
    slots: Vec<u32>,
}

/// Experts that have tokens. With `join`, neighbours that are made of the same bytes, as in a plain
/// upcycling before it is written, are one.
fn groups<'m>(moe: &'m Moe, routing: &Routing, join: bool) -> Vec<ExpertGroup<'m>> {
    let mut groups: Vec<ExpertGroup<'_>> = Vec::new();
    let with_tokens =
        routing.slots_by_expert().into_iter().enumerate().filter(|(_, slots)| !slots.is_empty());
    for (first, slots) in with_tokens {
        let expert = &moe.experts[first];
        match groups.last_mut() {
            Some(last) if join && last.expert.same_source(expert) => last.slots.extend(slots),
            _ => groups.push(ExpertGroup { first, expert, slots }),
        }
    }
    groups
}

/// The tokens of `slots`, ascending, each once, and what each weighs: experts of the same bytes
/// give a token that chose several of them one output.
fn gathered(slots: &[u32], routing: &Routing) -> (Vec<u32>, Vec<f32>) {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    let (mut tokens, mut gates): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for slot in slots {
        let (token, gate) = (slot / routing.top_k as u32, routing.weights[slot as usize]);
        match (tokens.last(), gates.last_mut()) {
            (Some(last), Some(sum)) if *last == token => *sum += gate,
            _ => {
                tokens.push(token);
                gates.push(gate);
            }
        }
    }
    (tokens, gates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_gets_half() {
        let full =
            || candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        let mut taken = Vec::new();
        let run = |part: Range<usize>| if part.len() > 3 { Err(full()) } else { Ok(part.start) };
        let take = |part: Range<usize>, first| {
            taken.push((first, part.end));
            Ok(())
        };
        in_parts(10, 8, run, |error| error, take).unwrap();
        assert_eq!(taken, [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]);
        // One row that doesn't fit alone is an error, and so is any other error at once.
        assert!(in_parts(2, 2, |_| Err::<(), _>(full()), |error| error, |_, ()| Ok(())).is_err());
        let other = |part: Range<usize>| {
            if part.len() > 1 { Err(candle_core::Error::msg("no")) } else { Ok(()) }
        };
        assert!(in_parts(2, 2, other, |error| error, |_, ()| Ok(())).is_err());
    }
}
