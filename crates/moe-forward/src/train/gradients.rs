//! Computes the losses of a batch, and their gradients.

use std::ops::Range;

use candle_core::{DType, Tensor, Var};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::losses::{cross_entropy, divergence};
use moe_math::routing::Routing;
use moe_model::{Ffn, Model};

use super::objective::Objective;
use super::parameters::{Gradients, ParameterSlot, Parameters};
use super::routers::{LayerCounts, RouterLosses, RouterWatch, Shares, add_counts};
use super::teacher::Targets;
use crate::batch::Batch;
use crate::context::Context;
use crate::finite;
use crate::loader::{Loader, Shared};
use crate::sweep::{LOGIT_BYTES, LmHead, Sweep, embed_with};

/// The loss to differentiate.
#[derive(Clone, Copy)]
pub struct Goal<'a> {
    /// The terms of the loss and their weights.
    pub objective: &'a Objective,
    /// The teacher's distributions for the batch, if there is a teacher.
    pub teacher: Option<&'a Targets>,
    /// The weight of the batch among those of a step.
    pub weight: BatchWeight,
}

/// The weight of a batch among those whose gradients are summed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchWeight {
    /// 1 / number of tokens that are predicted in all batches.
    pub per_prediction: f64,
    /// 1 / number of tokens in all batches.
    pub per_token: f64,
    /// 1 / number of batches.
    pub per_batch: f64,
}

impl BatchWeight {
    /// Returns the weight with which sums over `batches` become means.
    pub fn over<'b>(batches: impl IntoIterator<Item = &'b Batch>) -> Self {
        let (mut predictions, mut tokens, mut count) = (0, 0, 0);
        for batch in batches {
            predictions += batch.tokens() - batch.spans.len();
            tokens += batch.tokens();
            count += 1;
        }
        Self {
            per_prediction: 1.0 / predictions.max(1) as f64,
            per_token: 1.0 / tokens.max(1) as f64,
            per_batch: 1.0 / f64::from(count.max(1)),
        }
    }
}

/// Losses of a batch, as means over its tokens; those of routers are means over layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Losses {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that were predicted: all but each sequence's first.
    pub predictions: usize,
    /// Mean −log p, in nats.
    pub cross_entropy: f64,
    /// Mean KL(teacher ‖ model), in nats; 0 without a teacher.
    pub teacher: f64,
    /// The load-balancing loss.
    pub balance: f64,
    /// The router z-loss.
    pub z: f64,
    /// Tokens of each expert, by layer.
    pub load: Vec<LayerCounts>,
}

impl Losses {
    /// Combines the losses of several batches of one step.
    pub fn together(batches: &[Self]) -> Self {
        let mut load: Vec<LayerCounts> = Vec::new();
        batches.iter().for_each(|batch| add_counts(&mut load, &batch.load));
        Self {
            tokens: batches.iter().map(|b| b.tokens).sum(),
            predictions: batches.iter().map(|b| b.predictions).sum(),
            cross_entropy: mean(batches, |b| b.predictions as f64, |b| b.cross_entropy),
            teacher: mean(batches, |b| b.tokens as f64, |b| b.teacher),
            balance: mean(batches, |_| 1.0, |b| b.balance),
            z: mean(batches, |_| 1.0, |b| b.z),
            load,
        }
    }

    /// Divides sums to make means over `tokens` tokens, `predictions` of which are predicted.
    fn divide(&mut self, tokens: usize, predictions: usize) {
        self.tokens = tokens;
        self.predictions = predictions;
        self.cross_entropy /= predictions.max(1) as f64;
        self.teacher /= tokens.max(1) as f64;
    }

    /// Returns the weighted sum of the losses.
    pub fn total(&self, objective: &Objective) -> f64 {
        objective.cross_entropy * self.cross_entropy
            + objective.teacher * self.teacher
            + objective.balance * self.balance
            + objective.z * self.z
    }
}

