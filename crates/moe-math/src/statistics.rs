//! Sums over calibration tokens, by which experts are pruned and merged and samples for merging are
//! planned.
//!
//! Everything here can be added, over batches, files and machines. Sums and counts are f64; a few
//! quantities are maxima.

use serde::{Deserialize, Serialize};

/// Sizes of one layer's mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MixtureSizes {
    /// Routed experts.
    pub experts: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Neurons of an expert.
    pub width: usize,
}

/// A quantity that is summed in a layer. X is the tokens routed to an expert, g the applied gate, f
/// the expert's output, φ = silu(gate x) ∘ (up x) its neurons, z the router's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Number of all tokens seen.
    SeenTokens,
    /// |X|
    Tokens,
    /// Σ g over X
    Gates,
    /// Σ g ‖f‖₂ over X
    GatedNorms,
    /// Σ ‖f‖₂ over X
    Norms,
    /// Σ ‖f‖₂² over X
    SquareNorms,
    /// max |f| over X and components
    Largest,
    /// Σ of the router's scores (softmax or σ) over all tokens
    Probabilities,
    /// Σ g f over X
    GatedOutputs,
    /// Σ φ over X
    Activations,
    /// Σ (g φ)² over X
    GatedSquareActivations,
    /// max |g φ| over X
    LargestGatedActivations,
    /// Σ z over all tokens
    Logits,
    /// Σ zᵢ zⱼ over all tokens
    LogitProducts,
    /// Σ ‖y − y₋ⱼ‖² over X: y is the block's output, y₋ⱼ the output without expert j, whose tokens
    /// are rerouted
    LeftOutErrors,
    /// Σ (1 − cos(y, y₋ⱼ)) over X
    LeftOutCosines,
    /// Σ ‖y‖² over all tokens
    OutputSquareNorms,
    /// Number of tokens that all experts were run on
    SampledTokens,
    /// Σ f over those tokens
    SampledOutputs,
}

/// How two values of a quantity are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// Their sum.
    Sum,
    /// The greater one.
    Max,
}

impl Quantity {
    /// All quantities, in the order of files.
    pub const ALL: [Self; 19] = [
        Self::SeenTokens,
        Self::Tokens,
        Self::Gates,
        Self::GatedNorms,
        Self::Norms,
        Self::SquareNorms,
        Self::Largest,
        Self::Probabilities,
        Self::GatedOutputs,
        Self::Activations,
        Self::GatedSquareActivations,
        Self::LargestGatedActivations,
        Self::Logits,
        Self::LogitProducts,
        Self::LeftOutErrors,
        Self::LeftOutCosines,
        Self::OutputSquareNorms,
        Self::SampledTokens,
        Self::SampledOutputs,
    ];

    /// Whether the quantity counts tokens or adds values that are never negative. Cosines are left
    /// out, since rounding can make them negative.
    pub fn is_never_negative(self) -> bool {
        matches!(
            self,
            Self::SeenTokens
                | Self::Tokens
                | Self::GatedNorms
                | Self::Norms
                | Self::SquareNorms
                | Self::Largest
                | Self::Probabilities
                | Self::GatedSquareActivations
                | Self::LargestGatedActivations
                | Self::LeftOutErrors
                | Self::OutputSquareNorms
                | Self::SampledTokens
        )
    }

    /// The quantity's name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::SeenTokens => "seen_tokens",
            Self::Tokens => "tokens",
            Self::Gates => "gates",
            Self::GatedNorms => "gated_norms",
            Self::Norms => "norms",
            Self::SquareNorms => "square_norms",
            Self::Largest => "largest",
            Self::Probabilities => "probabilities",
            Self::GatedOutputs => "gated_outputs",
            Self::Activations => "activations",
            Self::GatedSquareActivations => "gated_square_activations",
            Self::LargestGatedActivations => "largest_gated_activations",
            Self::Logits => "logits",
            Self::LogitProducts => "logit_products",
            Self::LeftOutErrors => "left_out_errors",
            Self::LeftOutCosines => "left_out_cosines",
            Self::OutputSquareNorms => "output_square_norms",
            Self::SampledTokens => "sampled_tokens",
            Self::SampledOutputs => "sampled_outputs",
        }
    }

    /// The quantity's shape in a layer of these `sizes`.
    pub fn shape(self, sizes: MixtureSizes) -> Vec<usize> {
        let MixtureSizes { experts, hidden, width } = sizes;
        match self {
            Self::SeenTokens | Self::OutputSquareNorms | Self::SampledTokens => vec![],
            Self::GatedOutputs | Self::SampledOutputs => vec![experts, hidden],
            Self::Activations | Self::GatedSquareActivations | Self::LargestGatedActivations => {
                vec![experts, width]
            }
            Self::LogitProducts => vec![experts, experts],
            _ => vec![experts],
        }
    }

    /// How two values of the quantity are combined.
    pub fn combine(self) -> Combine {
        match self {
            Self::Largest | Self::LargestGatedActivations => Combine::Max,
            _ => Combine::Sum,
        }
    }
}

