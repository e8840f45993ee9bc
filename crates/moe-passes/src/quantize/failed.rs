//! Errors for matrices that can't be quantized.

use moe_math::quantize::QuantizeError;
use moe_model::{Error, Kind};

/// The error where `what` of layer `layer` has a Hessian that can't be factored.
pub(super) fn unsolved(layer: usize, what: &str, error: QuantizeError) -> Error {
    let remedy = match error {
        QuantizeError::Singular { .. } => {
            "give more --data, a greater --damping or --shrinkage, or --solver rtn"
        }
        // Inputs are finite: otherwise the sweep would have named the weight that isn't.
        QuantizeError::NotFinite => {
            let message =
                format!("what reaches {what} in layer {layer} is too large to be squared in f32");
            let remedy = "look for norms and projections of this layer, or those before it, that are far too large; \
                          or give --solver rtn, which looks at no text";
            return Error::new(Kind::Numeric, message).source(error).remedy(remedy);
        }
        _ => "find out with eval which weights or tokens make it so",
    };
    let message = format!("the Hessian of what reaches {what} can't be solved in layer {layer}");
    Error::new(Kind::Numeric, message).source(error).remedy(remedy)
}

pub(super) fn failed(error: QuantizeError) -> Error {
    Error::new(Kind::Numeric, "cannot quantize").source(error)
}
