//! Makes checkpoints of any shape, on which memory is measured.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// The shapes of tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// The sizes of a dense model of the family llama, whose head is its embedding.
pub struct Llama {
    pub layers: usize,
    pub hidden: usize,
    pub width: usize,
    pub vocab: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Llama {
    pub fn shapes(&self) -> Shapes {
        let Self { hidden, width, .. } = *self;
        let states = self.heads * self.head_dim;
        let mut shapes = Shapes::new();
        let mut add = |name: String, shape: &[usize]| shapes.insert(name, shape.to_vec());
        add("model.embed_tokens.weight".to_owned(), &[self.vocab, hidden]);
        add("model.norm.weight".to_owned(), &[hidden]);
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            add(name("input_layernorm"), &[hidden]);
            add(name("post_attention_layernorm"), &[hidden]);
            for projection in ["q", "k", "v"] {
                add(name(&format!("self_attn.{projection}_proj")), &[states, hidden]);
            }
            add(name("self_attn.o_proj"), &[hidden, states]);
            add(name("mlp.gate_proj"), &[width, hidden]);
            add(name("mlp.up_proj"), &[width, hidden]);
            add(name("mlp.down_proj"), &[hidden, width]);
        }
        shapes
    }

    pub fn config(&self) -> Value {
        json!({
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "head_dim": self.head_dim, "vocab_size": self.vocab, "tie_word_embeddings": true,
            "max_position_embeddings": 4096,
        })
    }

    /// Writes it as a checkpoint of `values`, which are bits in bfloat16.
    pub fn write(&self, dir: &Path, values: impl FnMut() -> u16) {
        write(dir, &self.shapes(), &self.config(), values);
    }
}

/// Writes a checkpoint of tensors of `shapes`, which take their bits in bfloat16 from `values`.
pub fn write(dir: &Path, shapes: &Shapes, config: &Value, mut values: impl FnMut() -> u16) {
    let mut bytes = |shape: &[usize]| -> Vec<u8> {
        (0..shape.iter().product()).flat_map(|_| values().to_le_bytes()).collect()
    };
    let data: BTreeMap<_, _> = shapes.iter().map(|(name, shape)| (name, bytes(shape))).collect();
    let views = shapes.iter().map(|(name, shape)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), &data[name]).unwrap())
    });
    std::fs::create_dir(dir).unwrap();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Random numbers that are the same in each run.
pub fn random() -> impl FnMut() -> u32 {
    let mut state = 1u32;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    }
}

/// Numbers in bfloat16 between 2⁻⁷ and 2⁻⁵, of either sign: no two rows are alike.
pub fn varied() -> impl FnMut() -> u16 {
    let mut random = random();
    move || (0x3c00 + ((random() >> 16) & 0x80ff)) as u16
}
