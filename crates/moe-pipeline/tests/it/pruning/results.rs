//! Tests that a result has its report, and pads the layers that keep fewer experts.

use std::collections::BTreeMap;

use candle_core::Tensor;
use moe_forward::{Batch, Sweep};
use moe_math::Compute;
use moe_model::Model;
use moe_passes::{LayerTrust, PruneOptions};
use moe_pipeline::{ObserveOptions, Quiet, observe};

use super::{Text, moe, prune, read_json};
use crate::common::golden;

#[test]
fn a_report_is_written_and_is_the_same_again() {
    let text = Text::new(&[("english", &read_json("pruning/tokens.json")["english"])]);
    let mut options = text.with_data("experts = 12");
    options.reduce.measuring.held_out = vec![text.data[0].parse().unwrap()];
    options.reduce.measuring.held_out_tokens = 256;
    let report = |name: &str| {
        let output = text.path(name);
        prune(&options, &moe(), &output).unwrap();
        assert!(
            std::fs::read_to_string(output.join("SHA256SUMS")).unwrap().contains("  report.html")
        );
        assert!(std::fs::read_to_string(output.join("README.md")).unwrap().contains("report.html"));
        std::fs::read_to_string(output.join("report.html")).unwrap()
    };
    let page = report("one");
    assert_eq!(page, report("two"));
    assert!(["Δ loss", "random choice", "Spearman"].iter().all(|text| page.contains(text)));

    // A decision by weights alone has no figures on layers, and the page says so.
    let options: PruneOptions = toml::from_str("experts = 12\ncriterion = 'aimer'").unwrap();
    prune(&options, &moe(), &text.path("weights")).unwrap();
    let page = std::fs::read_to_string(text.path("weights").join("report.html")).unwrap();
    assert!(
        page.contains("no figures by layer")
            && page.contains("this method doesn&#39;t look at data")
    );
}

/// Counts how often each expert of each layer is chosen.
#[derive(Default)]
struct Choices(BTreeMap<usize, Vec<u64>>);

impl moe_forward::Observer for Choices {
    fn routed(
        &mut self,
        layer: usize,
        _: &Tensor,
        routing: &moe_math::routing::Routing,
    ) -> moe_checkpoint::Result<()> {
        self.0.insert(layer, routing.counts());
        Ok(())
    }
}

#[test]
fn layers_that_keep_fewer_experts_are_padded_with_ones_that_are_never_chosen() {
    let model = golden("families/deepseek_v3/mixed/model");
    let tokens = read_json("families/deepseek_v3/mixed/tokens.json");
    let text = Text::new(&[("random", &tokens)]);
    let stats = text.path("stats");
    let options: ObserveOptions = toml::from_str("").unwrap();
    let options = ObserveOptions { calibration: text.calibration(), ..options };
    observe(&model, &options, &stats, false, None, &Compute::cpu(), &Quiet).unwrap();
    let source = Model::open(&model).unwrap();
    let (_, first) = source.moes().next().unwrap();
    let (before, top_k) = (first.experts.len(), first.router.top_k);
    let mut options: PruneOptions =
        toml::from_str("equal-mass = true\ncriterion = \"reap\"").unwrap();
    options.reduce.stats = Some(stats);
    let mut seen_padding = false;
    for experts in top_k..before {
        options.reduce.experts = Some(experts);
        let output = text.path("out");
        let receipt = prune(&options, &model, &output).unwrap();
        let kept: Vec<usize> =
            receipt.details::<LayerTrust>().iter().map(|(_, trust)| trust.clusters.len()).collect();
        assert_eq!(kept.iter().sum::<usize>(), experts * kept.len());
        let pruned = Model::open(&output).unwrap();
        let most = *kept.iter().max().unwrap();
        assert!(pruned.moes().all(|(_, moe)| moe.experts.len() == most));
        let batch = Batch::from_json(&golden("families/deepseek_v3/mixed/tokens.json")).unwrap();
        let mut choices = Choices::default();
        Sweep::new(&pruned, &batch, &Compute::cpu()).unwrap().run(&mut choices).unwrap();
        for (kept, counts) in kept.iter().zip(choices.0.values()) {
            assert!(counts[*kept..].iter().all(|count| *count == 0), "{counts:?}");
            seen_padding |= *kept < most;
        }
    }
    assert!(seen_padding, "some layer keeps fewer than another");
}
