//! The section "What was done" of a pass on experts.

use moe_passes::{Choice, DecidedBy};

use super::tiles::{HeldOut, Tile, share, tile, weights};
use super::words;
use crate::receipt::{Receipt, ResultRecord};
use crate::report::html::Section;
use crate::report::layer::{ReportedLayer, merges};
use crate::report::number::{ABSENT, decimal, grouped, percent};

pub(crate) fn section(receipt: &Receipt, layers: &[ReportedLayer]) -> Section {
    // A given plan is followed, whatever the method.
    let ranked = ranked(receipt).unwrap_or_default();
    let work = if merges(layers) { "Experts were merged" } else { "Experts were dropped" };
    let source = &receipt.source;
    let converted = receipt.layers.iter().filter(|layer| layer.router.is_some());
    let count = if layers.is_empty() { converted.count() } else { layers.len() };
    Section::new("done", "What was done")
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
        .tiles(&tiles(receipt, layers))
        .warnings(&receipt.warnings)
}

/// Says how the pass chose among experts. A given plan is followed, whatever the options say.
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

fn tiles(receipt: &Receipt, layers: &[ReportedLayer]) -> Vec<Tile> {
    let (source, result) = (&receipt.source, &receipt.result);
    let held_out = HeldOut::of(receipt);
    let others = [
        parameters("parameters", source.total_parameters, result.total_parameters),
        parameters("active for each token", source.active_parameters, result.active_parameters),
        weights(receipt),
        identical(result),
        if layers.iter().all(|layer| layer.trust.merges_all()) {
            greatest_error(layers)
        } else {
            least_mass(layers)
        },
        held_out.loss_beside_baseline("a random choice", "no random baseline"),
        held_out.agreement(),
    ];
    layers.first().map(experts).into_iter().chain(others).collect()
}

fn experts(layer: &ReportedLayer) -> Tile {
    let [before, after] = layer.trust.experts;
    let remain = share(before as f64, after as f64) + " remain";
    tile("experts in a layer", format!("{before} → {after}"), remain)
}

fn parameters(name: &str, before: usize, after: usize) -> Tile {
    let change = format!("{} → {}", short(before), short(after));
    tile(name, change, share(before as f64, after as f64) + " remain")
}

fn identical(result: &ResultRecord) -> Tile {
    let ResultRecord { tensors, tensors_copied, .. } = result;
    let share = share(*tensors as f64, *tensors_copied as f64);
    tile("tensors byte-identical", format!("{tensors_copied} of {tensors}"), share)
}

fn greatest_error(layers: &[ReportedLayer]) -> Tile {
    let errors = layers.iter().filter_map(|layer| Some((layer.index, layer.trust.output_error?)));
    let worst = errors.max_by(|a, b| a.1.total_cmp(&b.1));
    let error = decimal(worst.map(|(_, error)| error), 3);
    tile("greatest relative output error", error, in_layer(worst))
}

fn least_mass(layers: &[ReportedLayer]) -> Tile {
    let masses = layers.iter().filter_map(|layer| Some((layer.index, layer.mass()?)));
    let worst = masses.min_by(|a, b| a.1.total_cmp(&b.1));
    tile("least mass kept", percent(worst.map(|(_, share)| share)), in_layer(worst))
}

fn in_layer(found: Option<(usize, f64)>) -> String {
    found.map_or(ABSENT.to_owned(), |(layer, _)| format!("in layer {layer}"))
}

fn short(count: usize) -> String {
    match count {
        0..10_000 => grouped(count as u64),
        10_000..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}
