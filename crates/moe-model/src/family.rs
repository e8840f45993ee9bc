//! Families as data: tensor names, config keys and routing rules of one `model_type` each.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use include_dir::{Dir, include_dir};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::layer::{GroupScore, RouterPrecision, Scoring};
use crate::strict::Strict;
use crate::window::WindowRule;
use crate::{Error, Kind, Result};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/families");

/// Something that a family fixes, or that a config key of this name switches.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Flag {
    /// The same in every model of the family.
    Fixed(bool),
    /// Read from this config key.
    Key(String),
}

impl Default for Flag {
    fn default() -> Self {
        Flag::Fixed(false)
    }
}

/// Which normalisation of queries and keys a family has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNormKind {
    /// None.
    #[default]
    None,
    /// Over each head.
    PerHead,
    /// Over all heads at once.
    FullWidth,
}

/// A family's attention.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttentionRule {
    /// Whether query, key and value projections have biases.
    pub qkv_bias: Flag,
    /// Whether the output projection has a bias.
    pub o_bias: Flag,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNormKind,
    /// The config key that switches this normalisation; without one it is always there.
    pub qk_norm_key: Option<String>,
    /// Whether `partial_rotary_factor` says how much of a head is rotated.
    pub partial_rotary: bool,
    /// Whether neighbouring dimensions are rotated together.
    pub interleaved: Flag,
    /// Latent attention, where it is that; `qkv_bias` then speaks of the projections to the
    /// latents.
    pub latent: Option<LatentRule>,
    /// The config key of the clamp on projected queries, keys and values.
    pub clip: Option<String>,
    /// Which layers have a sliding window.
    pub window: WindowRule,
}

/// A family's latent attention.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentRule {
    /// The config key of the width of the queries' latent; null for queries without one.
    pub q_rank: String,
    /// The config key of the width of the latent of keys and values.
    pub kv_rank: String,
    /// The config key of the width of a head's part without position.
    pub nope: String,
    /// The config key of the width of the rotary part.
    pub rope: String,
    /// The config key of the width of a head's values.
    pub value: String,
    /// ε of the latents' norms, which no config key sets.
    pub norm_eps: f64,
    /// Whether transformers makes rotary tables as wide as the config key `head_dim`, which must
    /// then be `rope`'s.
    #[serde(default)]
    pub tables_of_head_dim: bool,
}

/// Names of a feed-forward network's weights below the layer's prefix.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertNames {
    /// Gate projection (the one that goes through the activation).
    pub gate: String,
    /// Up projection.
    pub up: String,
    /// Down projection.
    pub down: String,
}

/// A family's dense feed-forward block.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseRule {
    /// The config key of the width.
    pub width: String,
    /// Whether the three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Names of the weights.
    #[serde(default = "dense_names")]
    pub names: ExpertNames,
}

fn softmax() -> Scoring {
    Scoring::Softmax
}

fn dense_names() -> ExpertNames {
    let name = |n: &str| format!("mlp.{n}_proj.weight");
    ExpertNames { gate: name("gate"), up: name("up"), down: name("down") }
}

/// Names of experts that are stored as one 3-D tensor: `gate_up [E, 2I, H]` and `down [E, H, I]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusedNames {
    /// Gate rows, then up rows, of every expert.
    pub gate_up: String,
    /// Down projections of every expert.
    pub down: String,
}

/// One way in which a mixture of experts lies on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The router's weight.
    pub router: String,
    /// The router's bias, which every model of the family then has.
    pub bias: Option<String>,
    /// Names of expert `{expert}`, where every expert has tensors of its own.
    pub expert: Option<ExpertNames>,
    /// Names of the fused tensors.
    pub fused: Option<FusedNames>,
    /// Whether transformers doesn't know these names, and starts such experts at random.
    #[serde(default)]
    pub is_unknown: bool,
}

/// A family's shared expert.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedRule {
    /// The config key of the width.
    pub width: SharedWidth,
    /// Names of its network.
    pub expert: ExpertNames,
    /// Whether its three projections have biases.
    #[serde(default)]
    pub bias: Flag,
    /// Name of the sigmoid gate, `[1, hidden]`, where it has one.
    pub gate: Option<String>,
}

