//! The facts of a receipt.

use moe_checkpoint::counted;
use moe_passes::Identity;
use moe_pipeline::{ByteSize, Receipt, describe_identity};

use super::table::count;
use super::training;

/// The facts of a receipt. A run that is only planned gives the number of held-out tokens that it
/// will measure on.
pub(super) fn receipt_facts(
    receipt: &Receipt,
    measured_tokens: Option<usize>,
) -> Vec<(&'static str, String)> {
    let mut rows = sizes(receipt);
    if !receipt.before.is_empty() {
        rows.push(("passes", receipt.passes()));
    }
    receipt.earlier().into_iter().for_each(|earlier| rows.extend(made(&earlier)));
    rows.extend(made(receipt));
    rows.push(("function", describe_identity(&receipt.identity)));
    let quality = quality(receipt);
    // For a model that was changed, random tokens tell little, and nothing that text doesn't.
    if receipt.identity == Identity::Exact || quality.is_none() {
        rows.extend(on_random_tokens(receipt).map(|text| ("measured", text)));
    }
    let quality = quality.or_else(|| not_measured(receipt, measured_tokens));
    rows.extend(quality.map(|quality| ("quality", quality)));
    if let Some(training) = &receipt.training {
        rows.push(("trained", training::fact(training)));
    }
    rows.extend(trust(receipt, measured_tokens).map(|trust| ("trust", trust)));
    rows
}

/// Why there are no figures on how far the result can be trusted, and how to measure what it costs;
/// None where there are figures.
fn trust(receipt: &Receipt, measured_tokens: Option<usize>) -> Option<String> {
    let why = receipt.no_figures()?;
    let is_measured = receipt.held_out.is_some() || measured_tokens.is_some();
    let ask = if is_measured { "" } else { "; --held-out TEXT shows what the result costs" };
    Some(format!("{why}{ask}"))
}

/// The result compared with its source, in numbers of weights and bytes.
fn sizes(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let (source, result) = (&receipt.source, &receipt.result);
    let parameters = format!(
        "{} → {} in total, {} → {} active for each token",
        count(source.total_parameters),
        count(result.total_parameters),
        count(source.active_parameters),
        count(result.active_parameters)
    );
    let (before, after) = (ByteSize(source.bytes), ByteSize(result.bytes));
    let size = format!("{before} → {after}, {}", times(source.bytes, result.bytes));
    let tensors =
        format!("{}, {} of them copied byte for byte", result.tensors, result.tensors_copied);
    vec![
        ("family", format!("{} → {}", source.model_type, result.model_type)),
        ("parameters", parameters),
        ("size", size),
        ("tensors", tensors),
    ]
}

/// The distance of the result's logits from its source's, on random tokens.
fn on_random_tokens(receipt: &Receipt) -> Option<String> {
    let d = &receipt.measured.as_ref()?.difference;
    Some(format!(
        "max |Δlogit| {:.2e} (largest logit {:.1}), KL {:.1e}, top-1 agreement {:.1} %, on {} random tokens",
        d.max_logit_difference,
        d.max_logit,
        d.kl,
        100.0 * d.top1_agreement,
        d.tokens
    ))
}

/// How a result can be measured, or will be, where no text has measured it; None where there is
/// nothing to measure yet, since the result starts out equal to its source.
fn not_measured(receipt: &Receipt, measured_tokens: Option<usize>) -> Option<String> {
    if let Some(tokens) = measured_tokens {
        let tokens = counted(tokens as u64, "held-out token");
        return Some(format!("measured when it runs, on {tokens}"));
    }
    if receipt.identity == Identity::Exact {
        return None;
    }
    let measures = if receipt.pass.has_option("held-out") {
        "--held-out TEXT does, and eval"
    } else {
        "eval does"
    };
    Some(format!("not measured on text ({measures})"))
}

/// Says how a pass made the experts.
fn made(receipt: &Receipt) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some((layer, router)) = receipt.first_converted() {
        rows.extend(
            receipt
                .experts()
                .into_iter()
                .enumerate()
                .map(|(i, line)| (if i == 0 { "experts" } else { "" }, line)),
        );
        rows.extend(layer.shared_sentence().map(|shared| ("shared expert", shared)));
        rows.push(("router", router.to_string()));
    }
    rows.extend(receipt.distilled().map(|made| ("dense", made)));
    rows
}

/// The ratio of sizes, in words.
fn times(before: u64, after: u64) -> String {
    if before == after {
        return "the same".to_owned();
    }
    format!("{:.2} ×", after as f64 / before.max(1) as f64)
}

/// Held-out results over all text, compared with the model that was trained, or else with the
/// original.
fn quality(receipt: &Receipt) -> Option<String> {
    let training = receipt.training.as_ref();
    let trained =
        training.and_then(|t| Some((t.before.as_ref()?.all.loss, &t.after.as_ref()?.all)));
    let (before, all) = match &receipt.held_out {
        Some(held_out) => {
            (held_out.result.all.against.as_ref()?.original_loss, &held_out.result.all)
        }
        None => trained?,
    };
    let against = all.against.as_ref().map_or(String::new(), |a| {
        format!(", KL to the original {:.4}, top-1 same {:.1} %", a.kl, 100.0 * a.top1_agreement)
    });
    Some(format!("loss {before:.4} → {:.4}{against}, on {} held-out tokens", all.loss, all.tokens))
}
