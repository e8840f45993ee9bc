//! From names to layers: a checkpoint read through its family.

use std::collections::BTreeMap;
use std::path::Path;

use moe_checkpoint::{CONFIG_FILE, Checkpoint, Dtype};
use serde_json::{Map, Value};

use crate::assembly::{Head, Model};
use crate::config::Config;
use crate::family::{DenseRule, ExpertNames, Family, Layout, MoeRule, QkNormKind, SharedRule, family};
use crate::layer::{Attention, Expert, Ffn, Layer, Linear, Moe, QkNorm, Router, SharedExpert};
use crate::rope::Rope;
use crate::weight::Weight;
use crate::{Error, Kind, Result};

/// The names that all families so far share.
pub(crate) mod names {
    pub const EMBED: &str = "model.embed_tokens.weight";
    pub const FINAL_NORM: &str = "model.norm.weight";
    pub const HEAD: &str = "lm_head.weight";
    pub const LAYERS: &str = "model.layers.";
    pub const ATTENTION_NORM: &str = "input_layernorm.weight";
    pub const FFN_NORM: &str = "post_attention_layernorm.weight";
    pub const Q: &str = "self_attn.q_proj.weight";
    pub const K: &str = "self_attn.k_proj.weight";
    pub const V: &str = "self_attn.v_proj.weight";
    pub const O: &str = "self_attn.o_proj.weight";
    pub const Q_NORM: &str = "self_attn.q_norm.weight";
    pub const K_NORM: &str = "self_attn.k_norm.weight";
    /// Buffers that old writers saved; loaders compute them.
    pub const IGNORED_SUFFIX: &str = "rotary_emb.inv_freq";
}

impl Model {
    /// Opens the checkpoint directory `dir`.
    ///
    /// # Errors
    /// What [`Checkpoint::open`] and [`Model::read`] return.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::read(&Checkpoint::open(dir)?)
    }

    /// Understands an open checkpoint. Reads no weights.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an architecture, option or encoding this program doesn't know;
    /// [`Kind::Missing`] and [`Kind::Mismatch`] where tensors don't fit the config; all name tensor and file.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let tensors = checkpoint.tensors().iter().map(|(n, t)| (n.clone(), Weight::from(t.clone()))).collect();
        Self::assemble(checkpoint.config().clone(), &checkpoint.dir().join(CONFIG_FILE), tensors)
    }

    /// Builds a model from a config and named weights; `file` stands for the config in messages.
    ///
    /// # Errors
    /// As for [`Model::read`].
    pub fn assemble(raw: Map<String, Value>, file: &Path, tensors: BTreeMap<String, Weight>) -> Result<Self> {
        let family = family_of(&raw, file)?;
        let config = Config { raw: &raw, family, file };
        check_options(config)?;
        let mut reader = Reader { config, tensors };
        let shape = Shape::read(config)?;
        // Every layer has tensors, so a larger count is nonsense; it is refused before anything is sized by it.
        let layers = config.positive("num_hidden_layers")?;
        if layers > reader.tensors.len() {
            let what = format!("is {layers}, but there are only {} tensors", reader.tensors.len());
            return Err(config.error("num_hidden_layers", &what));
        }
        let windows = family.attention.window.decode(&config, layers)?;
        let tied = config.bool("tie_word_embeddings")?;
        let embed = reader.embedding(tied, &shape)?;
        let layers = (0..layers).map(|l| reader.layer(l, &shape, windows[l])).collect::<Result<Vec<_>>>()?;
        let final_norm = reader.take(names::FINAL_NORM, &[shape.hidden])?;
        // transformers 5 keeps a head that a tied checkpoint holds all the same.
        let head = match tied && !reader.tensors.contains_key(names::HEAD) {
            true => Head::Tied,
            false => Head::Own(reader.take(names::HEAD, &[shape.vocab, shape.hidden])?),
        };
        let rope = Rope::decode(config)?;
        let norm_eps = config.optional_f64("rms_norm_eps")?.filter(|eps| *eps >= 0.0);
        let norm_eps = norm_eps.ok_or_else(|| config.error("rms_norm_eps", "is null or negative"))?;
        let extra = reader.rest()?;
        let Shape { hidden, vocab, heads, kv_heads, head_dim } = shape;
        let config_file = file.to_owned();
        Ok(Self {
            family,
            config: raw,
            config_file,
            hidden,
            vocab,
            heads,
            kv_heads,
            head_dim,
            norm_eps,
            rope,
            embed,
            layers,
            final_norm,
            head,
            extra,
        })
    }
}