/// How wide a shared expert is.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum SharedWidth {
    /// As this config key says.
    Key(String),
    /// As many routed experts as this config key says.
    Experts {
        /// The config key.
        experts: String,
    },
}

/// How a family's experts are grouped.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupsRule {
    /// The config key of the number of groups.
    pub count: String,
    /// The config key of the number of groups that a token can go to.
    pub kept: String,
    /// What groups are ranked by.
    pub score: GroupScore,
    /// Where groups count only if a config key has a certain value.
    pub when: Option<KeyIs>,
}

/// A config key and a value of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyIs {
    /// The key.
    pub key: String,
    /// Its value.
    pub is: String,
}

/// A family's layers for multi-token prediction.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtpRule {
    /// The config key of their number.
    pub count: String,
}

/// A family's mixture of experts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeRule {
    /// Config keys of the number of experts: the first that is there is read, all are written.
    pub experts: Vec<String>,
    /// Config keys of the same number that are read, but not written.
    #[serde(default)]
    pub experts_also: Vec<String>,
    /// Config keys that must give this number where the config has an `attribute_map` of its own,
    /// since that takes the place of the map by which transformers finds it; None where it then
    /// doesn't find it at all.
    pub without_map: Option<Vec<String>>,
    /// The config key of the number of experts a token goes to.
    pub top_k: String,
    /// The config key of an expert's width.
    pub width: String,
    /// What transformers computes routers in.
    pub precision: RouterPrecision,
    /// What makes scores of a router's logits.
    #[serde(default = "softmax")]
    pub scoring: Scoring,
    /// Groups of experts.
    pub groups: Option<GroupsRule>,
    /// Whether selected scores are divided by their sum.
    pub normalize: Flag,
    /// The config key of what then multiplies them.
    pub scale: Option<String>,
    /// The config key of the number of layers in front that stay dense.
    pub dense_first: Option<String>,
    /// The config key of the period of sparse layers: layer i is one if `(i + 1) % step == 0`.
    pub sparse_step: Option<String>,
    /// The config key that lists layers which stay dense.
    pub dense_layers: Option<String>,
    /// The shared expert.
    pub shared: Option<SharedRule>,
    /// How it lies on disk; the first layout is written, all are read.
    pub layouts: Vec<Layout>,
}

/// A model that a stock loader gets wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caveat {
    /// Which models of the family.
    pub when: CaveatWhen,
    /// Which loader, what happens, and what to do.
    pub note: String,
}

/// What a [`Caveat`] applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaveatWhen {
    /// Models with a sliding window in some layer.
    SlidingWindow,
    /// Models whose heads don't add up to the hidden size.
    HeadDim,
    /// Models whose latent attention scales scores by more than 1 / √(width of a head's queries):
    /// yarn with `mscale_all_dim`.
    ScoreScale,
    /// Models whose config has a window, where no layer has one.
    IdleWindow,
    /// Models with biases in dense blocks or shared experts, but none in routed experts.
    BiasedDense,
}

/// Which class transformers makes a family's tokenizer of.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerRule {
    /// The class where the tokenizer's files name none.
    pub class: String,
    /// Whether it is this class whatever the files name: transformers holds those of the family to
    /// be wrong.
    #[serde(default)]
    pub overrules: bool,
}

/// Keys of `rope_scaling` that versions of transformers before 5 fail without.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OlderScaling {
    /// Keys that must be there.
    pub needs: Vec<String>,
    /// Keys that must be numbers where they are there.
    pub numbers: Vec<String>,
}

