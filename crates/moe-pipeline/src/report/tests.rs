//! Tests of the page on made-up receipts.

mod distilled;
mod every_page;
mod experts;
mod hostile;
mod quantized;
mod trained;

use moe_forward::{Comparison, DomainReport, EvalReport, LayerLoad};
use moe_math::load::Load;
use moe_passes::LayerTrust;

use super::{REPORT_FILE, pages};
use crate::receipt::Receipt;
use crate::receipt::made_up::receipt;
use crate::trust::HeldOutReport;

/// The page of the result.
fn render(receipt: &Receipt) -> Option<String> {
    let (file, page) = pages(receipt).into_iter().next()?;
    assert_eq!(file, REPORT_FILE);
    Some(page)
}

/// A layer that keeps every other expert.
fn layer(experts: usize, seed: usize) -> LayerTrust {
    let pseudo = |e: usize| (e * 7919 + seed * 104_729) % 1013;
    LayerTrust {
        experts: [experts, experts.div_ceil(2)],
        clusters: (0..experts).step_by(2).map(|e| vec![e]).collect(),
        saliency: (0..experts).map(|e| pseudo(e) as f64 / 100.0).collect(),
        retained_mass: 0.7724,
        worst_domain: Some(("spanish".to_owned(), 0.6848)),
        lost_choices: 0.4035,
        load: Load::new((0..experts).map(|e| (pseudo(e + 3) as u64).saturating_sub(20)).collect()),
        stability: Some([0.986, 0.714]),
        output_error: Some(0.3473),
        super_experts: vec![0],
    }
}

fn held_out(label: &str, loss: f64) -> EvalReport {
    let domain = |label: &str| DomainReport {
        label: label.to_owned(),
        sequences: 4,
        tokens: 2048,
        predicted_tokens: 2044,
        loss,
        perplexity: loss.exp(),
        against: Some(Comparison {
            original_loss: 3.4037,
            kl: 0.6566,
            rare_kl: None,
            top1_agreement: 0.5723,
        }),
    };
    let load = LayerLoad {
        layer: 0,
        load: Load::new(vec![1, 2, 30]),
        counts_by_domain: vec![vec![1, 2, 30]],
    };
    EvalReport { domains: vec![domain(label)], all: domain("all"), load: vec![load] }
}

/// A receipt with everything: held-out text with its baseline, and two layers.
fn full() -> Receipt {
    let held_out = HeldOutReport {
        stages: Vec::new(),
        baseline_name: Some("random choice".to_owned()),
        result: held_out("english", 3.9970),
        baseline: Some(held_out("english", 5.0631)),
    };
    Receipt { held_out: Some(held_out), ..receipt(vec![layer(24, 0), layer(24, 1)]) }
}

fn page(receipt: &Receipt) -> String {
    render(receipt).expect("a layer was decided on data")
}

/// Writes `page` to the directory in `REPORT_OUT`, if that is set, for scripts/screenshot-report.
fn keep_to_look_at(name: &str, page: &str) {
    if let Some(dir) = std::env::var_os("REPORT_OUT") {
        std::fs::write(std::path::Path::new(&dir).join(name), page).unwrap();
    }
}
