//! Sections on quantized experts.

use moe_passes::PoolStats;
use moe_passes::quantize::{ExpertRecord, QuantizedLayer};

use super::tiles::{HeldOut, Tile, tile, weights};
use crate::card::identity;
use crate::receipt::Receipt;
use crate::report::charts::{Columns, Scatter, columns, scatter};
use crate::report::html::{Section, Table};
use crate::report::number::{ABSENT, decimal, grouped, percent};
use crate::report::svg::Svg;

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
        section = section.text(&format!("{}.", capitalized(&effect.why)));
    }
    section.tiles(&tiles(receipt)).warnings(&receipt.warnings)
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn tiles(receipt: &Receipt) -> Vec<Tile> {
    let mut tiles = vec![weights(receipt)];
    tiles.extend(calibration(&receipt.coldest()).into_iter().flatten());
    let held_out = HeldOut::of(receipt);
    let against = held_out.against();
    tiles.push(held_out.loss(held_out.kl()));
    tiles.push(tile(
        "KL on what rare experts serve",
        decimal(against.and_then(|a| a.rare_kl), 4),
        format!("top-1 agreement {}", percent(against.map(|a| a.top1_agreement))),
    ));
    tiles
}

/// The tokens of the coldest expert, and the errors of all; None without experts.
fn calibration(coldest: &[Expert]) -> Option<[Tile; 2]> {
    let (layer, expert, record) = coldest.first()?;
    let place = format!("expert {expert} of layer {layer}");
    let error = error_of(coldest.iter().map(|(.., record)| record));
    let worst = format!("{} at most", decimal(error.worst, 3));
    Some([
        tile("fewest tokens of an expert", grouped(record.counts.routed as u64), place),
        tile("output error of experts", decimal(error.mean, 3), worst),
    ])
}

/// An expert's layer, its index there, and how it was quantized.
type Expert = (usize, usize, ExpertRecord);

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

const CALIBRATED: &str = "Each expert is calibrated on the tokens that chose it; where these are too few, also on those that most nearly \
     would have, weighed by the router's score. Effective tokens are those of equal weight that would say as much. \
     Damping is the share of the mean diagonal that was added to the Hessians of gate and up, and of down. The error is that of the expert's \
     output over what it was calibrated on, relative to its size.";

const LEGEND: [(&str, &str); 3] = [
    ("kept", "enough tokens, or mean"),
    ("control", "topped up with tokens of others"),
    ("mark", "worst expert"),
];

/// The calibration tokens of each expert, and its errors.
pub(crate) fn experts(receipt: &Receipt) -> Section {
    let section = Section::new("experts", "What each expert was calibrated on");
    let mut layers: Vec<(usize, QuantizedLayer)> = receipt.details();
    layers.retain(|(_, layer)| !layer.experts.is_empty());
    if layers.is_empty() {
        return section.text("Every weight was rounded to nearest; no data was looked at.");
    }
    let coldest = receipt.coldest();
    let mut section = section.text(CALIBRATED);
    if let Some(stats) = &receipt.pool {
        section = section.text(&pool(stats));
    }
    let [errors, tokens] = by_layer(&layers);
    let section = section.legend(&LEGEND).charts([by_tokens(&coldest), errors, tokens]);
    let rows: Vec<_> = coldest.iter().map(row).collect();
    let shown = table("The coldest experts", &rows[..rows.len().min(SHOWN)]);
    let section = section.table(&shown);
    match rows.len() {
        0..=SHOWN => section,
        count => section.folded(
            &format!("All {count} experts"),
            &table("All experts, the coldest first", &rows),
        ),
    }
}

/// A sentence on what a pool of text added to the calibration.
fn pool(PoolStats { scanned, joined, short }: &PoolStats) -> String {
    format!(
        "Of a pool of {} sequences {} joined ({} of {} tokens). By the original's routing {} experts were short of tokens before, {} after.",
        grouped(scanned[0] as u64),
        grouped(joined[0] as u64),
        grouped(joined[1] as u64),
        grouped(scanned[1] as u64),
        short[0],
        short[1]
    )
}

/// The error of each expert against the number of tokens that chose it.
fn by_tokens(coldest: &[Expert]) -> Svg {
    let points = coldest.iter().filter_map(|(.., record)| {
        Some((record.counts.routed as u64, record.error?, record.counts.topped_up > 0))
    });
    scatter(&Scatter {
        id: "experts-tokens",
        title: "Tokens and output error of each expert",
        axes: ["tokens that chose it", "relative output error"],
        points: &points.collect::<Vec<_>>(),
    })
}

/// The errors of each layer's experts, and their fewest effective tokens.
fn by_layer(layers: &[(usize, QuantizedLayer)]) -> [Svg; 2] {
    let indices: Vec<usize> = layers.iter().map(|(index, _)| *index).collect();
    let (mean, worst): (Vec<_>, Vec<_>) = layers.iter().map(|(_, layer)| ends(layer)).unzip();
    let least: Vec<_> = layers.iter().map(|(_, layer)| least_effective(layer)).collect();
    let errors = Columns {
        id: "experts-error",
        title: "Relative output error by layer",
        layers: &indices,
        values: &mean,
        marks: &worst,
        format: |v| decimal(v, 3),
        shares: false,
    };
    let tokens = Columns {
        id: "experts-effective",
        title: "Fewest effective tokens by layer",
        values: &least,
        marks: &[],
        format: |v| decimal(v, 0),
        ..errors
    };
    [columns(&errors), columns(&tokens)]
}

/// The mean and the worst error of the experts of `layer`.
fn ends(layer: &QuantizedLayer) -> (Option<f64>, Option<f64>) {
    let Errors { mean, worst } = error_of(layer.experts.iter());
    (mean, worst)
}

fn least_effective(layer: &QuantizedLayer) -> Option<f64> {
    layer.experts.iter().map(|record| record.effective).reduce(f64::min)
}

fn table(caption: &'static str, rows: &[Vec<String>]) -> Table {
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
    Table::numbers(caption, &header, rows.iter().cloned())
}

fn row((layer, expert, record): &Expert) -> Vec<String> {
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
