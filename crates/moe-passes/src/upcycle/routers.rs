//! Routers, drawn at random or made from the network's inputs on text.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, IndexOp, Tensor};
use moe_forward::{Observer, Prompts, embed};
use moe_math::kmeans::{ClusterError, KmeansOptions, Metric, kmeans};
use moe_math::temperature::scale_to_entropy;
use moe_math::{Compute, sampling};
use moe_model::{Error, Kind, Model, Result, Router, Weight};

use super::record::{Clusters, SurveyedRouter, note};
use super::streams::stream;
use super::{RouterInit, UpcycleOptions};
use crate::part::{RowSelection, Surveyed, rows};
use crate::pass::{LayerRecord, Survey, SurveyText, Surveyor, TextSource};
use crate::usage::usage;

/// The maximum number of k-means iterations; assignments hardly change after a few dozen.
const MAX_ITERATIONS: usize = 100;

/// Makes the routers of all layers.
pub(super) struct Routers<'a> {
    options: &'a UpcycleOptions,
    model: &'a Model,
    compute: &'a Compute,
    surveyed: BTreeMap<usize, Surveyed>,
}

impl<'a> Routers<'a> {
    pub fn new(options: &'a UpcycleOptions, model: &'a Model, compute: &'a Compute) -> Self {
        Self { options, model, compute, surveyed: BTreeMap::new() }
    }

    /// The router of layer `index`, in the encoding of `like`.
    pub fn layer(&mut self, index: usize, normalize: bool, like: &Weight) -> Result<Router> {
        let options = self.options;
        let (std, seed, stream, hidden) =
            (options.router_std(), options.seed, stream(index), self.model.hidden);
        let source = match options.router {
            RouterInit::Normal | RouterInit::Zeros => RowSelection::Normal { std, seed, stream },
            RouterInit::Orthogonal => {
                RowSelection::Orthogonal { gain: std * (hidden as f64).sqrt(), seed, stream }
            }
            _ => RowSelection::Surveyed(self.cell(index)),
        };
        let shape = [options.experts, hidden];
        let weight =
            rows(format!("layer {index} router"), source, shape, options.granularity, like)?;
        Ok(Router::softmax(weight, options.top_k, normalize))
    }

    /// The cell that the surveyed rows of layer `index` are put into.
    pub fn cell(&mut self, index: usize) -> Surveyed {
        self.surveyed.entry(index).or_insert_with(|| Arc::new(OnceLock::new())).clone()
    }

    /// The sweep that fills in the cells; None where another survey does, or where none is needed.
    pub fn surveys(self) -> Option<Survey> {
        let text = match (self.options.router, &self.options.prompts) {
            (RouterInit::Kmeans, _) => data_source(self.options),
            (RouterInit::Prompts | RouterInit::CheapEmbed, Some(path)) => {
                TextSource::Prompts { path: path.clone(), sets: self.options.router_rows() }
            }
            _ => return None,
        };
        let surveyor = RouterSurvey {
            options: self.options.clone(),
            embed: self.model.embed.clone(),
            compute: self.compute.clone(),
            cells: self.surveyed,
            prompts: Prompts::default(),
            embedded: None,
            found: BTreeMap::new(),
        };
        Some(Survey { text, surveyor: Box::new(surveyor) })
    }
}

/// The text of --data.
pub(super) fn data_source(options: &UpcycleOptions) -> TextSource {
    TextSource::Data {
        specs: options.data.clone(),
        sequence_length: options.sequence_length,
        max_tokens: options.data_tokens,
    }
}

/// Makes router rows from the inputs of each layer's feed-forward network.
struct RouterSurvey {
    options: UpcycleOptions,
    embed: Weight,
    compute: Compute,
    cells: BTreeMap<usize, Surveyed>,
    prompts: Prompts,
    /// Rows made from token embeddings, which are the same in every layer.
    embedded: Option<Tensor>,
    found: BTreeMap<usize, SurveyedRouter>,
}

