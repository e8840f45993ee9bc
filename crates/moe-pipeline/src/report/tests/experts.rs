//! Tests of pages on passes that chose among experts.

use moe_math::load::Load;
use moe_passes::{DecidedBy, LayerRecord, LayerTrust, NetworkEdit, NetworkSource};

use super::{full, held_out, keep_to_look_at, layer, page, render};
use crate::receipt::Receipt;
use crate::receipt::made_up::{receipt, rows};
use crate::trust::HeldOutReport;

#[test]
fn every_metric_is_there() {
    let page = page(&full());
    let metrics = [
        ("held-out Δ loss", "Δ loss"),
        ("its value", "+0.5933"),
        ("KL to the original", "0.6566"),
        ("top-1 agreement", "57.2\u{a0}%"),
        ("the random control", "+1.6594"),
        ("re-routed output error", "0.347"),
        ("retained saliency mass", "77.2\u{a0}%"),
        ("choices that lost their expert", "40.4\u{a0}%"),
        ("worst domain", "spanish"),
        ("its retained mass", "68.5\u{a0}%"),
        ("Gini", "Gini"),
        ("entropy", "entropy"),
        ("dead experts", "Dead experts"),
        ("above 3× mean", "above 3× mean"),
        ("Spearman", "0.986"),
        ("Jaccard", "0.714"),
        ("tensors that are byte-identical", "178 of 182"),
        ("super experts", "super experts"),
        ("hashes", "0123abcd"),
        ("size before and after", "4.00 M → 2.00 M"),
    ];
    for (metric, text) in metrics {
        assert!(page.contains(text), "{metric}: no {text:?}");
    }
}

#[test]
fn what_is_absent_is_a_dash_and_never_zero() {
    let mut bare = layer(4, 0);
    (bare.stability, bare.output_error, bare.worst_domain) = (None, None, None);
    let page = page(&receipt(vec![bare]));
    assert!(page.contains("Nothing was held out") && page.contains("<code>--held-out TEXT</code>"));
    assert!(page.contains(
        "<tr><th scope=\"row\">0</th><td>77.2\u{a0}%</td><td>–</td><td>–</td><td>40.4\u{a0}%</td><td>–</td></tr>"
    ));
    assert!(page.contains("<tr><th scope=\"row\">0</th><td>–</td><td>–</td>"), "stability");
    assert!(render(&receipt(Vec::new())).is_none());
}

#[test]
fn a_method_without_data_says_why_there_are_no_figures() {
    let record = LayerRecord {
        layer: 3,
        router: Some(rows(2, 4)),
        experts: [0, 2].map(|e| NetworkEdit::of(vec![NetworkSource::expert(e)])).into(),
        ..LayerRecord::default()
    };
    for (by, why) in [
        (DecidedBy::Weights, "this method doesn&#39;t look at data"),
        (DecidedBy::GivenPlan, "a given plan"),
    ] {
        let held_out = HeldOutReport {
            stages: Vec::new(),
            baseline_name: None,
            result: held_out("english", 3.9970),
            baseline: None,
        };
        let receipt = Receipt {
            decided: Some(by),
            layers: vec![record.clone()],
            held_out: Some(held_out),
            ..receipt(Vec::new())
        };
        let page = page(&receipt);
        assert!(page.contains("no figures by layer") && page.contains(why), "{by:?}");
        assert!(
            page.contains("dropped in 1 layers")
                && page.contains("+0.5933")
                && page.contains("2 experts"),
            "{by:?}"
        );
        assert!(!page.contains("Spearman"), "{by:?}");
    }
    assert!(render(&Receipt { decided: None, ..full() }).is_none(), "upcycling decides nothing");
}

#[test]
fn odd_layers_make_sound_pictures() {
    let empty = LayerTrust {
        experts: [8, 4],
        load: Load::new(vec![0; 8]),
        saliency: vec![0.0; 8],
        ..layer(8, 0)
    };
    let no_saliency = LayerTrust { saliency: Vec::new(), ..layer(16, 0) };
    let not_finite = LayerTrust {
        saliency: vec![f64::NAN, f64::INFINITY, -1.0, 1e300],
        output_error: Some(f64::NAN),
        stability: Some([f64::NAN, 1.0]),
        ..layer(4, 0)
    };
    let giant = LayerTrust {
        saliency: (0..24).map(|e| if e == 5 { 4000.0 } else { 1.0 }).collect(),
        ..layer(24, 0)
    };
    for odd in [layer(1, 0), empty, no_saliency, not_finite, giant, LayerTrust::default()] {
        let page = page(&receipt(vec![odd]));
        let drawn = page.split("<svg").skip(1).map(|svg| svg.split("</svg>").next().unwrap());
        for svg in drawn {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.contains("<title") && svg.contains("<desc"));
        }
    }
    let mut held = full();
    held.held_out.as_mut().unwrap().result.domains[0].loss = f64::NAN;
    held.held_out.as_mut().unwrap().result.all.against = None;
    assert!(!page(&held).contains("NaN"));
}

#[test]
fn merges_are_shown_as_clusters() {
    let mut merged = layer(6, 0);
    merged.experts = [6, 2];
    merged.clusters = vec![vec![0, 3, 5], vec![2]];
    let giant = LayerTrust { saliency: vec![1.0, 2.0, 9000.0, 0.5, 0.0, 3.0], ..merged.clone() };
    let mut receipt = receipt(vec![merged, giant]);
    receipt.warnings = vec!["something to know".to_owned()];
    let some = page(&receipt);
    assert!(some.contains("<td>0, 2</td><td>1, 4</td><td>0 ← 3, 5</td>"), "{some}");
    assert!(
        some.contains("Experts were merged")
            && some.contains("what merging costs shows in the error")
    );
    // Kept mass says nothing where all mass is kept by definition.
    receipt
        .layers
        .iter_mut()
        .for_each(|layer| layer.change_details(|trust: &mut LayerTrust| trust.retained_mass = 1.0));
    let whole = page(&receipt);
    for (said, is_said) in [
        ("least mass kept", false),
        ("greatest relative output error", true),
        ("error-mass", false),
        ("all, merged", true),
    ] {
        assert_eq!(whole.contains(said), is_said, "{said}");
    }
    assert!(some.contains("least mass kept") && some.contains("error-mass"));
    keep_to_look_at("merged.html", &whole);
}