/// A model in training.
pub struct Trainee<'a> {
    /// The model. Its other weights are read when they are needed.
    pub model: &'a Model,
    /// The weights that are trained.
    pub parameters: &'a Parameters,
    /// The device and the dtype to compute in.
    pub compute: &'a Compute,
    /// Whether the graphs of all layers are kept. Otherwise each layer runs once more in the
    /// backward pass.
    pub keep_graphs: bool,
}

/// The graph of a layer.
struct LayerGraph {
    /// The layer's input; a variable if the rest is tracked.
    input: Tensor,
    output: Tensor,
    routed: Option<(Tensor, Routing)>,
}

/// What the backward pass needs of a layer.
enum LayerTrace {
    /// The layer's graph, which was kept.
    Tracked(LayerGraph),
    /// The layer's input, from which it runs once more.
    Entered(Tensor),
    /// Nothing: neither the layer nor one before it is trained. The logits and routing are for its
    /// losses.
    Frozen(Option<(Tensor, Routing)>),
}

/// The backward pass through the layers.
struct BackwardPass<'b> {
    batch: &'b Batch,
    goal: Goal<'b>,
    shares: Shares<'b>,
    /// The gradient of the output of the layer that is next.
    arriving: Tensor,
}

impl Trainee<'_> {
    /// Adds the gradients of the weighted losses of `batch` to `gradients`.
    ///
    /// # Errors
    /// [`moe_checkpoint::Kind::Numeric`] if states or logits are not finite, naming them; errors of
    /// reading and of the device.
    pub fn accumulate(
        &self,
        batch: &Batch,
        goal: Goal<'_>,
        gradients: &mut Gradients,
    ) -> Result<Losses> {
        let mut losses = Losses::default();
        let (hidden, traces) = self.forward(batch, goal.objective, &mut losses)?;
        let shares = Shares::new(goal.objective, &losses.load, batch.tokens())?;
        let arriving = self.head(batch, &hidden, goal, gradients, &mut losses)?;
        let mut backward = BackwardPass { batch, goal, shares, arriving };
        for (index, trace) in traces.into_iter().enumerate().rev() {
            self.back_through(index, trace, &mut backward, gradients, &mut losses)?;
        }
        if self.parameters.first() == ParameterSlot::Embedding {
            let embedded = self.embedded(batch, true)?;
            self.back_to_embedding(&embedded, &backward.arriving, gradients)
                .context(|| "the gradient of the embedding".into())?;
        }
        Ok(losses)
    }

    /// Runs the backward pass through layer `index`, and adds its router's losses to `losses`.
    fn back_through(
        &self,
        index: usize,
        trace: LayerTrace,
        backward: &mut BackwardPass<'_>,
        gradients: &mut Gradients,
        losses: &mut Losses,
    ) -> Result<()> {
        let ran = match trace {
            LayerTrace::Tracked(ran) => ran,
            LayerTrace::Entered(input) => {
                self.run(index, backward.batch, &input, true, backward.goal.objective)?
            }
            LayerTrace::Frozen(routed) => {
                self.router_losses(index, routed.as_ref(), &backward.shares, losses)?;
                return Ok(());
            }
        };
        let of_routers =
            self.router_losses(index, ran.routed.as_ref(), &backward.shares, losses)?;
        let per_batch = backward.goal.weight.per_batch;
        let weighted = of_routers.map(|losses| losses.weighted * per_batch).transpose();
        let weighted = weighted.context(|| "the losses of a router".into())?;
        backward.arriving = self.back(index, &ran, &backward.arriving, weighted, gradients)?;
        Ok(())
    }

    /// Returns the last hidden states, and what the backward pass needs of each layer. Adds routing
    /// counts to `losses`.
    fn forward(
        &self,
        batch: &Batch,
        objective: &Objective,
        losses: &mut Losses,
    ) -> Result<(Tensor, Vec<LayerTrace>)> {
        let first = self.parameters.first();
        let mut hidden = self.embedded(batch, false)?;
        let mut traces = Vec::with_capacity(self.model.layers.len());
        for index in 0..self.model.layers.len() {
            let trains = ParameterSlot::Layer(index) >= first;
            let ran = self.run(index, batch, &hidden, trains && self.keep_graphs, objective)?;
            let routing = ran.routed.as_ref().map(|(_, routing)| routing);
            losses.load.extend(
                routing.map(|routing| LayerCounts::new(index, routing, objective.capacity())),
            );
            hidden = ran.output.detach();
            traces.push(match (trains, self.keep_graphs) {
                (true, true) => LayerTrace::Tracked(ran),
                (true, false) => LayerTrace::Entered(ran.input),
                (false, _) => LayerTrace::Frozen(ran.routed),
            });
        }
        Ok((hidden, traces))
    }

    /// Computes the gradient of layer `index`'s input from that of its output, `arriving`, and from
    /// its router's loss.
    fn back(
        &self,
        index: usize,
        ran: &LayerGraph,
        arriving: &Tensor,
        of_router: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let back = || -> candle_core::Result<Tensor> {
            let mut sum = (ran.output.to_dtype(DType::F32)? * arriving)?.sum_all()?;
            if let Some(of_router) = of_router {
                sum = (sum + of_router)?;
            }
            let found = sum.backward()?;
            self.collect(ParameterSlot::Layer(index), &found, gradients)?;
            found
                .get(&ran.input)
                .map_or_else(|| arriving.zeros_like(), |gradient| gradient.to_dtype(DType::F32))
        };
        back().context(|| format!("the gradients of layer {index}"))
    }

    fn back_to_embedding(
        &self,
        embedded: &Tensor,
        arriving: &Tensor,
        gradients: &mut Gradients,
    ) -> candle_core::Result<()> {
        let found = (embedded.to_dtype(DType::F32)? * arriving)?.sum_all()?.backward()?;
        self.collect(ParameterSlot::Embedding, &found, gradients)
    }

    fn embedded(&self, batch: &Batch, tracked: bool) -> Result<Tensor> {
        let shared =
            Shared::with_overrides(self.parameters.lend(ParameterSlot::Embedding, tracked)?);
        let embedded =
            embed_with(Loader::sharing(self.compute, &shared), &self.model.embed, &batch.ids)?;
        finite::check(&embedded, "the embeddings of these tokens", [&self.model.embed])?;
        Ok(embedded)
    }

    fn run(
        &self,
        index: usize,
        batch: &Batch,
        x: &Tensor,
        tracked: bool,
        objective: &Objective,
    ) -> Result<LayerGraph> {
        let shared =
            Shared::with_overrides(self.parameters.lend(ParameterSlot::Layer(index), tracked)?);
        let input = if tracked { variable(x)? } else { x.clone() };
        let mut sweep = Sweep::without_states(self.model, batch, self.compute)?;
        sweep.share(&shared);
        sweep.enter(input.clone())?;
        sweep.limit(objective.capacity());
        let mut watch = RouterWatch::default();
        sweep.layer(index, &mut watch)?;
        Ok(LayerGraph { input, output: sweep.hidden(0..batch.tokens())?, routed: watch.routed })
    }

    fn router_losses(
        &self,
        index: usize,
        routed: Option<&(Tensor, Routing)>,
        shares: &Shares<'_>,
        losses: &mut Losses,
    ) -> Result<Option<RouterLosses>> {
        let (Ffn::Moe(moe), Some((logits, routing))) = (&self.model.layers[index].ffn, routed)
        else {
            return Ok(None);
        };
        let found = shares.losses(moe.router.scoring, logits, routing)?;
        losses.balance += found.balance;
        losses.z += found.z;
        Ok(Some(found))
    }

    /// Returns the gradient of the last layer's output, `[tokens, hidden]` in f32.
    fn head(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        goal: Goal<'_>,
        gradients: &mut Gradients,
        losses: &mut Losses,
    ) -> Result<Tensor> {
        let shared = Shared::with_overrides(self.parameters.lend(ParameterSlot::Head, true)?);
        let head = LmHead::load_with(self.model, Loader::sharing(self.compute, &shared))?;
        let rows = (LOGIT_BYTES / 4 / head.vocab()).max(1);
        let tokens = batch.tokens();
        let targets = next_tokens(batch);
        let mut parts = Vec::new();
        for start in (0..tokens).step_by(rows) {
            let range = start..(start + rows).min(tokens);
            let part = hidden.narrow(0, start, range.len()).context(|| "hidden states".into())?;
            let input = variable(&part)?;
            let logits = head.logits(&input)?;
            let arriving = self.of_logits(&logits, &targets, range, goal, losses)?;
            let back = self.back_through_head(&input, logits, arriving, gradients);
            parts.push(back.context(|| "the gradients of the head".into())?);
        }
        losses.divide(tokens, targets.iter().flatten().count());
        Tensor::cat(&parts, 0).context(|| "the gradients of the head".into())
    }

    /// Computes the gradient of the last hidden states from that of the logits.
    fn back_through_head(
        &self,
        input: &Tensor,
        logits: Tensor,
        arriving: Tensor,
        gradients: &mut Gradients,
    ) -> candle_core::Result<Tensor> {
        let found = (logits * arriving)?.sum_all()?.backward()?;
        self.collect(ParameterSlot::Head, &found, gradients)?;
        found
            .get(input)
            .map_or_else(|| input.zeros_like(), |gradient| gradient.to_dtype(DType::F32))
    }

    /// Returns the gradient of the weighted losses by the logits of the tokens `range`, and adds up
    /// the losses.
    fn of_logits(
        &self,
        logits: &Tensor,
        targets: &[Option<u32>],
        range: Range<usize>,
        goal: Goal<'_>,
        losses: &mut Losses,
    ) -> Result<Tensor> {
        let Goal { objective, teacher, weight } = goal;
        let hard = cross_entropy(logits, &targets[range.clone()]).context(loss_label)?;
        losses.cross_entropy += hard.sum;
        let gradient = (hard.gradient * (objective.cross_entropy * weight.per_prediction))
            .context(loss_label)?;
        let Some(teacher) = teacher else { return Ok(gradient) };
        let soft = divergence(logits, &teacher.rows(range)?).context(loss_label)?;
        losses.teacher += soft.sum;
        let soft = soft.gradient * (objective.teacher * weight.per_token);
        soft.and_then(|soft| gradient + soft).context(loss_label)
    }

    fn collect(
        &self,
        place: ParameterSlot,
        found: &candle_core::backprop::GradStore,
        gradients: &mut Gradients,
    ) -> candle_core::Result<()> {
        for (index, parameter) in self.parameters.of(place) {
            if let Some(gradient) = found.get(&parameter.value) {
                gradients.add(index, gradient)?;
            }
        }
        Ok(())
    }
}

fn variable(x: &Tensor) -> Result<Tensor> {
    Var::from_tensor(x).map(Var::into_inner).context(|| "hidden states".into())
}

/// Returns the token after each one in its sequence; None for the last.
fn next_tokens(batch: &Batch) -> Vec<Option<u32>> {
    let next =
        |span: &Range<usize>, token: usize| (token + 1 < span.end).then(|| batch.ids[token + 1]);
    batch.spans.iter().flat_map(|span| span.clone().map(move |token| next(span, token))).collect()
}

/// Returns the mean of a value over `batches`, each with its weight.
fn mean(batches: &[Losses], weight: fn(&Losses) -> f64, value: fn(&Losses) -> f64) -> f64 {
    let total: f64 = batches.iter().map(weight).sum();
    batches.iter().map(|batch| weight(batch) * value(batch)).sum::<f64>() / total.max(1.0)
}

fn loss_label() -> String {
    "the loss".to_owned()
}