/// Everything that is particular to one `model_type`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The value of the config key `model_type`.
    pub model_type: String,
    /// The class name that is written to the config key `architectures`.
    pub architecture: String,
    /// MoE families that can hold an upcycled model of this family; the first is the default.
    #[serde(default)]
    pub upcycles_to: Vec<String>,
    /// Families that can hold a model of this family once all its layers are dense, the likeliest
    /// first.
    #[serde(default)]
    pub distills_to: Vec<String>,
    /// Why there are none.
    pub undistilled: Option<String>,
    /// Which class stock loaders make its tokenizer of; without one, what the tokenizer's files
    /// name.
    pub tokenizer: Option<TokenizerRule>,
    /// Config keys that mean something in this family only.
    #[serde(default)]
    pub own_keys: Vec<String>,
    /// Attention.
    pub attention: AttentionRule,
    /// The dense block, if the family has one.
    pub dense: Option<DenseRule>,
    /// The mixture of experts, if the family has one.
    pub moe: Option<MoeRule>,
    /// Layers for multi-token prediction, if the family has them.
    pub mtp: Option<MtpRule>,
    /// Config keys that may only have these values, if they are there: others mean another
    /// function.
    #[serde(default)]
    pub only: BTreeMap<String, Vec<Value>>,
    /// Keys of `only` that transformers doesn't read: it computes as if they had such a value.
    #[serde(default)]
    pub only_ignored: Vec<String>,
    /// What stock loaders assume for config keys that are missing. TOML has no null: `"null"`
    /// stands for it.
    pub defaults: Map<String, Value>,
    /// What stock loaders do wrong with valid models.
    #[serde(default)]
    pub caveats: Vec<Caveat>,
    /// Keys that are written into a converted config unless the source has them.
    #[serde(default)]
    pub written: Map<String, Value>,
    /// Config keys whose values must be of one JSON type, since transformers 5 refuses others.
    pub strict: Strict,
    /// Config keys whose type takes null, though transformers then fails at computing with them.
    #[serde(default)]
    pub never_null: Vec<String>,
    /// The config key that transformers makes yarn's tables of, and has no value for where it is
    /// missing.
    pub yarn_needs: Option<String>,
    /// The same of versions before 5 alone.
    pub older_yarn_needs: Option<String>,
    /// What versions before 5 compute with of a `rope_scaling` of any type.
    pub older_rope_scaling: Option<OlderScaling>,
}

impl Family {
    /// Whether every token goes through an expert beside the routed ones.
    pub fn has_shared_expert(&self) -> bool {
        self.moe.as_ref().is_some_and(|moe| moe.shared.is_some())
    }
}

/// Every family by `model_type`.
///
/// # Panics
/// If a family file is broken, which a test excludes.
pub fn families() -> &'static BTreeMap<String, Family> {
    static FAMILIES: OnceLock<BTreeMap<String, Family>> = OnceLock::new();
    FAMILIES.get_or_init(|| {
        FILES
            .files()
            .map(|file| {
                let text = file.contents_utf8().expect("family files are text");
                let mut family: Family = toml::from_str(text)
                    .unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
                for value in family.defaults.values_mut().filter(|v| *v == "null") {
                    *value = Value::Null;
                }
                (family.model_type.clone(), family)
            })
            .collect()
    })
}

/// The family `model_type`.
///
/// # Errors
/// [`Kind::Unsupported`], listing the families there are.
pub fn family(model_type: &str) -> Result<&'static Family> {
    families().get(model_type).ok_or_else(|| {
        let known: Vec<_> = families().keys().map(String::as_str).collect();
        Error::new(Kind::Unsupported, format!("unknown model_type {model_type:?}"))
            .remedy(format!("supported: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_file_is_named_by_its_model_type_and_refers_to_families_that_exist() {
        assert_eq!(FILES.files().count(), families().len());
        for file in FILES.files() {
            let stem = file.path().file_stem().unwrap().to_str().unwrap();
            let family = family(stem).unwrap();
            assert!(family.dense.is_some() || family.moe.is_some(), "{stem}");
            for target in &family.upcycles_to {
                assert!(families()[target].moe.is_some(), "{stem} upcycles to {target}");
            }
            for target in &family.distills_to {
                assert!(families()[target].dense.is_some(), "{stem} distills to {target}");
            }
            let says_how = family.distills_to.is_empty() == family.undistilled.is_some();
            assert!(says_how || family.moe.is_none(), "{stem}: distills_to, or why not");
            for layout in family.moe.iter().flat_map(|m| &m.layouts) {
                assert!(
                    layout.expert.is_some() != layout.fused.is_some(),
                    "{stem}: a layout is one or the other"
                );
            }
        }
    }
}
