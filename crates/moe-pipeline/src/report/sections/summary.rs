//! The section "What was done" of a pass on experts.

use moe_forward::DomainReport;
use moe_passes::{Choice, DecidedBy};

use super::words;
use crate::receipt::Receipt;
use crate::report::html::Section;
use crate::report::layer::{ReportedLayer, merges};
use crate::report::number::{ABSENT, decimal, grouped, percent, signed};
use crate::resources::ByteSize;

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    // A given plan is followed, whatever the method.
    let ranked = ranked(receipt).unwrap_or_default();
    let work = if merges(layers) { "Experts were merged" } else { "Experts were dropped" };
    let source = &receipt.source;
    let converted = receipt.layers.iter().filter(|layer| layer.router.is_some());
    let count = if layers.is_empty() { converted.count() } else { layers.len() };
    let mut section = Section::new("done", "What was done")
        .text(&format!(
            "{work} in {count} layers of `{}` ({}){ranked}. {}",
            source.name,
            source.model_type,
            words::decided(receipt.decided, &receipt.options)
        ))
        .text(&format!(
            "{} of {} tensors are byte-identical to the source's; the others are router rows and what the method made.",
            receipt.result.tensors_copied, receipt.result.tensors
        ))
        .tiles(&tiles(receipt, layers));
    for warning in &receipt.warnings {
        section = section.warning(&format!("{warning}."));
    }
    section
}

/// How the pass chose among experts. A given plan is followed, whatever the options say.
fn ranked(receipt: &Receipt) -> Option<String> {
    if receipt.decided == Some(DecidedBy::GivenPlan) {
        return None;
    }
    let Choice { option, words } = receipt.pass.choice?;
    let name = receipt.options[option].as_str()?;
    Some(match words(name) {
        Some(words) => format!(", {option} `{name}`: {words}"),
        None => format!(", {option} `{name}`"),
    })
}

fn tiles(receipt: &Receipt, layers: &[ReportedLayer]) -> Vec<[String; 3]> {
    let (source, result) = (&receipt.source, &receipt.result);
    let change = |before: usize, after: usize| format!("{} → {}", short(before), short(after));
    let share =
        |before: f64, after: f64| percent((before > 0.0).then(|| after / before)) + " remain";
    let of = |before: usize, after: usize| share(before as f64, after as f64);
    let tile = |name: &str, value: String, beside: String| [name.to_owned(), value, beside];
    let experts = layers.first().map(|layer| {
        let [before, after] = layer.trust.experts;
        tile("experts in a layer", format!("{before} → {after}"), of(before, after))
    });
    let in_layer = |found: Option<(usize, f64)>| {
        found.map_or(ABSENT.to_owned(), |(layer, _)| format!("in layer {layer}"))
    };
    let judged = if layers.iter().all(|layer| layer.trust.merges_all()) {
        let worst = layers.iter().filter_map(|l| Some((l.index, l.trust.output_error?)));
        let worst = worst.max_by(|a, b| a.1.total_cmp(&b.1));
        tile(
            "greatest relative output error",
            decimal(worst.map(|(_, error)| error), 3),
            in_layer(worst),
        )
    } else {
        let worst = layers
            .iter()
            .filter_map(|l| Some((l.index, l.mass()?)))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        tile("least saliency mass kept", percent(worst.map(|(_, share)| share)), in_layer(worst))
    };
    let all = receipt.held_out.as_ref().map(|held_out| &held_out.result.all);
    let against = all.and_then(|all| all.against.as_ref());
    let control = receipt
        .held_out
        .as_ref()
        .and_then(|held_out| held_out.baseline.as_ref()?.all.loss_change());
    let others = [
        tile(
            "parameters",
            change(source.total_parameters, result.total_parameters),
            of(source.total_parameters, result.total_parameters),
        ),
        tile(
            "active for each token",
            change(source.active_parameters, result.active_parameters),
            of(source.active_parameters, result.active_parameters),
        ),
        tile(
            "weights",
            format!("{} → {}", ByteSize(source.bytes), ByteSize(result.bytes)),
            share(source.bytes as f64, result.bytes as f64),
        ),
        tile(
            "tensors byte-identical",
            format!("{} of {}", result.tensors_copied, result.tensors),
            percent(
                (result.tensors > 0).then(|| result.tensors_copied as f64 / result.tensors as f64),
            ),
        ),
        judged,
        tile(
            "Δ loss on held-out text",
            signed(all.and_then(DomainReport::loss_change)),
            match control {
                Some(_) => format!("a random choice: {}", signed(control)),
                None => "no random baseline".to_owned(),
            },
        ),
        tile(
            "top-1 agreement",
            percent(against.map(|a| a.top1_agreement)),
            format!("KL {}", decimal(against.map(|a| a.kl), 4)),
        ),
    ];
    experts.into_iter().chain(others).collect()
}

fn short(count: usize) -> String {
    match count {
        0..10_000 => grouped(count as u64),
        10_000..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}
