//! The trait of observers of a sweep, and what they are shown.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::routing::Routing;

/// Name of the stage of an observer's work, for timings.
pub(crate) const STATISTICS: &str = "statistics";

/// The events that an observer wants beyond routing; each makes the sweep slower.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Activations and outputs of every expert: [`Observer::expert_ran`].
    pub experts: bool,
    /// Outputs without each expert: [`Observer::left_out`].
    pub left_out: bool,
    /// Tokens of the batch, ascending, that all experts are run on: [`Observer::sampled_output`].
    pub sampled: Arc<[usize]>,
}

impl Wants {
    /// Returns the tokens of [`Wants::sampled`] that lie in `tokens`, as positions among these.
    pub fn sampled_in(&self, tokens: &Range<usize>) -> Vec<u32> {
        let from = self.sampled.partition_point(|token| *token < tokens.start);
        let within = self.sampled[from..].iter().take_while(|token| **token < tokens.end);
        within.map(|token| (token - tokens.start) as u32).collect()
    }
}

/// The run of an expert on some of its tokens. Rows count from the first token of the last
/// [`Observer::routed`].
pub struct ExpertRun<'a> {
    /// Index of the expert.
    pub expert: usize,
    /// The tokens, ascending.
    pub tokens: &'a [u32],
    /// The gate of each token.
    pub gates: &'a [f32],
    /// silu(gate x) ∘ (up x), `[tokens, width]`.
    pub activations: &'a Tensor,
    /// Outputs before gating, `[tokens, hidden]`.
    pub output: &'a Tensor,
}

/// The effect of leaving out each expert on its tokens' outputs, for each position of
/// `Routing::selected`.
#[derive(Debug, Clone)]
pub struct LeftOut<'a> {
    /// The routing with all experts.
    pub routing: &'a Routing,
    /// ‖y − y₋ⱼ‖²
    pub errors: Vec<f64>,
    /// 1 − cos(y, y₋ⱼ)
    pub cosines: Vec<f64>,
    /// ‖y‖² of each token.
    pub output_square_norms: Vec<f64>,
}

/// Watches a sweep, which no observer can change: it is shown what happens, and may end it with an
/// error.
///
/// A sweep calls an observer for each layer, in ascending order:
///
/// 1. For each block of tokens that the batch is run in, in their order: [`Observer::ffn_input`],
///    then [`Observer::wants`]. Where the layer has experts, once or more, for the block's tokens
///    in their order: [`Observer::routed`]; [`Observer::expert_ran`] for each expert that has
///    tokens, experts ascending, an expert with many tokens in several runs;
///    [`Observer::left_out`]; [`Observer::sampled_output`] for each expert. Of the last three,
///    those that are wanted. At last [`Observer::layer_output`], unless the layer is converted.
/// 2. After all blocks, in a sweep through all layers: [`Observer::layer_done`].
pub trait Observer {
    /// Returns the events wanted for the block of tokens that [`Observer::ffn_input`] was just
    /// called for.
    fn wants(&self) -> Wants {
        Wants::default()
    }

    /// The feed-forward block of `layer` is about to run on `x`, `[tokens, hidden]`, which is
    /// normalized already: the input of its router.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> Result<()> {
        let _ = (layer, x);
        Ok(())
    }

    /// Tokens were routed in `layer`: `logits` is `[tokens, experts]`.
    ///
    /// # Errors
    /// An error ends the sweep.
    fn routed(&mut self, layer: usize, logits: &Tensor, routing: &Routing) -> Result<()> {
        let _ = (layer, logits, routing);
        Ok(())
    }

    /// An expert ran on tokens of the last [`Observer::routed`].
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

    /// `expert` was run on all sampled `tokens` of the last [`Observer::routed`], as positions
    /// among these; `output` is `[tokens, hidden]`.
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

/// An observer that ignores all events.
pub struct Silent;

impl Observer for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_tokens_are_those_of_the_block() {
        let wants = Wants { sampled: Arc::from([0, 4, 8, 12]), ..Wants::default() };
        assert_eq!(wants.sampled_in(&(0..4)), [0]);
        assert_eq!(wants.sampled_in(&(4..9)), [0, 4]);
        assert_eq!(wants.sampled_in(&(5..8)), [0u32; 0]);
        assert_eq!(wants.sampled_in(&(9..40)), [3]);
    }
}
