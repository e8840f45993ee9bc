//! Sections on layers that became dense.

use moe_forward::DomainReport;
use moe_passes::distill::{DistilledLayer, DistilledPart, Trained};

use super::words;
use crate::receipt::Receipt;
use crate::report::charts::{Columns, columns};
use crate::report::html::{Section, Table};
use crate::report::number::{ABSENT, decimal, grouped, percent, signed};
use crate::resources::ByteSize;

/// Maximum number of parts that are named for a layer; the receipt has all.
const NAMED: usize = 6;

/// The section "What was done".
pub(crate) fn summary(receipt: &Receipt) -> Section {
    let made = receipt.distilled().unwrap_or_default();
    let mut section = Section::new("done", "What was done")
        .text(&format!(
            "`{}` ({}) became a dense {} model: {made}. {} of {} tensors are byte-identical to the source's.",
            receipt.source.name,
            receipt.source.model_type,
            receipt.result.model_type,
            receipt.result.tensors_copied,
            receipt.result.tensors
        ))
        .text(&words::decided(receipt.decided, &receipt.options))
        .tiles(&tiles(receipt));
    for warning in &receipt.warnings {
        section = section.warning(&format!("{warning}."));
    }
    section
}

fn tiles(receipt: &Receipt) -> Vec<[String; 3]> {
    let tile = |name: &str, value: String, beside: String| [name.to_owned(), value, beside];
    let (source, result) = (&receipt.source, &receipt.result);
    let change = |before: usize, after: usize| {
        format!("{} → {}", grouped(before as u64), grouped(after as u64))
    };
    let share = |before: f64, after: f64| percent((before > 0.0).then(|| after / before));
    let held_out = receipt.held_out.as_ref();
    let all = held_out.map(|held_out| &held_out.result.all);
    let against = all.and_then(|all| all.against.as_ref());
    let control = held_out.and_then(|held_out| held_out.baseline.as_ref()?.all.loss_change());
    vec![
        tile(
            "parameters",
            change(source.total_parameters, result.total_parameters),
            share(source.total_parameters as f64, result.total_parameters as f64) + " remain",
        ),
        tile(
            "used by each token",
            change(source.active_parameters, result.active_parameters),
            share(source.active_parameters as f64, result.active_parameters as f64) + " of before",
        ),
        tile(
            "weights",
            format!("{} → {}", ByteSize(source.bytes), ByteSize(result.bytes)),
            share(source.bytes as f64, result.bytes as f64) + " remain",
        ),
        tile(
            "Δ loss on held-out text",
            signed(all.and_then(DomainReport::loss_change)),
            match control {
                Some(_) => format!("the mean of the experts: {}", signed(control)),
                None => "no baseline".to_owned(),
            },
        ),
        tile(
            "top-1 agreement",
            percent(against.map(|a| a.top1_agreement)),
            format!("KL {}", decimal(against.map(|a| a.kl), 4)),
        ),
    ]
}

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
    let row = |(index, layer): &(usize, DistilledLayer)| {
        vec![
            index.to_string(),
            made_of(&layer.parts),
            grouped(layer.zeros as u64),
            layer.fit.as_ref().map_or(ABSENT.to_owned(), |fit| match fit.lambda {
                Some(lambda) => format!("{lambda:e}"),
                None => "kept as measured".to_owned(),
            }),
            trained(layer),
            decimal(layer.output_error, 4),
        ]
    };
    let header =
        ["layer", "neurons × factor on what they give", "zeros", "λ", "trained", "output error"];
    Section::new("layers", "What each layer is made of")
        .text(
            "Neurons keep their gate and up rows; their down columns are multiplied by the mean gate over all tokens, or fitted. \
             λ is a multiple of the neurons' mean energy. The error is that of the network's output on windows that nothing but λ and \
             the steps of training were chosen on, relative to the size of the mixture's.",
        )
        .charts([chart])
        .table(&Table::words("By layer", &header, layers.iter().map(row)))
}

/// The effect of each training run on the error.
fn trained(layer: &DistilledLayer) -> String {
    let run = |trained: &Trained| {
        let [before, after] = trained.errors()?;
        Some(format!("{before:.4} → {after:.4} in step {} of {}", trained.best, trained.steps))
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