impl Surveyor for RouterSurvey {
    fn begin(&mut self, text: &SurveyText) -> Result<()> {
        if let SurveyText::Prompts(prompts) = text {
            self.prompts = prompts.clone();
        }
        if self.options.router == RouterInit::CheapEmbed {
            let states = embed(&self.embed, &text.batch().ids, &self.compute)?;
            let rows = states.to_dtype(DType::F32).and_then(|states| self.embedding_rows(&states));
            self.embedded = Some(rows.map_err(|e| failed("embeddings of prompts", e))?);
        }
        Ok(())
    }

    fn working_bytes(&self, model: &Model, tokens: usize) -> u64 {
        let hidden = model.hidden;
        let rows = self.options.router_rows();
        let of_token = match self.options.router {
            // Own directions, which k-means centers and scales in further copies; distances and
            // costs.
            RouterInit::Kmeans => 3 * hidden + 3 * rows + 8,
            // States by prompt, the same joined, and the same without their mean.
            _ => 4 * hidden + 3 * rows,
        };
        4 * (tokens * of_token) as u64
    }

    fn record(&self, layers: &mut [LayerRecord]) {
        for (index, found) in &self.found {
            note(layers, *index, |details| details.router = Some(found.clone()));
        }
    }
}

impl Observer for RouterSurvey {
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let Some(cell) = self.cells.get(&layer).cloned() else { return Ok(()) };
        let x = x.to_dtype(DType::F32).map_err(|e| router_failed(layer, e))?;
        let (rows, clusters) = match (self.options.router, &self.embedded) {
            (RouterInit::Kmeans, _) => {
                let (rows, clusters) = self.centroids(layer, &x)?;
                (rows, Some(clusters))
            }
            (RouterInit::CheapEmbed, Some(rows)) => (rows.clone(), None),
            _ => (self.prompt_rows(&x).map_err(|e| router_failed(layer, e))?, None),
        };
        let words = match self.options.router {
            RouterInit::Kmeans => Ok(x),
            _ => self.by_prompt(&x, self.prompts.skip).and_then(|prompts| Tensor::cat(&prompts, 0)),
        };
        let words = words.map_err(|e| router_failed(layer, e))?;
        let (rows, scaled) = scaled_rows(&rows, &words, self.options.router_entropy, layer)?;
        self.found.insert(layer, SurveyedRouter { clusters, ..scaled });
        let _ = cell.set(rows);
        Ok(())
    }
}

