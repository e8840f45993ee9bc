//! Tests of the page on made-up receipts.

use moe_forward::{Comparison, DomainReport, EvalReport, LayerLoad};
use moe_math::load::Load;
use moe_passes::PoolStats;
use moe_passes::distill::{DistilledLayer, DistilledPart, DownFit, Look, PartSource, Trained};
use moe_passes::quantize::{Counts, ExpertRecord, Fallback, QuantizedLayer};
use moe_passes::{
    DecidedBy, Details, Effect, Identity, Kept, LayerRecord, LayerTrust, NetworkEdit,
    NetworkSource, PassInfo,
};

use super::{REPORT_FILE, pages};
use crate::receipt::Receipt;
use crate::receipt::made_up::{receipt, rows, source};
use crate::train::{LoadChange, Measurement, StepRecord, TrainingRecord};
use crate::trust::{HeldOutReport, StageReport};

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

#[test]
fn quantized_experts_are_shown_coldest_first() {
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

#[test]
fn a_training_shows_its_curves() {
    let step = |step: u64| StepRecord {
        step,
        loss: 3.1 - 0.01 * step as f64,
        cross_entropy: 3.0 - 0.01 * step as f64,
        teacher: if step == 3 { f64::NAN } else { 0.5 / step as f64 },
        balance: 4.5,
        gradient_norm: 0.7,
        learning_rate: 1e-3,
        tokens: 512.0,
        ..StepRecord::default()
    };
    let measured = |step, loss| Measurement { step, loss, kl: Some(loss / 10.0) };
    let load = [vec![5, 5, 5, 5], vec![20, 0, 0, 0]].map(Load::new);
    let [first, last] = load;
    let training = TrainingRecord {
        parameters: 12_288,
        steps: 40,
        stopped_early: true,
        written: 20,
        tokens: 20_480,
        memory_estimate_bytes: 1,
        curve: (1..=40).map(step).collect(),
        settings: Vec::new(),
        measurements: vec![measured(0, 3.5), measured(20, 3.25), measured(40, 3.3)],
        before: Some(held_out("english", 3.5)),
        after: Some(held_out("english", 3.25)),
        load: vec![LoadChange { layer: 2, first, last, dropped: 0.25 }],
    };
    let receipt = Receipt {
        pass: PassInfo::named("heal").unwrap(),
        decided: None,
        training: Some(training),
        ..receipt(Vec::new())
    };
    let page = page(&receipt);
    let shown = [
        ("what was trained", "12\u{202f}288"),
        ("what is written", "written: step 20; stopped early"),
        ("what it did", "−0.2500"),
        ("losses", "Loss, nats per token"),
        ("divergence", "KL(teacher ‖ model)"),
        ("what a line says", "next tokens of held-out text: 3.5000 at first, 3.3000 at last."),
        (
            "load",
            "<th scope=\"row\">2</th><td>4</td><td>1.000</td><td>0.000</td><td>0</td><td>3</td><td>25.0\u{a0}%</td>",
        ),
    ];
    for (what, text) in shown {
        assert!(page.contains(text), "{what}: no {text:?} in {page}");
    }
    let drawn: String =
        page.split("<svg").skip(1).filter_map(|svg| svg.split("</svg>").next()).collect();
    assert!(!drawn.contains("NaN") && !drawn.contains("inf"));
    keep_to_look_at("trained.html", &page);

    let mut bare = receipt;
    let training = bare.training.as_mut().unwrap();
    (training.before, training.after) = (None, None);
    training.curve.clear();
    training.measurements.clear();
    training.load.clear();
    assert!(render(&bare).unwrap().contains("Nothing was held out"));
}

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
        ("least saliency mass kept", false),
        ("greatest relative output error", true),
        ("error-mass", false),
        ("all, merged", true),
    ] {
        assert_eq!(whole.contains(said), is_said, "{said}");
    }
    assert!(some.contains("least saliency mass kept") && some.contains("error-mass"));
    keep_to_look_at("merged.html", &whole);
}

#[test]
fn large_models_have_small_pages() {
    let layers: Vec<LayerTrust> = (0..60).map(|seed| layer(256, seed)).collect();
    let receipt = Receipt { layers: receipt(layers).layers, ..full() };
    let start = std::time::Instant::now();
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
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len());
}

#[test]
fn dense_layers_say_what_they_are_made_of() {
    let look = |step, error, loss| Look { step, error, loss };
    let looks = || vec![look(0, 0.41, None), look(20, 0.36, Some(0.2)), look(40, 0.37, Some(0.1))];
    let trained = || Trained { steps: 40, best: 20, diverged: None, looks: looks() };
    let part = |expert: usize| DistilledPart {
        from: PartSource::Expert { expert },
        neurons: 64,
        factor: 0.125,
    };
    let layer = |layer, parts: usize, fit: Option<DownFit>| LayerRecord {
        details: Some(Details::of(DistilledLayer {
            distinct: 3072,
            width: 520,
            zeros: 8,
            parts: (0..parts).map(part).collect(),
            gates: vec![0.125; 24],
            shared_gate: None,
            scores: Vec::new(),
            fit,
            trained: vec![trained()],
            output_error: Some(0.3341),
            kept: Kept::No,
        })),
        ..LayerRecord::unchanged(layer)
    };
    let fit = |lambda| Some(DownFit { lambda, tried: vec![(Some(0.001), 0.3), (None, 0.9)] });
    let stage = |stage: &str, kept, loss| StageReport {
        stage: stage.to_owned(),
        kept,
        report: held_out("english", loss),
    };
    let held_out = HeldOutReport {
        stages: vec![stage("made", true, 3.9970), stage("trained", false, 4.1234)],
        baseline_name: Some("mean of the experts".to_owned()),
        result: held_out("english", 3.9970),
        baseline: Some(held_out("english", 5.0631)),
    };
    let layers = vec![layer(0, 8, fit(Some(0.001))), layer(2, 2, fit(None)), layer(3, 2, None)];
    let page = page(&Receipt {
        pass: PassInfo::named("distill").unwrap(),
        layers,
        held_out: Some(held_out),
        ..receipt(Vec::new())
    });
    let shown = [
        ("what training did", "0.4100 → 0.3600 in step 20 of 40"),
        (
            "what came of it",
            "3 layers became one network of 520 neurons each, down projections of 2 fitted",
        ),
        ("parts", "64 of expert 0 × 0.1250; 64 of expert 1 × 0.1250"),
        ("more parts than are named", "and 2 others"),
        ("stages", "Behind each stage"),
        ("a stage that helped nothing", "trained (taken back)"),
        ("λ", "<td>1e-3</td>"),
        ("no λ", "kept as measured"),
        ("error", "0.3341"),
        ("control", "mean of the experts: Δ loss"),
        ("its value", "+1.6594"),
    ];
    for (what, text) in shown {
        assert!(page.contains(text), "{what}: no {text:?}");
    }
    assert!(!page.contains("random choice") && !page.contains("NaN"));
    keep_to_look_at("distilled.html", &page);
}
