//! Tests of what holds for every page: it is escaped, small and complete in itself.

use std::collections::BTreeSet;
use std::time::Instant;

use moe_passes::{Identity, LayerTrust};

use super::{full, held_out, keep_to_look_at, layer, page};
use crate::receipt::Receipt;
use crate::receipt::made_up::{receipt, source};
use crate::trust::HeldOutReport;

#[test]
fn text_from_outside_is_escaped() {
    let evil = "<script>alert('x')</script>\"&";
    let mut receipt = full();
    let held_out = HeldOutReport {
        stages: Vec::new(),
        baseline_name: None,
        result: held_out(evil, 4.0),
        baseline: None,
    };
    receipt.held_out = Some(held_out);
    receipt.warnings = vec![evil.to_owned()];
    receipt.source = source(evil);
    receipt.source.model_type = evil.to_owned();
    receipt.others = vec![source(evil)];
    receipt.source.sha256.insert(evil.to_owned(), evil.to_owned());
    receipt.texts.insert(evil.to_owned(), evil.to_owned());
    receipt.options = serde_json::json!({ "criterion": evil, "data": [{ "label": evil, "path": evil }], evil: evil });
    receipt.identity = Identity::Approximate { reason: evil.to_owned() };
    for layer in &mut receipt.layers {
        layer.change_details(|trust: &mut LayerTrust| {
            trust.worst_domain = Some((evil.to_owned(), 0.5));
        });
    }
    let page = page(&receipt);
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script") && !page.contains("'x'"));
}

#[test]
fn large_models_have_small_pages() {
    let layers: Vec<LayerTrust> = (0..60).map(|seed| layer(256, seed)).collect();
    let receipt = Receipt { layers: receipt(layers).layers, ..full() };
    let start = Instant::now();
    let large = page(&receipt);
    assert!(large.len() < 3 << 20, "{} bytes", large.len());
    assert!(start.elapsed().as_secs() < 10);
    assert_eq!(large, page(&receipt));
    keep_to_look_at("large.html", &large);
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = page(&full());
    for word in ["<script", "<link", "http:", "https:", "@import", "url(", "src="] {
        assert!(!page.contains(word), "{word}");
    }
    let ids: Vec<&str> =
        page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len());
}
