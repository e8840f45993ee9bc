//! Mixed precision from checkpoint to checkpoint: within the target, the best of what was measured,
//! and written as it is read.

use std::path::Path;

use moe_checkpoint::Error;
use moe_checkpoint::quantization::Scheme;
use moe_model::Model;
use moe_passes::quantize::{LayerWidths, QuantizedLayer};
use moe_passes::{LayerRecord, QuantizeOptions, Rounding};
use moe_pipeline::{Quiet, Receipt, convert, verify};

use crate::common::{golden, run_again};

/// Options with groups of 32, and 512 tokens each of English and of code.
fn options(toml: &str) -> QuantizeOptions {
    let text = |name: &str| golden(&format!("text/{name}.calibration.txt")).display().to_string();
    let data = ["english", "code"].map(text);
    toml::from_str(&format!(
        "{toml}\ngroup-size = 32\ndata = {data:?}\ndata-tokens = 512\nsequence-length = 128"
    ))
    .unwrap()
}

fn quantize(options: &QuantizeOptions, output: &Path) -> Result<(Model, Receipt), Error> {
    let receipt = convert(&[options], &golden("models/moe"), output, &run_again(), &Quiet)?.receipt;
    Ok((Model::open(output)?, receipt))
}

fn widths(receipt: &Receipt) -> Vec<LayerWidths> {
    let details = receipt.details::<QuantizedLayer>().into_iter();
    details.map(|(_, layer)| layer.bit_widths.unwrap()).collect()
}

/// Each matrix is stored with the bit width in the receipt, and has the size given there.
fn stored_as_said(model: &Model, receipt: &Receipt) {
    for ((_, moe), widths) in model.moes().zip(widths(receipt)) {
        let mut bytes = 0;
        for linear in moe.experts.iter().flat_map(moe_model::Expert::linears) {
            bytes += linear.weight.codes().bytes() + linear.weight.scale().unwrap().bytes();
        }
        assert_eq!(8 * bytes, widths.stored_bits);
        for expert in &moe.experts {
            let found = expert.linears().map(|linear| match linear.weight.scheme() {
                Some(Scheme::Integers(integers)) => integers.bits,
                other => panic!("{other:?}"),
            });
            assert_eq!(found, widths.bits);
        }
    }
}

#[test]
fn layers_get_4_or_8_bits_by_what_these_cost() {
    let out = tempfile::tempdir().unwrap();
    // At 4.5 and 8.5 bits there is only one assignment.
    let (model, receipt) =
        quantize(&options("target-bits = 5.6"), &out.path().join("out")).unwrap();
    verify(&out.path().join("out"), &Quiet).unwrap();
    stored_as_said(&model, &receipt);
    let layers = widths(&receipt);
    let bits: Vec<u32> = layers.iter().map(|layer| layer.bits[0]).collect();
    assert_eq!(LayerWidths::bits_a_weight(layers.iter()), 5.5);
    assert_eq!((bits.iter().filter(|bits| **bits == 8).count(), bits.len()), (1, 4));
    // No other assignment that fits has a smaller error.
    let all = (0..16u32).map(|mask| {
        (0..4).map(|layer| if mask >> layer & 1 == 1 { 8 } else { 4 }).collect::<Vec<u32>>()
    });
    let sum = |bits: &[u32]| {
        layers.iter().zip(bits).map(|(layer, bits)| layer.error([*bits; 3])).sum::<f64>()
    };
    let fitting = all.filter(|bits| bits.iter().filter(|bits| **bits == 8).count() <= 1);
    let best = fitting.map(|bits| sum(&bits)).fold(f64::INFINITY, f64::min);
    assert_eq!(sum(&bits), best);
    assert!(sum(&bits) < sum(&[4; 4]), "8 bits cost less than 4 somewhere");
    assert!(
        !receipt
            .warnings
            .iter()
            .any(|warning| warning.starts_with("vLLM") || warning.starts_with("SGLang"))
    );
    assert!(
        receipt
            .warnings
            .iter()
            .any(|warning| warning.contains("transformers 5.23.0 does not take it"))
    );
}

/// Asserts that the widths that were chosen cost less than one of `bits` for all.
fn assert_cheaper_than_one_width(layers: &[LayerWidths], bits: u32) {
    let mixed: f64 = layers.iter().map(|layer| layer.error(layer.bits)).sum();
    let uniform: f64 = layers.iter().map(|layer| layer.error([bits; 3])).sum();
    assert!(mixed > 0.0 && mixed < uniform, "{bits}: {mixed} {uniform}");
}

