//! Tables of what passes did to layers.

use moe_checkpoint::counted;
use moe_passes::distill::{DistilledLayer, DownFit, Trained};
use moe_passes::quantize::{ExpertRecord, LayerWidths, QuantizedLayer};
use moe_passes::{LayerTrust, PoolStats};
use moe_pipeline::Receipt;

use super::table::{or_dash, table};

/// The tables of a pass, by layer.
pub(super) fn all(receipt: &Receipt) -> String {
    trust(receipt) + &widths(receipt) + &quantized(receipt) + &distilled(receipt)
}

const TRUST_HEADER: [&str; 9] = [
    "layer",
    "experts",
    "mass kept",
    "worst domain",
    "choices lost",
    "output error",
    "halves agree",
    "dead",
    "super",
];

/// Formats diagnostics of decisions.
pub(super) fn trust(receipt: &Receipt) -> String {
    let layers = receipt.details::<LayerTrust>();
    if layers.is_empty() {
        return String::new();
    }
    let rows = layers.iter().map(|(layer, trust)| trust_row(*layer, trust));
    format!("\n{}", table(&TRUST_HEADER, rows))
}

fn trust_row(layer: usize, trust: &LayerTrust) -> Vec<String> {
    let merged = trust.merges_all();
    let worst = trust.worst_domain.as_ref().filter(|_| !merged);
    vec![
        layer.to_string(),
        format!("{} → {}", trust.experts[0], trust.experts[1]),
        if merged { "all, merged".to_owned() } else { percent(trust.retained_mass) },
        or_dash(worst.map(|(label, share)| format!("{label} {}", percent(*share)))),
        percent(trust.lost_choices),
        or_dash(trust.output_error.map(|error| format!("{error:.3}"))),
        or_dash(trust.stability.map(|[rank, kept]| format!("{rank:.2} / {kept:.2}"))),
        trust.load.dead.to_string(),
        trust.super_experts.len().to_string(),
    ]
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Formats the bit widths of layers, and their errors.
fn widths(receipt: &Receipt) -> String {
    let layers: Vec<(usize, LayerWidths)> = receipt
        .details::<QuantizedLayer>()
        .into_iter()
        .filter_map(|(layer, details)| Some((layer, details.bit_widths?)))
        .collect();
    if layers.is_empty() {
        return String::new();
    }
    let row = |(layer, widths): &(usize, LayerWidths)| {
        let bits = widths.bits.iter().map(u32::to_string);
        let errors =
            [widths.error(widths.bits), widths.error([4; 3])].map(|error| format!("{error:.1e}"));
        std::iter::once(layer.to_string()).chain(bits).chain(errors).collect::<Vec<_>>()
    };
    format!(
        "\nBit widths, {:.4} bits a weight on average, and what they cost of each layer's output if rounded to nearest:\n{}",
        LayerWidths::bits_a_weight(layers.iter().map(|(_, widths)| widths)),
        table(&["layer", "gate", "up", "down", "error", "at 4 bits"], layers.iter().map(row))
    )
}

const EXPERTS_HEADER: [&str; 8] =
    ["layer", "expert", "tokens", "topped up", "effective", "damping", "output error", "fallback"];

/// Formats the ten experts with the fewest tokens of their own, and how they were quantized.
fn quantized(receipt: &Receipt) -> String {
    const SHOWN: usize = 10;
    let coldest = receipt.coldest();
    if coldest.is_empty() {
        return String::new();
    }
    let errors: Vec<f64> = coldest.iter().filter_map(|(.., record)| record.error).collect();
    format!(
        "{}\nThe coldest of {} experts; {}:\n{}",
        receipt.pool.as_ref().map_or(String::new(), pool),
        coldest.len(),
        output_errors(&errors),
        table(&EXPERTS_HEADER, coldest.iter().take(SHOWN).map(expert_row))
    )
}

fn expert_row((layer, expert, record): &(usize, usize, ExpertRecord)) -> Vec<String> {
    let damping = record.damping.map(|[a, b]| format!("{a:.3} / {b:.3}"));
    vec![
        layer.to_string(),
        expert.to_string(),
        record.counts.routed.to_string(),
        record.counts.topped_up.to_string(),
        format!("{:.0}", record.effective),
        or_dash(damping),
        or_dash(record.error.map(|error| format!("{error:.3}"))),
        or_dash(record.fallback.map(|fallback| fallback.to_string())),
    ]
}

fn pool(PoolStats { scanned, joined, short }: &PoolStats) -> String {
    format!(
        "\nPool: {} of {} sequences joined ({} of {} tokens); by the original's routing, experts short of tokens: {} before, {} after.\n",
        joined[0], scanned[0], joined[1], scanned[1], short[0], short[1]
    )
}

/// Describes relative errors of experts' outputs.
fn output_errors(errors: &[f64]) -> String {
    // An expert whose outputs overflow has no finite error, even if its weights are finite.
    let finite: Vec<f64> = errors.iter().copied().filter(|error| error.is_finite()).collect();
    let overflowing = match errors.len() - finite.len() {
        0 => String::new(),
        count => format!(
            "; not measurable for {}: their outputs overflow",
            counted(count as u64, "expert")
        ),
    };
    let worst = finite.iter().copied().fold(0.0, f64::max);
    let mean = finite.iter().sum::<f64>() / finite.len().max(1) as f64;
    format!("relative output error {mean:.3} on average, {worst:.3} at most{overflowing}")
}

const DISTILLED_HEADER: [&str; 7] =
    ["layer", "neurons", "of networks", "zeros", "λ", "trained (best step)", "output error"];

/// Formats the parts that each dense layer is made from.
fn distilled(receipt: &Receipt) -> String {
    let layers = receipt.details::<DistilledLayer>();
    if layers.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&DISTILLED_HEADER, layers.iter().map(distilled_row)))
}

fn distilled_row((index, layer): &(usize, DistilledLayer)) -> Vec<String> {
    let trained: Vec<_> = layer.trained.iter().filter_map(gain).collect();
    vec![
        index.to_string(),
        format!("{} of {}", layer.width - layer.zeros, layer.distinct),
        layer.parts.len().to_string(),
        layer.zeros.to_string(),
        or_dash(layer.fit.as_ref().map(lambda)),
        or_dash((!trained.is_empty()).then(|| trained.join(", "))),
        or_dash(layer.output_error.map(|error| format!("{error:.4}"))),
    ]
}

fn lambda(fit: &DownFit) -> String {
    fit.lambda.map_or("none".to_owned(), |lambda| format!("{lambda:e}"))
}

/// Formats the improvement from training each layer.
fn gain(trained: &Trained) -> Option<String> {
    let [before, after] = trained.errors()?;
    Some(match trained.best {
        0 => format!("{before:.3}: no gain in {}", counted(trained.steps, "step")),
        best => format!("{before:.3} → {after:.3} ({best} of {})", trained.steps),
    })
}