impl RouterSurvey {
    /// A row for each set of prompts: `summary` of its positive prompts minus `summary` of its
    /// negative ones. `prompts` holds the states of each prompt's tokens.
    fn rows_of_sets(
        &self,
        prompts: &[Tensor],
        summary: impl Fn(&[&Tensor]) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let rows = (0..self.options.router_rows()).map(|set| {
            let positive = self.prompts_of(prompts, (set, true));
            match self.prompts_of(prompts, (set, false)).as_slice() {
                [] => summary(&positive),
                negative => summary(&positive)? - summary(negative)?,
            }
        });
        Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    /// Those of `prompts` that are of the kind `wanted`: its set, and whether it is positive.
    fn prompts_of<'t>(&self, prompts: &'t [Tensor], wanted: (usize, bool)) -> Vec<&'t Tensor> {
        let kinds = prompts.iter().zip(&self.prompts.kinds);
        kinds.filter(|(_, kind)| **kind == wanted).map(|(states, _)| states).collect()
    }

    /// `states`, `[tokens, hidden]`, split by prompt, each without its first `skip` tokens.
    fn by_prompt(&self, states: &Tensor, skip: usize) -> candle_core::Result<Vec<Tensor>> {
        self.prompts.batch.spans.iter().map(|span| states.i(span.start + skip..span.end)).collect()
    }

    /// The mean over prompts of the mean of `states` over their tokens without BOS. Where rows are
    /// scaled, only own directions of states count, as in [`Self::centroids`].
    fn prompt_rows(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        let mut prompts = self.by_prompt(states, self.prompts.skip)?;
        if self.options.router_entropy != 0.0 {
            let direction = Direction::of_mean(&Tensor::cat(&prompts, 0)?)?;
            prompts = prompts
                .iter()
                .map(|states| direction.removed(states))
                .collect::<candle_core::Result<_>>()?;
        }
        self.rows_of_sets(&prompts, |prompts| {
            let means = prompts.iter().map(|states| states.mean_keepdim(0));
            Tensor::cat(&means.collect::<candle_core::Result<Vec<_>>>()?, 0)?.mean_keepdim(0)
        })
    }

    /// mergekit's `cheap_embed`: unit vectors along the sum of all tokens' embeddings, positive
    /// minus negative, and then the unit vector of the difference.
    fn embedding_rows(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        let rows = self.rows_of_sets(&self.by_prompt(embeddings, 0)?, |prompts| {
            let sums = prompts.iter().map(|states| states.sum_keepdim(0));
            unit_rows(
                &Tensor::cat(&sums.collect::<candle_core::Result<Vec<_>>>()?, 0)?.sum_keepdim(0)?,
            )
        })?;
        unit_rows(&rows)
    }

    /// Unit centroids `[rows, hidden]` of the own directions of the inputs `x`.
    ///
    /// Inputs share a large mean μ. A row's component along μ would only favor its expert on every
    /// token. So μ is subtracted from the inputs, they are projected on the space orthogonal to it,
    /// and they are clustered by angle. The centroids lie in that space, and a row's logit on x is
    /// its product with the projection of x. So a token goes first to the expert of its cluster.
    fn centroids(&self, layer: usize, x: &Tensor) -> Result<(Tensor, Clusters)> {
        check_inputs(layer, x)?;
        let own = own_directions(x).map_err(|e| failed("FFN inputs", e))?;
        let mut random = sampling::generator(self.options.seed, stream(layer));
        let options = KmeansOptions { metric: Metric::Cosine, max_iterations: MAX_ITERATIONS };
        let clusters =
            kmeans(&own, self.options.router_rows(), &options, &mut random).map_err(|e| {
                let what = format!("k-means of the FFN inputs of layer {layer}: {e}");
                match e {
                    ClusterError::NotFinite { .. } | ClusterError::NoDirection { .. } => {
                        Error::new(Kind::Numeric, what).remedy(NO_ROUTER)
                    }
                    _ => usage(
                        &["--data", "--data-tokens"],
                        what,
                        "give more --data, or raise --data-tokens",
                    ),
                }
            })?;
        let mut sizes = vec![0usize; self.options.router_rows()];
        clusters.assignment.iter().for_each(|cluster| sizes[*cluster as usize] += 1);
        // For unit vectors, 1 − inertia / 2n is their mean cosine with their centroid.
        let mean_cosine = 1.0 - clusters.inertia / (2.0 * clusters.assignment.len() as f64);
        let said = Clusters { iterations: clusters.iterations, mean_cosine, sizes };
        Ok((clusters.centroids, said))
    }
}

/// The mean μ of states; removing it leaves their own directions.
struct Direction {
    mean: Tensor,
    /// μ/|μ|; None where μ is zero.
    unit: Option<Tensor>,
}

impl Direction {
    /// The mean of the rows of `x`, `[tokens, hidden]`.
    fn of_mean(x: &Tensor) -> candle_core::Result<Self> {
        let mean = x.mean_keepdim(0)?;
        let length = mean.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        let unit = (length > 0.0).then(|| &mean / f64::from(length)).transpose()?;
        Ok(Self { mean, unit })
    }

    /// `x − μ` without its component along μ.
    fn removed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let centered = x.broadcast_sub(&self.mean)?;
        let Some(unit) = &self.unit else { return Ok(centered) };
        let along = centered.matmul(&unit.t()?)?;
        centered - along.matmul(unit)?
    }
}

