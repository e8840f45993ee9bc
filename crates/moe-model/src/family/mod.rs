//! Families as data: tensor names, config keys and routing rules of one `model_type` each.

mod attention;
mod flag;
mod loaders;
mod mixture;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use include_dir::{Dir, include_dir};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::strict::Strict;
use crate::{Error, Kind, Result};

pub use self::attention::{AttentionRule, LatentRule, QkNormKind, WindowRule};
pub use self::flag::Flag;
pub use self::loaders::{Caveat, CaveatWhen, OlderScaling, TokenizerRule};
pub use self::mixture::{
    DenseRule, ExpertNames, GroupsRule, KeyIs, Layout, MoeRule, SharedRule, SharedWidth,
};

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/families");

/// A family's layers for multi-token prediction.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtpRule {
    /// The config key of the number of such layers.
    pub count: String,
}

/// Everything that is specific to one `model_type`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The value of the config key `model_type`.
    pub model_type: String,
    /// The class name that is written to the config key `architectures`.
    pub architecture: String,
    /// MoE families that can express an upcycled model of this family; the first is the default.
    #[serde(default)]
    pub upcycles_to: Vec<String>,
    /// Families that can express a model of this family with only dense layers, the most likely
    /// first.
    #[serde(default)]
    pub distills_to: Vec<String>,
    /// The reason why `distills_to` is empty.
    pub undistilled: Option<String>,
    /// The class that stock loaders use for the tokenizer; None for the class that the tokenizer's
    /// files name.
    pub tokenizer: Option<TokenizerRule>,
    /// Config keys that mean something in this family only.
    #[serde(default)]
    pub own_keys: Vec<String>,
    /// The attention of every layer.
    pub attention: AttentionRule,
    /// The dense block, if the family has one.
    pub dense: Option<DenseRule>,
    /// The mixture of experts, if the family has one.
    pub moe: Option<MoeRule>,
    /// Layers for multi-token prediction, if the family has them.
    pub mtp: Option<MtpRule>,
    /// Config keys that may only be missing or have these values, since others would mean another
    /// function.
    #[serde(default)]
    pub only: BTreeMap<String, Vec<Value>>,
    /// Keys of `only` that transformers doesn't read: it computes as if they had such a value.
    #[serde(default)]
    pub only_ignored: Vec<String>,
    /// The values that stock loaders assume for missing config keys. TOML has no null, so `"null"`
    /// stands for it.
    pub defaults: Map<String, Value>,
    /// Warnings about valid models that stock loaders handle wrongly.
    #[serde(default)]
    pub caveats: Vec<Caveat>,
    /// Config keys with the values that are written to a converted config unless the source has
    /// these keys.
    #[serde(default)]
    pub written: Map<String, Value>,
    /// Config keys whose values must be of one JSON type, since transformers 5 refuses others.
    pub strict: Strict,
    /// Config keys for which transformers accepts null, but then fails at computing with it.
    #[serde(default)]
    pub never_null: Vec<String>,
    /// The config key from which transformers computes yarn's tables, and for which it has no
    /// default.
    pub yarn_needs: Option<String>,
    /// Like `yarn_needs`, but for versions of transformers before 5.
    pub older_yarn_needs: Option<String>,
    /// The keys of a `rope_scaling` of any type that versions of transformers before 5 compute
    /// with.
    pub older_rope_scaling: Option<OlderScaling>,
}

impl Family {
    /// Whether the family has an expert that every token goes through.
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
