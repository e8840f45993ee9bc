//! Describes options in plain words.

use std::path::Path;

use moe_passes::DecidedBy;
use serde_json::Value;

use crate::portable::portable;

/// The data that decisions are based on.
pub(super) fn decided(by: Option<DecidedBy>, options: &Value) -> String {
    let file = |key: &str| {
        options[key]
            .as_str()
            .map_or(String::new(), |path| format!(", `{}`", portable(Path::new(path))))
    };
    match by {
        Some(DecidedBy::Weights) => "Decided on weights, or by chance: no data was looked at.".to_owned(),
        Some(DecidedBy::OriginalStatistics) => {
            format!("Decided on statistics of the original model{}: no layer saw what others had lost.", file("stats"))
        }
        Some(DecidedBy::OriginalText) => {
            "Decided on data: each layer on what reached it through the original's layers before it.".to_owned()
        }
        Some(DecidedBy::Sequence) => {
            "Decided on data sequentially: each layer on what reached it through the converted \
                                      layers before it."
                .to_owned()
        }
        Some(DecidedBy::GivenPlan) => {
            format!("Decided by a plan that was given{}.", file("plan"))
        }
        None => "What decided is not recorded.".to_owned(),
    }
}
