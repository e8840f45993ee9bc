//! Routers made from text: prompts compared with mergekit and transformers, k-means with its
//! promises.

use candle_core::Tensor;
use moe_checkpoint::Checkpoint;
use moe_forward::{Batch, Corpus, Observer, Prompts, Sweep, TokenizeOptions, load_prompts};
use moe_math::{Compute, encoding};
use moe_model::Model;
use moe_passes::UpcycleOptions;
use moe_pipeline::{Quiet, convert};
use serde_json::{Value, json};

use crate::common::{golden, run};

/// The prompts of golden/mergekit/configs.py, from which the reference was made.
fn prompts() -> Value {
    json!([
        { "positive": ["The old house stood at the end of the street.", "She said that she would come back", "Once upon a time"] },
        { "positive": ["def add(a, b):\n    return a + b", "import os"],
          "negative": ["The old house stood at the end of the street."] },
        { "positive": ["La casa vieja estaba al final de la calle.", "El gato duerme"] },
        { "positive": ["12 + 30 = 42", "What is 7 * 8?"], "negative": ["def f(x): return x", "El gato duerme todo el dia"] },
    ])
}

struct Run {
    directory: tempfile::TempDir,
    receipt: Value,
}

impl Run {
    /// Upcycles `input` with these options; `${prompts}` in them stands for the file of
    /// [`prompts`].
    fn new(input: &str, toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("prompts.json");
        std::fs::write(&file, prompts().to_string()).unwrap();
        let text = toml.replace("${prompts}", &file.display().to_string());
        let text = text.replace("${golden}", &golden("").display().to_string());
        let options: UpcycleOptions = toml::from_str(&text).unwrap();
        let done =
            convert(&[&options], &golden(input), &directory.path().join("out"), &run(), &Quiet)
                .unwrap();
        Self { directory, receipt: serde_json::to_value(&done.receipt).unwrap() }
    }

    fn model(&self) -> Model {
        Model::open(&self.directory.path().join("out")).unwrap()
    }

    /// The router of layer `layer`, `[experts · hidden]`.
    fn router(&self, layer: usize) -> Vec<f32> {
        let model = self.model();
        let weight = &model.layers[layer].ffn.moe().unwrap().router.weight;
        encoding::decode_f32(&weight.read().unwrap(), moe_forward::candle_dtype(weight).unwrap())
            .unwrap()
    }
}

fn reference(file: &str, layer: usize) -> Vec<f32> {
    let bytes = std::fs::read(golden("mergekit/reference").join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(&format!("layer.{layer}")).unwrap();
    encoding::decode_f32(data.data(), candle_core::DType::F32).unwrap()
}

/// Rows are written in bf16, which has 8 bits: half a unit in the last place.
fn assert_rounded(found: &[f32], wanted: &[f32], slack: f32) {
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= wanted.abs() / 256.0 + slack, "{found}, not {wanted}");
    }
}

#[test]
fn prompts_become_the_tokens_that_mergekit_makes_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prompts.json");
    std::fs::write(&file, prompts().to_string()).unwrap();
    let Prompts { batch, kinds, skip } =
        load_prompts(&file, &golden("mergekit/inputs/a"), 4).unwrap();
    assert_eq!(skip, 1, "the BOS token");
    let tokens: Value =
        moe_checkpoint::json::read(&golden("mergekit/reference/tokens.json")).unwrap();
    let mut found = vec![json!({ "positive": [], "negative": [] }); 4];
    for (span, (set, positive)) in batch.spans.iter().zip(kinds) {
        let key = if positive { "positive" } else { "negative" };
        found[set][key].as_array_mut().unwrap().push(json!(batch.ids[span.clone()]));
    }
    assert_eq!(json!(found), tokens["prompts"]);
}

/// mergekit's own router rows for `cheap_embed`, and those of an independent script.
#[test]
fn embedding_routers_are_mergekits() {
    let run = Run::new(
        "mergekit/inputs/a",
        "experts = 4\ntop-k = 2\nrouter = 'cheap-embed'\nprompts = '${prompts}'\nrouter-entropy = 0.0",
    );
    let theirs = Checkpoint::open(&golden("mergekit/cases/cheap_embed")).unwrap();
    for layer in 0..2 {
        let found = run.router(layer);
        assert_rounded(&found, &reference("cheap_embed.safetensors", layer), 1e-7);
        let name = format!("model.layers.{layer}.mlp.gate.weight");
        let weight = moe_model::Weight::from(theirs.tensors()[&name].clone());
        let theirs =
            encoding::decode_f32(&weight.read().unwrap(), candle_core::DType::BF16).unwrap();
        assert_rounded(&found, &theirs, 1e-7);
    }
}

