//! Who watches a sweep.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::routing::Routing;

use crate::left_out::LeftOut;

/// What an observer wants to see beyond routing; more costs more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// Every expert's neurons and outputs: [`Observer::expert_ran`].
    pub experts: bool,
    /// Outputs without each expert in turn: [`Observer::left_out`].
    pub left_out: bool,
}

/// An expert on some of its tokens. Rows count from the first token of the last
/// [`Observer::routed`].
pub struct ExpertRun<'a> {
    /// Its index.
    pub expert: usize,
    /// The tokens, ascending.
    pub tokens: &'a [u32],
    /// The gate that is applied to each.
    pub gates: &'a [f32],
    /// silu(gate x) ∘ (up x), `[tokens, width]`.
    pub activations: &'a Tensor,
    /// `[tokens, hidden]`, before the gate.
    pub output: &'a Tensor,
}

/// Watches a sweep.
pub trait Observer {
    /// What it wants to see.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// An expert ran. Called for the tokens of the last [`Observer::routed`], experts ascending.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn expert_ran(&mut self, layer: usize, run: &ExpertRun<'_>) -> Result<()> {
        let _ = (layer, run);
        Ok(())
    }

    /// Each expert was left out where it was selected, for the tokens of the last
    /// [`Observer::routed`].
    ///
    /// # Errors
    /// An error ends the sweep.
    fn left_out(&mut self, layer: usize, found: &LeftOut<'_>) -> Result<()> {
        let _ = (layer, found);
        Ok(())
    }

    /// Those tokens of the last [`Observer::routed`] that all experts shall be run on.
    fn sampled(&mut self, layer: usize) -> Vec<u32> {
        let _ = layer;
        Vec::new()
    }

    /// `expert` was run on all sampled `tokens`; `output` is `[tokens, hidden]`.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn sampled_output(
        &mut self,
        layer: usize,
        expert: usize,
        tokens: &[u32],
        output: &Tensor,
    ) -> Result<()> {
        let _ = (layer, expert, tokens, output);
        Ok(())
    }

    /// The feed-forward block of `layer` is about to run on `x`, `[tokens, hidden]`, already
    /// normalised: what its router sees. Called once for a layer.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let _ = (layer, x);
        Ok(())
    }

    /// Most tokens that one of `layer`'s experts takes of those of the last [`Observer::routed`];
    /// further ones go without it, as in Switch (2101.03961 §2.2). `None` for all.
    fn capacity(&self, layer: usize, routing: &Routing) -> Option<usize> {
        let _ = (layer, routing);
        None
    }

    /// Tokens were routed in `layer`: `logits` is `[tokens, experts]`. Called once or more for a
    /// layer, in token order.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        let _ = (layer, logits, routing);
        Ok(())
    }

    /// Tokens leave `layer` as `hidden`, `[tokens, hidden]`: those of the last
    /// [`Observer::ffn_input`].
    ///
    /// # Errors
    /// An error ends the sweep.
    fn layer_output(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        let _ = (layer, hidden);
        Ok(())
    }

    /// `layer` of `layers` is done.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn layer_done(&mut self, layer: usize, layers: usize) -> Result<()> {
        let _ = (layer, layers);
        Ok(())
    }
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {}