/// The own direction of each row of `x`, `[tokens, hidden]`: the row minus the mean, without any
/// component along the mean.
pub(super) fn own_directions(x: &Tensor) -> candle_core::Result<Tensor> {
    Direction::of_mean(x)?.removed(x)
}

/// The remedy where rows of a router can't be made from text.
const NO_ROUTER: &str = "look for norms and projections of this layer, or those before it, that are far too large or zero; \
                         or give --router normal, which looks at no text";

/// Refuses inputs `x` of layer `layer` that no router can be made from, though they are finite.
pub(super) fn check_inputs(layer: usize, x: &Tensor) -> Result<()> {
    let squares = x
        .sqr()
        .and_then(|x| x.sum_all()?.to_scalar::<f32>())
        .map_err(|e| failed("FFN inputs", e))?;
    let what = match squares {
        // A norm turns states whose squares are infinite into zeros.
        0.0 => "is zero, as a norm makes it of states that are too large to be squared in f32",
        squares if squares.is_finite() => return Ok(()),
        _ => "is too large to be squared in f32",
    };
    let what = format!("what reaches the feed-forward network of layer {layer} {what}");
    Err(Error::new(Kind::Numeric, what).remedy(NO_ROUTER))
}

/// Unit rows times the scale at which the mean entropy of routing `x` is the share `entropy` of its
/// maximum; unchanged for `entropy` 0. Also what was found, for the receipt.
pub(super) fn scaled_rows(
    rows: &Tensor,
    x: &Tensor,
    entropy: f64,
    layer: usize,
) -> Result<(Vec<f32>, SurveyedRouter)> {
    let tokens = x.dim(0).map_err(|e| router_failed(layer, e))?;
    let found = SurveyedRouter { tokens, ..SurveyedRouter::default() };
    let count = rows.dim(0).map_err(|e| router_failed(layer, e))?;
    check_rows(rows, layer)?;
    if entropy == 0.0 || count == 1 {
        return Ok((values(rows).map_err(|e| router_failed(layer, e))?, found));
    }
    let unit = unit_rows(rows).map_err(|e| router_failed(layer, e))?;
    let logits = unit.t().and_then(|t| x.matmul(&t)).map_err(|e| router_failed(layer, e))?;
    let temperature = scale_to_entropy(&logits, entropy).map_err(|e| {
        let what = format!("cannot scale the router of layer {layer}: {e}");
        let remedy = "give text that differs more between experts, or raise --router-entropy";
        usage(&["--router-entropy", "--data", "--prompts"], what, remedy)
    })?;
    let rows = (unit * temperature.scale)
        .and_then(|rows| values(&rows))
        .map_err(|e| router_failed(layer, e))?;
    let row_length = Some(temperature.scale);
    let entropy_share = Some(temperature.entropy_fraction);
    Ok((rows, SurveyedRouter { row_length, entropy_share, ..found }))
}

fn values(rows: &Tensor) -> candle_core::Result<Vec<f32>> {
    rows.flatten_all()?.to_vec1()
}

/// Refuses rows of a router that are zero or not finite.
fn check_rows(rows: &Tensor, layer: usize) -> Result<()> {
    let lengths = rows.sqr().and_then(|r| r.sum(1)?.sqrt()?.to_vec1());
    let lengths: Vec<f32> = lengths.map_err(|e| router_failed(layer, e))?;
    let unsound = lengths.iter().position(|length| !(*length > 0.0 && length.is_finite()));
    let Some(row) = unsound else { return Ok(()) };
    let what = format!(
        "row {row} of the router of layer {layer} is zero: nothing tells this expert's text apart"
    );
    Err(usage(&["--prompts", "--data"], what, "give prompts, or data, that differ"))
}

fn unit_rows(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?)
}

fn router_failed(layer: usize, error: candle_core::Error) -> Error {
    failed(&format!("the router of layer {layer}"), error)
}

pub(super) fn failed(what: &str, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot compute {what}")).source(error)
}