/// A projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    layer: usize,
    matrix: usize,
}

impl Place {
    fn bits(self, layers: &[LayerWidths]) -> u32 {
        layers[self.layer].bits[self.matrix]
    }

    /// The error that is added where this projection gets `bits` instead.
    fn change(self, layers: &[LayerWidths], bits: u32) -> f64 {
        self.error(layers, bits) - self.error(layers, self.bits(layers))
    }

    fn error(self, layers: &[LayerWidths], bits: u32) -> f64 {
        let matrix = [["gate", "up", "down"][self.matrix]];
        let found = layers[self.layer].measured.iter().filter(|found| found.matrices == matrix);
        found.filter(|found| found.bits == bits).map(|found| found.error).sum()
    }
}

/// Asserts that moving bits from one projection to another doesn't lower the error.
fn assert_no_exchange_helps(layers: &[LayerWidths]) {
    const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];
    let places = || (0..4).flat_map(|layer| (0..3).map(move |matrix| Place { layer, matrix }));
    for one in places() {
        for other in places().filter(|other| *other != one) {
            let (a, b) = (one.bits(layers), other.bits(layers));
            for (more, less) in [1, 2].map(|moved| (a + moved, b.saturating_sub(moved))) {
                if WIDTHS.contains(&more) && WIDTHS.contains(&less) {
                    let change = one.change(layers, more) + other.change(layers, less);
                    assert!(change >= 0.0, "{one:?} {other:?}: {change}");
                }
            }
        }
    }
}

#[test]
fn projections_get_2_to_8_bits_that_cost_no_more_than_one_width_of_equal_size() {
    let out = tempfile::tempdir().unwrap();
    let output = out.path().join("out");
    for (width, target) in [(3, 3.5), (4, 4.5)] {
        let (model, receipt) =
            quantize(&options(&format!("target-bits = {target}\nprofile = \"free\"")), &output)
                .unwrap();
        verify(&output, &Quiet).unwrap();
        stored_as_said(&model, &receipt);
        let layers = widths(&receipt);
        assert!(LayerWidths::bits_a_weight(layers.iter()) <= target);
        assert_cheaper_than_one_width(&layers, width);
        assert_no_exchange_helps(&layers);
        for engine in ["vLLM", "SGLang", "transformers 5.23.0"] {
            let refused = |warning: &String| {
                warning.starts_with(engine) && warning.contains("does not take it")
            };
            assert!(receipt.warnings.iter().any(refused), "{engine}");
        }
    }
}

#[test]
fn rounding_to_nearest_gets_widths_too() {
    let out = tempfile::tempdir().unwrap();
    let toml = "solver = \"rtn\"\ntarget-bits = 4.0\nprofile = \"free\"\nasymmetric = true";
    let (model, receipt) = quantize(&options(toml), out.path().join("out").as_path()).unwrap();
    let layers = widths(&receipt);
    assert!(LayerWidths::bits_a_weight(layers.iter()) <= 4.0);
    assert!(layers.iter().any(|layer| layer.bits != layers[0].bits));
    let rounding = |layer: &LayerRecord| layer.encodings.experts.as_ref().unwrap().rounding;
    assert!(receipt.layers.iter().all(|layer| rounding(layer) == Rounding::Nearest));
    assert!(receipt.details::<QuantizedLayer>().iter().all(|(_, layer)| layer.experts.is_empty()));
    // Scales and zero points have the shape of the groups, for any bit width.
    let (_, moe) = model.moes().next().unwrap();
    assert_eq!(moe.experts[0].gate.weight.scale().unwrap().shape(), [128, 4]);
}

#[test]
fn targets_that_no_widths_reach_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |toml: &str, words: &[&str]| {
        let message = quantize(&options(toml), &dir.path().join("out")).unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        assert!(!dir.path().join("out").exists());
    };
    refused("target-bits = 4.4", &["4.5000 to 8.5000", "--profile free"]);
    refused("target-bits = 8.6", &["4.5000 to 8.5000"]);
    refused("target-bits = 2.0\nprofile = \"free\"", &["2.5000 to 8.5000", "larger groups"]);
    refused("target-bits = -1.0", &["--target-bits -1"]);
    refused("target-bits = 5.0\nscheme = \"w4a16\"", &["place of --scheme"]);
    refused("target-bits = 5.0\nformat = \"gptq\"", &["--format"]);
    let mut without = options("target-bits = 5.0\nsolver = \"rtn\"");
    without.calibration.data.clear();
    assert!(
        quantize(&without, &dir.path().join("out")).unwrap_err().to_string().contains("--data")
    );
}
