//! Tables of what passes did to layers.

use moe_checkpoint::counted;
use moe_passes::LayerTrust;
use moe_passes::PoolStats;
use moe_passes::distill::{DistilledLayer, DownFit, Trained};
use moe_passes::quantize::{ExpertRecord, LayerWidths};
use moe_pipeline::Receipt;

use super::table::{or_dash, table};

/// What a pass made of each layer.
pub(super) fn all(receipt: &Receipt) -> String {
    trust(receipt) + &widths(receipt) + &quantized(receipt) + &distilled(receipt)
}

/// What tells how far decisions can be trusted.
pub(super) fn trust(receipt: &Receipt) -> String {
    let layers: Vec<_> =
        receipt.layers.iter().filter_map(|l| Some((l.layer, l.trust.as_ref()?))).collect();
    if layers.is_empty() {
        return String::new();
    }
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let row = |(layer, trust): &(usize, &LayerTrust)| {
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
    };
    let header = [
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
    format!("\n{}", table(&header, layers.iter().map(row)))
}

/// The widths that layers got, and what they cost.
fn widths(receipt: &Receipt) -> String {
    let layers: Vec<_> =
        receipt.layers.iter().filter_map(|l| Some((l.layer, l.widths.as_ref()?))).collect();
    if layers.is_empty() {
        return String::new();
    }
    let row = |(layer, widths): &(usize, &LayerWidths)| {
        let bits = widths.bits.iter().map(u32::to_string);
        let errors =
            [widths.error(widths.bits), widths.error([4; 3])].map(|error| format!("{error:.1e}"));
        std::iter::once(layer.to_string()).chain(bits).chain(errors).collect::<Vec<_>>()
    };
    format!(
        "\nBit widths, {:.4} bits a weight on average, and what they cost of each layer's output if rounded to nearest:\n{}",
        LayerWidths::bits_a_weight(layers.iter().map(|(_, widths)| *widths)),
        table(&["layer", "gate", "up", "down", "error", "at 4 bits"], layers.iter().map(row))
    )
}

/// The ten experts with the fewest tokens of their own, and how they were quantized.
fn quantized(receipt: &Receipt) -> String {
    const SHOWN: usize = 10;
    let coldest = receipt.coldest();
    if coldest.is_empty() {
        return String::new();
    }
    let row = |(layer, expert, record): &(usize, usize, &ExpertRecord)| {
        let pair = |pair: Option<[f64; 2]>| or_dash(pair.map(|[a, b]| format!("{a:.3} / {b:.3}")));
        vec![
            layer.to_string(),
            expert.to_string(),
            record.counts.routed.to_string(),
            record.counts.topped_up.to_string(),
            format!("{:.0}", record.effective),
            pair(record.damping),
            or_dash(record.error.map(|error| format!("{error:.3}"))),
            or_dash(record.fallback.clone()),
        ]
    };
    let pool = receipt.pool.map_or(String::new(), |PoolStats { scanned, joined, short }| {
        format!(
            "\nPool: {} of {} sequences joined ({} of {} tokens); by the original's routing, experts short of tokens: {} before, {} after.\n",
            joined[0], scanned[0], joined[1], scanned[1], short[0], short[1]
        )
    });
    let header = [
        "layer",
        "expert",
        "tokens",
        "topped up",
        "effective",
        "damping",
        "output error",
        "fallback",
    ];
    // One whose outputs overflow has none, however finite its weights are.
    let measured = || coldest.iter().filter_map(|(.., record)| record.error);
    let errors = || measured().filter(|error| error.is_finite());
    let overflowing = match measured().count() - errors().count() {
        0 => String::new(),
        count => format!(
            "; not measurable for {}: their outputs overflow",
            counted(count as u64, "expert")
        ),
    };
    let worst = errors().fold(0.0, f64::max);
    let mean = errors().sum::<f64>() / errors().count().max(1) as f64;
    format!(
        "{pool}\nThe coldest of {} experts; relative output error {mean:.3} on average, {worst:.3} at most{overflowing}:\n{}",
        coldest.len(),
        table(&header, coldest.iter().take(SHOWN).map(row))
    )
}

/// What each layer that became dense is made of.
fn distilled(receipt: &Receipt) -> String {
    let row = |(index, layer): (usize, &DistilledLayer)| {
        let lambda =
            |fit: &DownFit| fit.lambda.map_or("none".to_owned(), |lambda| format!("{lambda:e}"));
        let trained = |trained: &Trained| {
            let [before, after] = trained.errors()?;
            Some(match trained.best {
                0 => format!("{before:.3}: no gain in {}", counted(trained.steps, "step")),
                best => format!("{before:.3} → {after:.3} ({best} of {})", trained.steps),
            })
        };
        let trained: Vec<_> = layer.trained.iter().filter_map(trained).collect();
        vec![
            index.to_string(),
            format!("{} of {}", layer.width - layer.zeros, layer.distinct),
            layer.parts.len().to_string(),
            layer.zeros.to_string(),
            or_dash(layer.fit.as_ref().map(lambda)),
            or_dash((!trained.is_empty()).then(|| trained.join(", "))),
            or_dash(layer.output_error.map(|error| format!("{error:.4}"))),
        ]
    };
    let rows: Vec<_> = receipt.dense_layers().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let header =
        ["layer", "neurons", "of networks", "zeros", "λ", "trained (best step)", "output error"];
    format!("\n{}", table(&header, rows.into_iter()))
}