/// All sums of one layer over one group of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibrationSums {
    sizes: MixtureSizes,
    values: Vec<Vec<f64>>,
}

impl CalibrationSums {
    /// Starts without tokens.
    pub fn new(sizes: MixtureSizes) -> Self {
        let zeros = Quantity::ALL.map(|q| vec![0.0; q.shape(sizes).iter().product()]);
        Self { sizes, values: zeros.to_vec() }
    }

    /// The layer's sizes.
    pub fn sizes(&self) -> MixtureSizes {
        self.sizes
    }

    /// The values of a quantity, flat in the order of its shape.
    pub fn get(&self, quantity: Quantity) -> &[f64] {
        &self.values[quantity as usize]
    }

    /// Like `get`, mutable.
    pub fn get_mut(&mut self, quantity: Quantity) -> &mut [f64] {
        &mut self.values[quantity as usize]
    }

    /// The value of a quantity that is a single number.
    pub fn scalar(&self, quantity: Quantity) -> f64 {
        self.get(quantity)[0]
    }

    /// The values of `expert`, for a quantity whose first dimension is experts.
    pub fn of(&self, quantity: Quantity, expert: usize) -> &[f64] {
        let each = self.get(quantity).len() / self.sizes.experts;
        &self.get(quantity)[expert * each..][..each]
    }

    /// Like `of`, mutable.
    pub fn of_mut(&mut self, quantity: Quantity, expert: usize) -> &mut [f64] {
        let each = self.get(quantity).len() / self.sizes.experts;
        &mut self.get_mut(quantity)[expert * each..][..each]
    }

    /// Adds the tokens of `other`, each counted `weight` times; maxima ignore the weight.
    ///
    /// # Panics
    /// If the two layers have different sizes.
    pub fn add(&mut self, other: &Self, weight: f64) {
        assert_eq!(self.sizes, other.sizes, "statistics of another layer");
        for quantity in Quantity::ALL {
            let pairs = self.values[quantity as usize].iter_mut().zip(other.get(quantity));
            match quantity.combine() {
                Combine::Sum => pairs.for_each(|(sum, value)| *sum += weight * value),
                Combine::Max => pairs.for_each(|(most, value)| *most = most.max(*value)),
            }
        }
    }

    /// Adds all of `groups`, each with its weight.
    ///
    /// # Panics
    /// If there are no groups, or their sizes differ.
    pub fn pooled<'a>(groups: impl IntoIterator<Item = (&'a Self, f64)>) -> Self {
        let mut groups = groups.into_iter().peekable();
        let mut pooled = Self::new(groups.peek().expect("at least one group").0.sizes);
        groups.for_each(|(sums, weight)| pooled.add(sums, weight));
        pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: MixtureSizes = MixtureSizes { experts: 3, hidden: 4, width: 5 };

    #[test]
    fn quantities_have_distinct_names_and_are_at_their_index() {
        let mut names: Vec<_> = Quantity::ALL.iter().map(|q| q.name()).collect();
        for (index, quantity) in Quantity::ALL.into_iter().enumerate() {
            assert_eq!(quantity as usize, index, "{}", quantity.name());
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Quantity::ALL.len());
    }

    #[test]
    fn sums_add_up_and_maxima_stay() {
        let mut a = CalibrationSums::new(SIZES);
        a.of_mut(Quantity::GatedOutputs, 1).fill(2.0);
        a.of_mut(Quantity::Largest, 2).fill(7.0);
        let mut b = CalibrationSums::new(SIZES);
        b.of_mut(Quantity::GatedOutputs, 1).fill(3.0);
        b.of_mut(Quantity::Largest, 2).fill(5.0);
        let pooled = CalibrationSums::pooled([(&a, 1.0), (&b, 2.0)]);
        assert_eq!(pooled.of(Quantity::GatedOutputs, 1), [8.0; 4]);
        assert_eq!(pooled.of(Quantity::GatedOutputs, 0), [0.0; 4]);
        assert_eq!(pooled.get(Quantity::Largest), [0.0, 0.0, 7.0]);
    }
}
