//! Tests of pages on quantized experts.

use moe_passes::quantize::{Counts, ExpertRecord, Fallback, QuantizedLayer};
use moe_passes::{Details, Effect, Kept, LayerRecord, PassInfo, PoolStats};

use super::{held_out, keep_to_look_at, page, render};
use crate::receipt::Receipt;
use crate::receipt::made_up::receipt;
use crate::trust::HeldOutReport;

/// A layer of quantized experts, the first of which was never chosen.
fn quantized(layer: usize, experts: usize) -> LayerRecord {
    let record = |e: usize| ExpertRecord {
        counts: Counts { routed: 97 * e, used: 97 * e, topped_up: 128usize.saturating_sub(97 * e) },
        effective: 120.4 + 97.0 * e as f64,
        damping: Some([0.349, 0.524]),
        error: (e != 1).then_some(0.2 / (1.0 + e as f64)),
        fallback: (e == 0).then_some(Fallback::MoreDamping),
    };
    let details = QuantizedLayer { bit_widths: None, experts: (0..experts).map(record).collect() };
    LayerRecord { details: Some(Details::of(details)), ..LayerRecord::unchanged(layer) }
}

/// The receipt of a model whose experts were quantized.
pub(super) fn made() -> Receipt {
    let pool = Some(PoolStats { scanned: [400, 51_200], joined: [8, 1024], short: [38, 3] });
    let mut receipt =
        Receipt { pass: PassInfo::named("quantize").unwrap(), pool, ..receipt(Vec::new()) };
    receipt.layers = vec![quantized(0, 6), quantized(1, 6)];
    receipt.held_out = Some(HeldOutReport {
        stages: Vec::new(),
        baseline_name: None,
        result: held_out("english", 3.4137),
        baseline: None,
    });
    receipt.effects = vec![Effect {
        option: "scheme".to_owned(),
        kept: Kept::Approximately,
        why: "rounded".to_owned(),
    }];
    receipt
}

#[test]
fn quantized_experts_are_shown_coldest_first() {
    let mut receipt = made();
    let page = page(&receipt);
    let shown = [
        (
            "coldest",
            "<th scope=\"row\">layer 0, expert 0</th><td>0</td><td>128</td><td>128</td><td>120</td>",
        ),
        ("damping and error", "<td>0.349 / 0.524</td><td>0.200</td><td>more damping</td>"),
        ("an error that is not known", "<td>0.349 / 0.524</td><td>–</td><td>–</td>"),
        ("all of them", "All 12 experts"),
        ("mean and worst error", "0.200 at most"),
        ("pool", "8 joined (1\u{202f}024 of 51\u{202f}200 tokens)"),
        ("shortage", "38 experts were short of tokens before, 3 after"),
        ("loss", "+0.0100"),
        ("how", "<p>Rounded.</p>"),
    ];
    for (what, text) in shown {
        assert!(page.contains(text), "{what}: no {text:?}");
    }
    assert!(
        !page.contains("random") || page.contains("random tokens"),
        "quantize has no random control"
    );
    assert!(!page.contains("NaN"));
    keep_to_look_at("quantized.html", &page);

    receipt.layers.iter_mut().for_each(|layer| layer.details = None);
    assert!(render(&receipt).unwrap().contains("rounded to nearest; no data was looked at"));
}
