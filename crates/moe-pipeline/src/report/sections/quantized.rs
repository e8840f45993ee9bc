//! Sections on quantized experts.

use moe_forward::DomainReport;
use moe_passes::PoolStats;
use moe_passes::quantize::{ExpertRecord, QuantizedLayer};

use crate::card::identity;
use crate::receipt::Receipt;
use crate::report::charts::{Columns, Scatter, columns, scatter};
use crate::report::html::{Section, Table};
use crate::report::number::{ABSENT, decimal, grouped, percent, signed};
use crate::resources::ByteSize;

/// Number of experts in the visible table; the others are in one that is opened on demand.
const SHOWN: usize = 10;

/// The section "What was done".
pub(crate) fn summary(receipt: &Receipt) -> Section {
    let mut section = Section::new("done", "What was done").text(&format!(
        "`{}` ({}): the function is {}. {} of {} tensors are byte-identical to the source's.",
        receipt.source.name,
        receipt.source.model_type,
        identity(&receipt.identity),
        receipt.result.tensors_copied,
        receipt.result.tensors
    ));
    for effect in &receipt.effects {
        section = section.text(&format!("{}.", capitalised(&effect.why)));
    }
    section = section.tiles(&tiles(receipt));
    for warning in &receipt.warnings {
        section = section.warning(&format!("{warning}."));
    }
    section
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn tiles(receipt: &Receipt) -> Vec<[String; 3]> {
    let tile = |name: &str, value: String, beside: String| [name.to_owned(), value, beside];
    let [before, after] = [receipt.source.bytes, receipt.result.bytes];
    let share = (before > 0).then(|| after as f64 / before as f64);
    let mut tiles = vec![tile(
        "weights",
        format!("{} → {}", ByteSize(before), ByteSize(after)),
        percent(share) + " remain",
    )];
    let experts = receipt.coldest();
    if let Some((layer, expert, record)) = experts.first() {
        tiles.push(tile(
            "fewest tokens of an expert",
            grouped(record.counts.routed as u64),
            format!("expert {expert} of layer {layer}"),
        ));
        let error = error_of(experts.iter().map(|(.., record)| record));
        tiles.push(tile(
            "output error of experts",
            decimal(error.mean, 3),
            format!("{} at most", decimal(error.worst, 3)),
        ));
    }
    let all = receipt.held_out.as_ref().map(|held_out| &held_out.result.all);
    let against = all.and_then(|all| all.against.as_ref());
    tiles.push(tile(
        "Δ loss on held-out text",
        signed(all.and_then(DomainReport::loss_change)),
        format!("KL {}", decimal(against.map(|a| a.kl), 4)),
    ));
    tiles.push(tile(
        "KL on what rare experts serve",
        decimal(against.and_then(|a| a.rare_kl), 4),
        format!("top-1 agreement {}", percent(against.map(|a| a.top1_agreement))),
    ));
    tiles
}

/// Relative errors of some experts' outputs.
struct Errors {
    mean: Option<f64>,
    worst: Option<f64>,
}

fn error_of<'a>(experts: impl Iterator<Item = &'a ExpertRecord>) -> Errors {
    let errors: Vec<f64> = experts.filter_map(|record| record.error).collect();
    let mean = (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64);
    Errors { mean, worst: errors.into_iter().reduce(f64::max) }
}

/// The calibration tokens of each expert, and its errors.
pub(crate) fn experts(receipt: &Receipt) -> Section {
    let section = Section::new("experts", "What each expert was calibrated on");
    let layers: Vec<(usize, QuantizedLayer)> = receipt
        .details()
        .into_iter()
        .filter(|(_, layer): &(usize, QuantizedLayer)| !layer.experts.is_empty())
        .collect();
    if layers.is_empty() {
        return section.text("Every weight was rounded to nearest; no data was looked at.");
    }
    let coldest = receipt.coldest();
    let points: Vec<_> = coldest
        .iter()
        .filter_map(|(.., record)| {
            Some((record.counts.routed as u64, record.error?, record.counts.topped_up > 0))
        })
        .collect();
    let indices: Vec<usize> = layers.iter().map(|(index, _)| *index).collect();
    let errors: Vec<Errors> =
        layers.iter().map(|(_, layer)| error_of(layer.experts.iter())).collect();
    let [mean, worst] = [|e: &Errors| e.mean, |e: &Errors| e.worst]
        .map(|of| errors.iter().map(of).collect::<Vec<_>>());
    let least: Vec<_> = layers
        .iter()
        .map(|(_, layer)| layer.experts.iter().map(|r| r.effective).reduce(f64::min))
        .collect();
    let column = |id, title, values, marks, format| {
        columns(&Columns { id, title, layers: &indices, values, marks, format, shares: false })
    };
    let charts = [
        scatter(&Scatter {
            id: "experts-tokens",
            title: "Tokens and output error of each expert",
            axes: ["tokens that chose it", "relative output error"],
            points: &points,
        }),
        column("experts-error", "Relative output error by layer", &mean, &worst, |v| decimal(v, 3)),
        column("experts-effective", "Fewest effective tokens by layer", &least, &[], |v| {
            decimal(v, 0)
        }),
    ];
    let mut section = section.text(
        "Each expert is calibrated on the tokens that chose it; where these are too few, also on those that most nearly \
         would have, weighed by the router's score. Effective tokens are those of equal weight that would say as much. \
         Damping is the share of the mean diagonal that was added to the Hessians of gate and up, and of down. The error is that of the expert's \
         output over what it was calibrated on, relative to its size.",
    );
    if let Some(PoolStats { scanned, joined, short }) = receipt.pool {
        section = section.text(&format!(
            "Of a pool of {} sequences {} joined ({} of {} tokens). By the original's routing {} experts were short of tokens before, {} after.",
            grouped(scanned[0] as u64),
            grouped(joined[0] as u64),
            grouped(joined[1] as u64),
            grouped(scanned[1] as u64),
            short[0],
            short[1]
        ));
    }
    let rows: Vec<_> = coldest.iter().map(row).collect();
    let header = [
        "expert",
        "tokens",
        "calibrated on",
        "topped up",
        "effective",
        "damping",
        "output error",
        "fallback",
    ];
    let table =
        |caption, rows: &[Vec<String>]| Table::numbers(caption, &header, rows.iter().cloned());
    section = section
        .legend(&[
            ("kept", "enough tokens, or mean"),
            ("control", "topped up with tokens of others"),
            ("mark", "worst expert"),
        ])
        .charts(charts)
        .table(&table("The coldest experts", &rows[..rows.len().min(SHOWN)]));
    match rows.len() {
        0..=SHOWN => section,
        count => section.folded(
            &format!("All {count} experts"),
            &table("All experts, the coldest first", &rows),
        ),
    }
}

fn row((layer, expert, record): &(usize, usize, ExpertRecord)) -> Vec<String> {
    let pair = |pair: Option<[f64; 2]>| {
        pair.map_or(ABSENT.to_owned(), |[a, b]| {
            format!("{} / {}", decimal(Some(a), 3), decimal(Some(b), 3))
        })
    };
    vec![
        format!("layer {layer}, expert {expert}"),
        grouped(record.counts.routed as u64),
        grouped((record.counts.used + record.counts.topped_up) as u64),
        grouped(record.counts.topped_up as u64),
        decimal(Some(record.effective), 0),
        pair(record.damping),
        decimal(record.error, 3),
        record.fallback.map_or_else(|| ABSENT.to_owned(), |fallback| fallback.to_string()),
    ]
}
