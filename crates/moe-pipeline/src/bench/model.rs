//! Random checkpoints with the proportions of real models.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use half::bf16;
use moe_checkpoint::{
    CONFIG_FILE, Declared, Dtype, Error, Kind, Result, Writer, json, plan_shards,
    write_file_atomically,
};
use moe_math::sampling::{generator, normal};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::spelling::folded;

/// Number of random values that all weights are taken from, each run from its own place.
const VALUES: usize = 1 << 22;
/// After this many values, a weight continues at another place among the values.
const RUN: usize = 1 << 16;
/// A small vocabulary: embeddings and the head take no part in what is measured.
pub(super) const VOCABULARY: usize = 1024;
const SHARD_BYTES: u64 = 5_000_000_000;

/// A model's config, and the names and shapes of its tensors.
#[derive(Deserialize)]
pub(super) struct Proportions {
    /// Layers with mixtures in the whole real model.
    pub layers: usize,
    pub experts: usize,
    /// Neurons that a token passes through, summed over all its experts.
    pub active_width: usize,
    config: Map<String, Value>,
    whole: Map<String, Value>,
    layer: Map<String, Value>,
    expert: Map<String, Value>,
}

/// The models that can be made.
pub(super) const MODELS: [(&str, &str); 3] = [
    ("qwen3-30b-a3b", include_str!("models/qwen3-30b-a3b.json")),
    ("mixtral-8x7b", include_str!("models/mixtral-8x7b.json")),
    ("deepseek-v3", include_str!("models/deepseek-v3.json")),
];

impl Proportions {
    /// The proportions of the model `name`.
    ///
    /// # Errors
    /// [`Kind::Usage`] for any other name.
    pub fn of(name: &str) -> Result<Self> {
        let folded = folded(name);
        let Some((_, text)) = MODELS.iter().find(|(model, _)| *model == folded) else {
            let names: Vec<_> = MODELS.iter().map(|(model, _)| *model).collect();
            return Err(Error::new(Kind::Usage, format!("no built-in model is called {name:?}"))
                .remedy(format!("give one of {}", names.join(", "))));
        };
        serde_json::from_str(text)
            .map_err(|e| Error::new(Kind::Malformed, format!("the proportions of {name}: {e}")))
    }

    /// The tensors of a model of `layers` layers, in the order in which they are written.
    fn declared(&self, layers: usize) -> Vec<Declared> {
        let tensor = |name: String, shape: &Value| {
            let size = |size: &Value| size.as_u64().map_or(VOCABULARY, |size| size as usize);
            let shape =
                shape.as_array().map(|sizes| sizes.iter().map(size).collect()).unwrap_or_default();
            // Expert correction biases are kept in f32.
            let dtype = if name.ends_with("_bias") { Dtype::F32 } else { Dtype::BF16 };
            Declared { name, dtype, shape }
        };
        let mut declared: Vec<Declared> =
            self.whole.iter().map(|(name, shape)| tensor(name.clone(), shape)).collect();
        for layer in 0..layers {
            let of_layer = |name: &str| format!("model.layers.{layer}.{name}");
            declared.extend(self.layer.iter().map(|(name, shape)| tensor(of_layer(name), shape)));
            for expert in 0..self.experts {
                let of_expert =
                    |name: &str| of_layer(&name.replace("{expert}", &expert.to_string()));
                declared
                    .extend(self.expert.iter().map(|(name, shape)| tensor(of_expert(name), shape)));
            }
        }
        declared
    }

    /// Size of the weights of a model of `layers` layers, in bytes.
    pub fn bytes(&self, layers: usize) -> u64 {
        let bytes = |tensor: &Declared| tensor.shape.iter().product::<usize>() as u64 * 2;
        self.declared(layers).iter().map(bytes).sum()
    }

    /// Writes a model of `layers` layers with random weights into `dir`.
    ///
    /// # Errors
    /// [`Kind::Io`] where writing fails.
    pub fn write(&self, layers: usize, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io("cannot make this directory", dir, e))?;
        let declared = self.declared(layers);
        let mut writer = Writer::create(dir, plan_shards(&declared, SHARD_BYTES)?)?;
        let values = normal(VALUES + RUN, 1.0, &mut generator(0, 0));
        // Keyed by the number of inputs, which takes few values in a model.
        let mut scaled: BTreeMap<usize, Vec<bf16>> = BTreeMap::new();
        for (index, tensor) in declared.iter().enumerate() {
            let inputs = tensor.shape.last().copied().unwrap_or(1);
            let scale = 1.0 / (inputs as f32).sqrt();
            let make = || values.iter().map(|value| bf16::from_f32(value * scale)).collect();
            writer.push(
                &tensor.name,
                &bytes(tensor, index, scaled.entry(inputs).or_insert_with(make)),
            )?;
        }
        writer.finish()?;
        self.write_config(layers, dir)
    }

    fn write_config(&self, layers: usize, dir: &Path) -> Result<()> {
        let mut config = self.config.clone();
        config.insert("num_hidden_layers".to_owned(), layers.into());
        config.insert("vocab_size".to_owned(), VOCABULARY.into());
        write_file_atomically(&dir.join(CONFIG_FILE), |file| {
            file.write_all(json::to_pretty(&config).as_bytes())
        })
    }

    /// Writes the same model with holes in place of weights, which is enough to plan passes.
    ///
    /// # Errors
    /// [`Kind::Io`] where writing fails.
    pub fn write_headers(&self, layers: usize, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io("cannot make this directory", dir, e))?;
        for shard in &plan_shards(&self.declared(layers), u64::MAX)? {
            let path = dir.join(&shard.file);
            let write = || {
                let mut file = std::fs::File::create(&path)?;
                file.write_all(&shard.header)?;
                file.set_len(shard.header.len() as u64 + shard.data_bytes())
            };
            write().map_err(|e| Error::io("cannot write this model", &path, e))?;
        }
        self.write_config(layers, dir)
    }
}

/// The values of a tensor: ones for norms, zeros for biases, and for matrices runs of `values`,
/// which have variance 1 / inputs.
fn bytes(tensor: &Declared, index: usize, values: &[bf16]) -> Vec<u8> {
    let count: usize = tensor.shape.iter().product();
    if tensor.dtype == Dtype::F32 {
        return vec![0; count * 4];
    }
    if tensor.shape.len() == 1 {
        return bf16::ONE.to_le_bytes().repeat(count);
    }
    let mut bytes = Vec::with_capacity(count * 2);
    for run in 0..count.div_ceil(RUN) {
        // Scatters the starting places (Knuth's multiplicative hash).
        let from = (index * 7919 + run).wrapping_mul(2_654_435_761) % VALUES;
        bytes.extend_from_slice(bytemuck::cast_slice(
            &values[from..from + RUN.min(count - run * RUN)],
        ));
    }
    bytes
}
