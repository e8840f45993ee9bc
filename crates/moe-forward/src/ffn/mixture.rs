//! Runs a mixture: its experts run one after the other, each on the tokens that chose it.

use std::ops::Range;

use candle_core::{Result as CandleResult, Tensor};
use moe_checkpoint::{Error, Result};
use moe_math::combine::ExpertCombine;
use moe_math::meter::Work;
use moe_math::routing::Routing;
use moe_model::{Moe, Weight};

use super::groups::{ExpertGroup, groups};
use super::kept::KeptOutputs;
use super::left_out::LeftOutParts;
use super::network::{EXPERTS, output_of};
use super::parts::{TOKEN_BLOCK, in_parts, select_rows};
use super::running::RunningLayer;
use crate::context::{Context, failed};
use crate::loader::{LoadedExpert, Loader};
use crate::observer::{ExpertRun, Observer, STATISTICS, Wants};
use crate::prefetcher::Prefetcher;
use crate::router::LoadedRouter;

/// A mixture whose tokens are routed.
pub(super) struct Mixture<'a> {
    running: RunningLayer<'a>,
    moe: &'a Moe,
    x: &'a Tensor,
    router: LoadedRouter,
    logits: Tensor,
    routing: Routing,
    /// The gates as a differentiable function of the logits, if these are tracked.
    tracked: Option<Tensor>,
    wants: Wants,
}

/// The results of the experts that have run.
struct Gathered {
    sum: ExpertCombine,
    kept: Option<KeptOutputs>,
}

/// The activations and outputs of an expert.
struct ExpertResult {
    activations: Tensor,
    output: Tensor,
}

impl<'a> Mixture<'a> {
    /// Routes `x`, `[tokens, hidden]`.
    pub fn route(
        running: RunningLayer<'a>,
        moe: &'a Moe,
        x: &'a Tensor,
        wants: Wants,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let compute = running.loader.compute;
        let layer = running.index;
        let router = LoadedRouter::load_with(&moe.router, running.loader)?;
        let work = Work::products(x.dims()[0], moe.router.weight.elements());
        let routed = compute.stage("routing", work, || router.route(x));
        let (logits, routing) = routed.context(|| format!("the routing of layer {layer}"))?;
        compute.stage(STATISTICS, Work::UNCOUNTED, || observer.routed(layer, &logits, &routing))?;
        let tracked =
            router.gates(&logits, &routing).context(|| format!("the gates of layer {layer}"))?;
        Ok(Self { running, moe, x, router, logits, routing, tracked, wants })
    }

    /// Returns the gated sum of the experts' outputs, plus that of the shared one. `tokens` is the
    /// range of the batch's tokens.
    pub fn run(&self, tokens: &Range<usize>, observer: &mut dyn Observer) -> Result<Tensor> {
        let Gathered { sum, kept } = self.run_experts(observer)?;
        let mixed = self.running.loader.compute.stage(EXPERTS, Work::UNCOUNTED, || {
            sum.finish(self.x.dtype()).context(|| self.name())
        })?;
        let y = self.running.with_shared(self.moe, self.x, mixed)?;
        if let Some(kept) = kept {
            self.show_left_out(&kept, &y, observer)?;
        }
        self.show_sampled(tokens, observer)?;
        Ok(y)
    }

    fn name(&self) -> String {
        format!("the experts' output in layer {}", self.running.index)
    }

    fn run_experts(&self, observer: &mut dyn Observer) -> Result<Gathered> {
        let RunningLayer { loader, capacity, .. } = self.running;
        let mut gathered = self.nothing_gathered().context(|| self.name())?;
        let join = !self.wants.experts && self.tracked.is_none();
        let capacity = capacity.map(|capacity| capacity.tokens(&self.routing));
        let groups = groups(self.moe, &self.routing, join, capacity);
        // All experts' tokens go to the device at once.
        let rows: Vec<u32> = groups.iter().flat_map(|group| group.tokens.iter().copied()).collect();
        let rows = Tensor::from_slice(&rows, rows.len(), self.x.device());
        let rows = rows.context(|| self.name())?;
        Prefetcher::reading(self.to_read(&groups), |prefetcher| {
            let loader = Loader { prefetcher: Some(prefetcher), ..loader };
            let mut from = 0;
            for group in &groups {
                loader.compute.meter.at_expert(group.first, self.moe.experts.len());
                let rows = rows.narrow(0, from, group.tokens.len()).context(|| self.name())?;
                from += group.tokens.len();
                self.run_group(loader, group, &rows, &mut gathered, observer)?;
            }
            Ok::<_, Error>(())
        })?;
        loader.compute.meter.at_no_expert();
        Ok(gathered)
    }

    fn nothing_gathered(&self) -> CandleResult<Gathered> {
        let (tokens, hidden) = (self.routing.tokens(), self.x.dims()[1]);
        let sum = match &self.tracked {
            Some(_) => ExpertCombine::tracked(tokens, hidden),
            None => ExpertCombine::new(tokens, hidden, self.x.device())?,
        };
        let keeps = self.wants.left_out && self.routing.experts > self.routing.top_k;
        Ok(Gathered { sum, kept: keeps.then(|| KeptOutputs::new(&self.routing)) })
    }

