//! What every pass has: a name, options, and a plan that is fixed before the first byte is written.

use moe_model::{Model, Result};
use serde::Serialize;

/// A conversion pass; its options are its fields.
pub trait Pass: Serialize {
    /// The word for it on the command line, in recipes and in receipts.
    const NAME: &'static str;

    /// Validates the options against `model` and says what will be done.
    ///
    /// # Errors
    /// [`moe_model::Kind::Usage`] for options that cannot work, [`moe_model::Kind::Unsupported`] for a
    /// model that this pass can't take. No weight has been read then.
    fn plan(&self, model: &Model) -> Result<Plan>;
}

/// What a pass will do: the converted model, whose weights are made when they are written, and the record.
#[derive(Debug)]
pub struct Plan {
    /// The converted model.
    pub model: Model,
    /// Whether it computes the same function as the model it is made from.
    pub identity: Identity,
    /// How each changed layer is made.
    pub layers: Vec<LayerRecord>,
    /// What the user should know before it runs.
    pub warnings: Vec<String>,
}

/// Whether a converted model computes the function of its original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Identity {
    /// It does, up to the rounding of the computation: every stored weight is exact.
    Exact,
    /// It does, up to what is named here.
    Approximate {
        /// Why it isn't exact.
        reason: String,
    },
    /// It doesn't, by design.
    Changed {
        /// What changes it.
        reason: String,
    },
}

/// How one layer was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerRecord {
    /// The layer's index.
    pub layer: usize,
    /// How the router was made.
    pub router: String,
    /// How each expert was made, in order.
    pub experts: Vec<String>,
    /// How the shared expert was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
}
