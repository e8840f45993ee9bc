//! Options in plain words.

use std::path::Path;

use moe_passes::DecidedBy;
use serde_json::Value;

use crate::portable::portable;

/// What a method ranks or groups experts by; none for those that have no words here.
pub(super) fn method(name: &str) -> Option<&'static str> {
    Some(match name {
        "reap" => "mean of gate × norm of the output over an expert's tokens",
        "ean" => "sum of the norms of an expert's outputs",
        "man" => "mean of the norms of an expert's outputs",
        "msan" => "mean of the squared norms of an expert's outputs",
        "frequency" => "tokens that choose an expert",
        "soft-frequency" => "sum of the gates that an expert is given",
        "aimer" => "evenness of an expert's weights",
        "leave-one-out" => "squared change of the layer's output without the expert",
        "leave-one-out-cosine" => "turn of the layer's output without the expert",
        "exhaustive" => "of all sets of experts the one whose output is nearest",
        "ranked-choice" => "votes of tokens, which pass on when an expert goes",
        "random" => "chance",
        "ream" => "like experts around the most salient ones, neurons aligned",
        "hc-smoe" => "hierarchical clusters of mean outputs",
        "m-smoe" => "like router logits around the most used experts",
        "mergemoe" => "down-projections fitted to the group's output",
        "dern" => "neurons of dropped experts given to the fitting kept ones",
        _ => return None,
    })
}

/// What decisions rest on.
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
