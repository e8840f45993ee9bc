//! MergeMoE's down projection (2510.14436), fitted to the joint output of a group's experts.

use candle_core::{DType, Tensor};
use moe_forward::{LoadedRouter, expert_output, neuron_activations};
use moe_math::Compute;
use moe_math::least_squares::LeastSquares;
use moe_math::routing::Routing;
use moe_model::{Error, Expert, Kind, Model, Result, Weight};

use crate::merged::held;
use crate::reduce::LayerView;

/// The number of tokens whose activations are held in f64 at a time.
const TOKEN_BLOCK: usize = 8192;

/// Fits down projections in one layer.
pub(super) struct Fit<'a> {
    layer: &'a LayerView<'a>,
    /// The routing of each part of the inputs.
    routings: Vec<Routing>,
    compute: Compute,
}

impl<'a> Fit<'a> {
    pub fn new(layer: &'a LayerView<'a>) -> Result<Self> {
        let router = LoadedRouter::load(&layer.moe.router, layer.compute)?;
        let route =
            |x: &Tensor| router.route(x).map(|(_, routing)| routing).map_err(|e| failed(layer, e));
        let routings = layer.inputs.iter().map(route).collect::<Result<_>>()?;
        // Metal has no f64.
        let device = if layer.compute.device.is_metal() {
            candle_core::Device::Cpu
        } else {
            layer.compute.device.clone()
        };
        Ok(Self {
            layer,
            routings,
            compute: Compute { device, dtype: DType::F64, ..layer.compute.clone() },
        })
    }

    /// The down' with the least Σ ‖Σ_j w_j f_j(x) − down' φ'(x)‖² over the tokens that chose any of
    /// `group`, where φ' are the activations of `merged`'s gate and up as they are written; None
    /// where no token did.
    ///
    /// The matrix is held in memory: without the tokens it can't be made again.
    pub fn down(
        &self,
        group: &[usize],
        coefficients: &[f64],
        merged: &Expert,
    ) -> Result<Option<Weight>> {
        let shape = merged.down.weight.shape();
        let mut squares =
            LeastSquares::new(shape[1], shape[0]).map_err(|e| failed(self.layer, e))?;
        let mut tokens = 0;
        for (x, routing) in self.layer.inputs.iter().zip(&self.routings) {
            let chosen = tokens_of(routing, group);
            tokens += chosen.len();
            for rows in chosen.chunks(TOKEN_BLOCK) {
                let x = self.rows(x, rows).map_err(|e| failed(self.layer, e))?;
                let p = neuron_activations(merged, &x, &self.compute)?;
                let y = self.together(group, coefficients, &x)?;
                squares.add(&p, &y).map_err(|e| failed(self.layer, e))?;
            }
        }
        if tokens == 0 {
            return Ok(None);
        }
        let solved = squares.solve().map_err(|e| failed(self.layer, e))?;
        held(&solved, &merged.down.weight).map(Some)
    }

    fn rows(&self, x: &Tensor, rows: &[u32]) -> candle_core::Result<Tensor> {
        let x = x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)?;
        x.to_device(&self.compute.device)?.to_dtype(DType::F64)
    }

    /// Σ_j w_j f_j(x)
    fn together(&self, group: &[usize], coefficients: &[f64], x: &Tensor) -> Result<Tensor> {
        let mut sum = x.zeros_like().map_err(|e| failed(self.layer, e))?;
        for (expert, coefficient) in group.iter().zip(coefficients) {
            let output = expert_output(&self.layer.moe.experts[*expert], x, &self.compute)?;
            sum = (output * *coefficient)
                .and_then(|output| sum + output)
                .map_err(|e| failed(self.layer, e))?;
        }
        Ok(sum)
    }
}

/// The maximum number of bytes that fitting a layer of `experts` experts holds in addition to the
/// inputs of
/// `tokens` tokens.
pub(super) fn working_bytes(model: &Model, experts: usize, tokens: usize) -> u64 {
    let layers = model.moes().map(|(_, moe)| {
        let width = moe.experts.iter().map(Expert::width).max().unwrap_or(0);
        // In f64: inputs, activations and outputs of a block, with products that are added to the
        // sums of the least squares; afterwards the eigenvectors of these and copies.
        let block = tokens.min(TOKEN_BLOCK) * (2 * model.hidden + 3 * width);
        let square = width.pow(2);
        let matrices = 4 * width * model.hidden + (block + 3 * square).max(5 * square);
        // Scores of all experts, and the choice of each token.
        let routing = tokens * (4 * experts + 8 * moe.router.top_k);
        (8 * matrices + routing) as u64
    });
    layers.max().unwrap_or(0)
}

/// The tokens that chose any of `group`, ascending.
fn tokens_of(routing: &Routing, group: &[usize]) -> Vec<u32> {
    let choices = routing.selected.chunks_exact(routing.top_k).enumerate();
    let tokens = choices.filter_map(|(token, choice)| {
        choice.iter().any(|expert| group.contains(&(*expert as usize))).then_some(token as u32)
    });
    tokens.collect()
}

fn failed(layer: &LayerView<'_>, error: candle_core::Error) -> Error {
    Error::new(Kind::Numeric, format!("cannot fit the merged experts of layer {}", layer.index))
        .source(error)
}