fn family_of(raw: &Map<String, Value>, file: &Path) -> Result<&'static Family> {
    let model_type = raw.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        Error::new(Kind::Malformed, "config.json has no model_type").file(file).remedy("is this a language model?")
    })?;
    family(model_type).map_err(|e| e.file(file))
}

/// Refuses by name what would silently change the function.
fn check_options(config: Config<'_>) -> Result<()> {
    let set = |key: &str| config.get(key).is_some_and(|v| !v.is_null());
    if set("quantization_config") {
        return Err(Error::new(Kind::Unsupported, "quantized checkpoints are not read by this version")
            .file(config.file)
            .remedy("start from the unquantized checkpoint"));
    }
    match config.get("hidden_act").and_then(Value::as_str) {
        Some("silu" | "swish") => Ok(()),
        other => Err(Error::new(Kind::Unsupported, format!("hidden_act {other:?} is not supported"))
            .file(config.file)
            .remedy("supported: silu")),
    }
}

struct Shape {
    hidden: usize,
    vocab: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    fn read(config: Config<'_>) -> Result<Self> {
        let hidden = config.positive("hidden_size")?;
        let heads = config.positive("num_attention_heads")?;
        let kv_heads = config.optional_usize("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = config.optional_usize("head_dim")?.unwrap_or(hidden / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(
                config.error("num_key_value_heads", &format!("is {kv_heads}, which doesn't divide {heads} heads"))
            );
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(config.error("head_dim", &format!("is {head_dim}; rotary embeddings need an even number")));
        }
        Ok(Self { hidden, vocab: config.positive("vocab_size")?, heads, kv_heads, head_dim })
    }
}

/// Takes tensors out of a map, so that what is left over is what nobody knows.
struct Reader<'a> {
    config: Config<'a>,
    tensors: BTreeMap<String, Weight>,
}