/// Mean inputs of the feed-forward network, as hooks in transformers 5.23 saw them.
#[test]
fn prompt_routers_are_the_inputs_that_transformers_gives_the_network() {
    let run = Run::new(
        "mergekit/inputs/a",
        "experts = 4\ntop-k = 2\nrouter = 'prompts'\nprompts = '${prompts}'\nrouter-entropy = 0.0",
    );
    for layer in 0..2 {
        assert_rounded(
            &run.router(layer),
            &reference("hidden_post_norm_no_bos.safetensors", layer),
            1e-5,
        );
    }
}

/// The inputs of one layer's feed-forward network.
struct Inputs {
    layer: usize,
    found: Option<Tensor>,
}

impl Observer for Inputs {
    fn ffn_input(&mut self, layer: usize, x: &Tensor) -> moe_checkpoint::Result<()> {
        if layer == self.layer {
            self.found = Some(x.clone());
        }
        Ok(())
    }
}

fn inputs_of(model: &Model, batch: &Batch, layer: usize) -> Vec<Vec<f32>> {
    let compute = Compute::cpu();
    let mut inputs = Inputs { layer, found: None };
    Sweep::new(model, batch, &compute).unwrap().run(&mut inputs).unwrap();
    inputs.found.unwrap().to_vec2().unwrap()
}

const DATA: &str = "data = ['${golden}/text/english.calibration.txt', '${golden}/text/code.calibration.txt']\ndata-tokens = 1024";

/// The tokens of [`DATA`].
fn calibration(dense: &Model) -> Batch {
    let specs = ["english", "code"].map(|name| {
        let path = golden("text").join(format!("{name}.calibration.txt"));
        path.display().to_string().parse().unwrap()
    });
    let tokenize = TokenizeOptions {
        sequence_length: 512,
        vocab: dense.vocab,
        max_tokens: Some(1024),
        ..TokenizeOptions::default()
    };
    Corpus::load(&specs, &golden("models/dense"), tokenize).unwrap().batch()
}

/// Averages over inputs: the entropy of the choice that a router's rows make, and the input.
struct Averages {
    entropy: f64,
    mean: Vec<f64>,
}

fn averages(rows: &[&[f32]], inputs: &[Vec<f32>]) -> Averages {
    let mut entropy = 0.0;
    let mut mean = vec![0.0; inputs[0].len()];
    for x in inputs {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        mean.iter_mut().zip(&x).for_each(|(m, x)| *m += x / inputs.len() as f64);
        let logits: Vec<f64> = rows.iter().map(|row| dot(row, &x)).collect();
        let largest = logits.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = logits.iter().map(|z| (z - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        entropy -= weights.iter().map(|w| w / sum * (w / sum).ln()).sum::<f64>();
    }
    Averages { entropy: entropy / inputs.len() as f64, mean }
}

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum()
}

fn length(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// In f64, from the written rows: routing has the requested entropy, and no row leans towards the
/// mean input.
#[test]
fn kmeans_routers_have_the_entropy_that_was_asked_for_and_no_favourite() {
    let (experts, hidden) = (8, 128);
    for share in [0.5, 0.9] {
        let options = format!(
            "experts = {experts}\ntop-k = 2\nrouter = 'kmeans'\nrouter-entropy = {share:?}\n{DATA}"
        );
        let run = Run::new("models/dense", &options);
        assert_eq!(run.receipt["identity"]["kind"], "exact");
        assert!(run.receipt["measured"]["max_logit_difference"].as_f64().unwrap() < 1e-4);
        let dense = Model::open(&golden("models/dense")).unwrap();
        let batch = calibration(&dense);
        for layer in [0, 3] {
            let (inputs, router) = (inputs_of(&dense, &batch, layer), run.router(layer));
            let rows: Vec<&[f32]> = router.chunks(hidden).collect();
            let Averages { entropy, mean } = averages(&rows, &inputs);
            let found = entropy / (experts as f64).ln();
            assert!((found - share).abs() < 5e-3, "layer {layer}: {found}, not {share}");
            for row in &rows {
                let long: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                let cosine = dot(row, &mean) / length(&long) / length(&mean);
                assert!(
                    cosine.abs() < 5e-3,
                    "layer {layer}: a row leans on the mean input by {cosine}"
                );
            }
            let sizes = &run.receipt["layers"][layer]["details"]["router"]["clusters"]["sizes"];
            let sizes: Vec<u64> = serde_json::from_value(sizes.clone()).unwrap();
            assert_eq!(sizes.iter().sum::<u64>() as usize, inputs.len());
        }
    }
}

/// The same inputs, options and seed give the same bytes for any number of threads.
#[test]
fn surveyed_routers_do_not_depend_on_threads() {
    let options = "experts = 4\ntop-k = 4\ninit = 'partition'\npartition-by = 'activations'\nrouter = 'activations'\n\
                   data = ['${golden}/text/code.calibration.txt']\ndata-tokens = 512";
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = pool.install(|| Run::new("models/dense", options));
        std::fs::read(run.directory.path().join("out/SHA256SUMS")).unwrap()
    };
    assert_eq!(run(1), run(3));
}
