//! Sections on layers that became dense.

use moe_passes::distill::{DistilledLayer, DistilledPart, DownFit, Trained};

use super::tiles::{HeldOut, Tile, share, tile, weights};
use super::words;
use crate::receipt::Receipt;
use crate::report::charts::{Columns, columns};
use crate::report::html::{Section, Table};
use crate::report::number::{ABSENT, decimal, grouped};

/// Maximum number of parts that are named for a layer; the receipt has all.
const NAMED: usize = 6;

/// The section "What was done".
pub(crate) fn summary(receipt: &Receipt) -> Section {
    let made = receipt.distilled().unwrap_or_default();
    Section::new("done", "What was done")
        .text(&format!(
            "`{}` ({}) became a dense {} model: {made}. {} of {} tensors are byte-identical to the source's.",
            receipt.source.name,
            receipt.source.model_type,
            receipt.result.model_type,
            receipt.result.tensors_copied,
            receipt.result.tensors
        ))
        .text(&words::decided(receipt.decided, &receipt.options))
        .tiles(&tiles(receipt))
        .warnings(&receipt.warnings)
}

fn tiles(receipt: &Receipt) -> Vec<Tile> {
    let (source, result) = (&receipt.source, &receipt.result);
    let total = [source.total_parameters, result.total_parameters];
    let active = [source.active_parameters, result.active_parameters];
    let held_out = HeldOut::of(receipt);
    vec![
        parameters("parameters", total, "remain"),
        parameters("used by each token", active, "of before"),
        weights(receipt),
        held_out.loss_beside_baseline("the mean of the experts", "no baseline"),
        held_out.agreement(),
    ]
}

/// The change of a number of parameters; `remainder` follows the share that is left.
fn parameters(name: &str, [before, after]: [usize; 2], remainder: &str) -> Tile {
    let change = format!("{} → {}", grouped(before as u64), grouped(after as u64));
    tile(name, change, format!("{} {remainder}", share(before as f64, after as f64)))
}

const MADE_OF: &str = "Neurons keep their gate and up rows; their down columns are multiplied by the mean gate over all tokens, or fitted. \
     λ is a multiple of the neurons' mean energy. The error is that of the network's output on windows that nothing but λ and \
     the steps of training were chosen on, relative to the size of the mixture's.";

const HEADER: [&str; 6] =
    ["layer", "neurons × factor on what they give", "zeros", "λ", "trained", "output error"];

/// The parts of each layer, and the distance of its output from the mixture's.
pub(crate) fn layers(receipt: &Receipt) -> Section {
    let layers: Vec<(usize, DistilledLayer)> = receipt.details();
    let indices: Vec<usize> = layers.iter().map(|(index, _)| *index).collect();
    let errors: Vec<Option<f64>> = layers.iter().map(|(_, layer)| layer.output_error).collect();
    let chart = columns(&Columns {
        id: "layers-error",
        title: "Relative output error by layer",
        layers: &indices,
        values: &errors,
        marks: &[],
        format: |v| decimal(v, 3),
        shares: false,
    });
    Section::new("layers", "What each layer is made of")
        .text(MADE_OF)
        .charts([chart])
        .table(&Table::words("By layer", &HEADER, layers.iter().map(row)))
}

fn row((index, layer): &(usize, DistilledLayer)) -> Vec<String> {
    vec![
        index.to_string(),
        made_of(&layer.parts),
        grouped(layer.zeros as u64),
        layer.fit.as_ref().map_or(ABSENT.to_owned(), lambda),
        trained(layer),
        decimal(layer.output_error, 4),
    ]
}

fn lambda(fit: &DownFit) -> String {
    match fit.lambda {
        Some(lambda) => format!("{lambda:e}"),
        None => "kept as measured".to_owned(),
    }
}

/// The effect of each training run on the error.
fn trained(layer: &DistilledLayer) -> String {
    let run = |trained: &Trained| {
        let [before, after] = trained.errors()?;
        let [before, after] = [before, after].map(|error| decimal(Some(error), 4));
        Some(format!("{before} → {after} in step {} of {}", trained.best, trained.steps))
    };
    let runs: Vec<_> = layer.trained.iter().filter_map(run).collect();
    if runs.is_empty() { ABSENT.to_owned() } else { runs.join("; ") }
}

fn made_of(parts: &[DistilledPart]) -> String {
    let of =
        |part: &DistilledPart| format!("{} of {} × {:.4}", part.neurons, part.from, part.factor);
    let named: Vec<_> = parts.iter().take(NAMED).map(of).collect();
    match parts.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        others => format!("{}; and {others} others", named.join("; ")),
    }
}