impl Reader<'_> {
    fn take(&mut self, name: impl AsRef<str>, shape: &[usize]) -> Result<Weight> {
        let name = name.as_ref();
        let weight = self.tensors.remove(name).ok_or_else(|| {
            Error::new(Kind::Missing, "a tensor that the config calls for is missing")
                .tensor(name)
                .file(self.config.file)
                .remedy(match name {
                    names::HEAD => "if the head is the embedding, set \"tie_word_embeddings\": true in config.json",
                    _ => "the checkpoint is incomplete, or config.json is of another model",
                })
        })?;
        let file = weight.stored().map_or(self.config.file, |s| s.path());
        if weight.shape() != shape {
            return Err(Error::new(
                Kind::Mismatch,
                format!("shape {:?}, but the config calls for {shape:?}", weight.shape()),
            )
            .tensor(name)
            .file(file)
            .remedy("the checkpoint and config.json don't belong together"));
        }
        if !matches!(weight.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(Error::new(Kind::Unsupported, format!("{} weights are not supported", weight.dtype()))
                .tensor(name)
                .file(file)
                .remedy("supported: F32, F16, BF16"));
        }
        Ok(weight)
    }

    /// A tied checkpoint may hold the matrix under the head's name only.
    fn embedding(&mut self, tied: bool, shape: &Shape) -> Result<Weight> {
        let only_head = tied && !self.tensors.contains_key(names::EMBED) && self.tensors.contains_key(names::HEAD);
        self.take(if only_head { names::HEAD } else { names::EMBED }, &[shape.vocab, shape.hidden])
    }

    /// `name` is the weight's; its bias has the same name with `.bias`.
    fn linear(&mut self, name: &str, bias: bool, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.take(name, &shape)?;
        let bias = match bias {
            true => Some(self.take(bias_name(name), &shape[..1])?),
            false => None,
        };
        Ok(Linear { weight, bias })
    }

    fn layer(&mut self, index: usize, shape: &Shape, window: Option<usize>) -> Result<Layer> {
        let prefix = format!("{}{index}.", names::LAYERS);
        let family = self.config.family;
        let attention_norm = self.take(prefix.clone() + names::ATTENTION_NORM, &[shape.hidden])?;
        let attention = self.attention(&prefix, shape, window)?;
        let ffn_norm = self.take(prefix.clone() + names::FFN_NORM, &[shape.hidden])?;
        let ffn = match (&family.moe, &family.dense) {
            (Some(rule), _) if is_sparse(&self.config, rule, index)? => {
                Ffn::Moe(Box::new(self.moe(&prefix, rule, shape.hidden)?))
            }
            (_, Some(rule)) => Ffn::Dense(Box::new(self.dense(&prefix, rule, shape.hidden)?)),
            (_, None) => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("layer {index} is dense, which this family can't be"),
                )
                .file(self.config.file)
                .remedy("get the config.json that belongs to these weights"));
            }
        };
        Ok(Layer { attention_norm, attention, ffn_norm, ffn })
    }

    fn attention(&mut self, prefix: &str, shape: &Shape, window: Option<usize>) -> Result<Attention> {
        let rule = &self.config.family.attention;
        let (qkv_bias, o_bias) = (self.config.flag(&rule.qkv_bias)?, self.config.flag(&rule.o_bias)?);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let at = |name: &str| format!("{prefix}{name}");
        let mut norms =
            |q, k| -> Result<_> { Ok((self.take(at(names::Q_NORM), &[q])?, self.take(at(names::K_NORM), &[k])?)) };
        let qk_norm = match rule.qk_norm {
            QkNormKind::None => None,
            QkNormKind::PerHead => {
                let (q, k) = norms(shape.head_dim, shape.head_dim)?;
                Some(QkNorm::PerHead { q, k })
            }
            QkNormKind::FullWidth => {
                let (q, k) = norms(q, kv)?;
                Some(QkNorm::FullWidth { q, k })
            }
        };
        let clip = rule.clip.as_deref().map(|key| self.config.optional_f64(key)).transpose()?.flatten();
        Ok(Attention {
            q: self.linear(&at(names::Q), qkv_bias, [q, shape.hidden])?,
            k: self.linear(&at(names::K), qkv_bias, [kv, shape.hidden])?,
            v: self.linear(&at(names::V), qkv_bias, [kv, shape.hidden])?,
            o: self.linear(&at(names::O), o_bias, [shape.hidden, q])?,
            qk_norm,
            clip,
            window,
        })
    }

    fn expert(&mut self, prefix: &str, names: &ExpertNames, bias: bool, width: usize, hidden: usize) -> Result<Expert> {
        let at = |name: &str| format!("{prefix}{name}");
        Ok(Expert {
            gate: self.linear(&at(&names.gate), bias, [width, hidden])?,
            up: self.linear(&at(&names.up), bias, [width, hidden])?,
            down: self.linear(&at(&names.down), bias, [hidden, width])?,
        })
    }

    fn dense(&mut self, prefix: &str, rule: &DenseRule, hidden: usize) -> Result<Expert> {
        let (bias, width) = (self.config.flag(&rule.bias)?, self.config.positive(&rule.width)?);
        self.expert(prefix, &rule.names, bias, width, hidden)
    }

    fn moe(&mut self, prefix: &str, rule: &MoeRule, hidden: usize) -> Result<Moe> {
        let (experts, width) = (count_experts(&self.config, rule)?, self.config.positive(&rule.width)?);
        let top_k = self.config.positive(&rule.top_k)?;
        if top_k > experts {
            return Err(self.config.error(&rule.top_k, &format!("is {top_k}, more than the {experts} experts")));
        }
        let layout = self.find_layout(prefix, rule)?;
        let router = Router {
            weight: self.take(format!("{prefix}{}", layout.router), &[experts, hidden])?,
            top_k,
            normalize: self.config.flag(&rule.normalize)?,
        };
        let experts = self.experts(prefix, layout, experts, width, hidden)?;
        let shared = rule.shared.as_ref().map(|rule| self.shared(prefix, rule, hidden)).transpose()?;
        Ok(Moe { router, experts, shared })
    }

    fn find_layout<'f>(&self, prefix: &str, rule: &'f MoeRule) -> Result<&'f Layout> {
        let first_tensor = |layout: &Layout| match (&layout.expert, &layout.fused) {
            (Some(names), _) => format!("{prefix}{}", names.gate.replace("{expert}", "0")),
            (_, Some(names)) => format!("{prefix}{}", names.gate_up),
            (None, None) => unreachable!("a test excludes such family files"),
        };
        let found = rule.layouts.iter().find(|l| self.tensors.contains_key(&first_tensor(l)));
        found.ok_or_else(|| {
            Error::new(Kind::Missing, "this layer has no experts in any layout that is known")
                .tensor(first_tensor(&rule.layouts[0]))
                .file(self.config.file)
                .remedy("the checkpoint is incomplete, or config.json is of another model")
        })
    }

    fn experts(
        &mut self,
        prefix: &str,
        layout: &Layout,
        count: usize,
        width: usize,
        hidden: usize,
    ) -> Result<Vec<Expert>> {
        if let Some(fused) = &layout.fused {
            let gate_up = self.take(format!("{prefix}{}", fused.gate_up), &[count, 2 * width, hidden])?;
            let down = self.take(format!("{prefix}{}", fused.down), &[count, hidden, width])?;
            return Ok((0..count).map(|e| slice_fused(&gate_up, &down, e, width)).collect());
        }
        let names = layout.expert.as_ref().expect("a layout that isn't fused names experts");
        let named = |e: usize| {
            let of = |name: &String| name.replace("{expert}", &e.to_string());
            ExpertNames { gate: of(&names.gate), up: of(&names.up), down: of(&names.down) }
        };
        (0..count).map(|e| self.expert(prefix, &named(e), false, width, hidden)).collect()
    }

    fn shared(&mut self, prefix: &str, rule: &SharedRule, hidden: usize) -> Result<SharedExpert> {
        let width = self.config.positive(&rule.width)?;
        Ok(SharedExpert {
            expert: self.expert(prefix, &rule.expert, false, width, hidden)?,
            gate: self.take(format!("{prefix}{}", rule.gate), &[1, hidden])?,
        })
    }

    /// What nobody took: carried, unless it lies in a layer, where it would mean something.
    fn rest(self) -> Result<BTreeMap<String, Weight>> {
        let mut rest = self.tensors;
        rest.retain(|name, _| !name.ends_with(names::IGNORED_SUFFIX));
        match rest.iter().find(|(name, _)| name.starts_with(names::LAYERS)) {
            None => Ok(rest),
            Some((name, weight)) => Err(Error::new(
                Kind::Unsupported,
                format!("a {} model with this config has no such tensor", self.config.family.model_type),
            )
            .tensor(name)
            .file(weight.stored().map_or(self.config.file, |s| s.path()))
            .remedy("config.json is of another model, or of a variant that is not supported")),
        }
    }
}