    /// Returns the weights of `groups` that another thread reads in advance.
    fn to_read(&self, groups: &[ExpertGroup<'_>]) -> impl Iterator<Item = Weight> {
        let loader = self.running.loader;
        // On a CPU, reading takes at most a twentieth of the time, and memory is scarce.
        let prefetches = !loader.compute.device.is_cpu();
        let linears = groups.iter().flat_map(|group| group.expert.linears());
        linears
            .map(|linear| &linear.weight)
            .filter(move |weight| prefetches && loader.reads(weight))
            .cloned()
    }

    /// Runs the expert of `group` on its tokens, which are `rows` of the input.
    fn run_group(
        &self,
        loader: Loader<'_>,
        group: &ExpertGroup<'_>,
        rows: &Tensor,
        gathered: &mut Gathered,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let loaded = loader.expert(group.expert)?;
        in_parts(
            group.tokens.len(),
            TOKEN_BLOCK,
            |part| {
                let work = Work::products(part.len(), group.expert.elements());
                loader.compute.stage(EXPERTS, work, || self.run_rows(&loaded, rows, part))
            },
            |error| failed(error, || self.name_of(group)),
            |part, ran| self.take(group, part, &ran, gathered, observer),
        )?;
        gathered.kept.iter_mut().for_each(|kept| kept.place(&group.slots, &group.tokens));
        Ok(())
    }

    fn name_of(&self, group: &ExpertGroup<'_>) -> String {
        let down = &group.expert.down.weight;
        format!("the expert of {} in layer {}", down.name(), self.running.index)
    }

    fn run_rows(
        &self,
        expert: &LoadedExpert,
        rows: &Tensor,
        part: Range<usize>,
    ) -> CandleResult<ExpertResult> {
        let x = self.x.index_select(&rows.narrow(0, part.start, part.len())?, 0)?;
        let activations = expert.activations(&x)?;
        let output = expert.output(&activations)?;
        Ok(ExpertResult { activations, output })
    }

    /// Adds the results of `group` for the tokens `part` of its own, and shows them to the
    /// observer.
    fn take(
        &self,
        group: &ExpertGroup<'_>,
        part: Range<usize>,
        ran: &ExpertResult,
        gathered: &mut Gathered,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let (tokens, gates) = (&group.tokens[part.clone()], &group.gates[part.clone()]);
        let added = self.add(group, part, &ran.output, &mut gathered.sum);
        added.context(|| self.name_of(group))?;
        if self.wants.experts {
            let run = ExpertRun {
                expert: group.first,
                tokens,
                gates,
                activations: &ran.activations,
                output: &ran.output,
            };
            self.show_run(&run, observer)?;
        }
        gathered.kept.iter_mut().for_each(|kept| kept.push(&ran.output));
        Ok(())
    }

    /// Adds the `output` of `group` for the tokens `part` of its own to `sum`.
    fn add(
        &self,
        group: &ExpertGroup<'_>,
        part: Range<usize>,
        output: &Tensor,
        sum: &mut ExpertCombine,
    ) -> CandleResult<()> {
        let tokens = &group.tokens[part.clone()];
        match &self.tracked {
            // A group of one expert has a different token in each slot, in order.
            Some(tracked) => {
                sum.add_tracked(output, tokens, &select_rows(tracked, &group.slots[part])?)
            }
            None => sum.add(output, tokens, &group.gates[part]),
        }
    }

    fn show_run(&self, run: &ExpertRun<'_>, observer: &mut dyn Observer) -> Result<()> {
        let compute = self.running.loader.compute;
        let values = run.activations.elem_count() + run.output.elem_count();
        let work = Work::bytes((values * compute.dtype.size_in_bytes()) as u64);
        compute.stage(STATISTICS, work, || observer.expert_ran(self.running.index, run))
    }

    /// Shows the observer what `y`, the block's output, would be without each expert.
    fn show_left_out(
        &self,
        kept: &KeptOutputs,
        y: &Tensor,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let outputs = Tensor::cat(&kept.outputs, 0).context(|| self.name())?;
        let RunningLayer { loader, index, .. } = self.running;
        let parts = LeftOutParts {
            loader,
            index,
            moe: self.moe,
            x: self.x,
            logits: &self.logits,
            rule: self.router.rule(),
            routing: &self.routing,
        };
        loader.compute.stage("experts left out", Work::UNCOUNTED, || {
            observer.left_out(index, &parts.without_each(&outputs, &kept.place, y)?)
        })
    }

    /// Runs all experts on the sampled ones of the batch's `tokens`.
    fn show_sampled(&self, tokens: &Range<usize>, observer: &mut dyn Observer) -> Result<()> {
        let rows = self.wants.sampled_in(tokens);
        if rows.is_empty() {
            return Ok(());
        }
        let RunningLayer { loader, index, .. } = self.running;
        let x = select_rows(self.x, &rows);
        let x = x.context(|| format!("sampled tokens of layer {index}"))?;
        for (expert, network) in self.moe.experts.iter().enumerate() {
            observer.sampled_output(index, expert, &rows, &output_of(loader, network, &x)?)?;
        }
        Ok(())
    }
}