/// Expert `e` of the fused tensors `[E, 2I, H]` and `[E, H, I]`, as views.
fn slice_fused(gate_up: &Weight, down: &Weight, e: usize, width: usize) -> Expert {
    let linear = |weight: Weight| Linear { weight, bias: None };
    let of = |fused: &Weight| fused.stored().expect("fused tensors come from files").at(e);
    let gate_up = of(gate_up);
    Expert {
        gate: linear(gate_up.rows(0, width).into()),
        up: linear(gate_up.rows(width, 2 * width).into()),
        down: linear(of(down).into()),
    }
}

/// The name of the bias that belongs to the weight `name`.
pub(crate) fn bias_name(name: &str) -> String {
    format!("{}.bias", name.strip_suffix(".weight").unwrap_or(name))
}

fn count_experts(config: &Config<'_>, rule: &MoeRule) -> Result<usize> {
    let given =
        rule.experts.iter().chain(&rule.experts_also).find(|key| config.raw.get(*key).is_some_and(|v| !v.is_null()));
    let default = || rule.experts.iter().find(|key| config.get(key).is_some()).unwrap_or(&rule.experts[0]);
    config.positive(given.unwrap_or_else(default))
}

/// Whether layer `index` is a mixture of experts, as the config says.
pub(crate) fn is_sparse(config: &Config<'_>, rule: &MoeRule, index: usize) -> Result<bool> {
    if let Some(key) = &rule.dense_layers {
        let dense = match config.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => list.iter().any(|v| v.as_u64() == Some(index as u64)),
            Some(_) => return Err(config.error(key, "is not a list of layers")),
        };
        if dense {
            return Ok(false);
        }
    }
    match &rule.sparse_step {
        Some(key) => Ok((index + 1).is_multiple_of(config.positive(key)?)),
        None => Ok(true),
    }
}
