//! The config of compressed-tensors.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::target::Target;
use super::{Blocks, Integers, Scheme, sides, text, width};
use crate::error::{Error, Result};

/// The version of the format that is written to configs.
const VERSION: &str = "0.19.0";
const PACKED: &str = "pack-quantized";
const FLOAT: &str = "float-quantized";
/// The format of a config whose groups have several formats.
const MIXED: &str = "mixed-precision";
/// Maximum number of patterns, since each is compiled and matched with every module's name. Configs
/// written by people have a handful.
const MAX_PATTERNS: usize = 256;

/// A compressed-tensors config: schemes, and the modules that each applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressedTensors {
    /// `config_groups` in order.
    pub groups: Vec<SchemeGroup>,
    /// Modules that are not quantized, even if a group names them.
    pub ignore: Vec<Target>,
}

/// A config group: one scheme, and the modules that it applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemeGroup {
    /// The modules that the scheme applies to.
    pub targets: Vec<Target>,
    /// The encoding of the modules' weights.
    pub scheme: Scheme,
    /// `input_activations`: how engines should quantize the modules' inputs; null for no
    /// quantization. It doesn't affect weights.
    pub input_activations: Value,
}

impl CompressedTensors {
    pub(super) fn read(said: &Value, refuse: impl Fn(String) -> Error) -> Result<Self> {
        check_encoding(said, &refuse)?;
        let mut reader = ConfigReader { refuse, patterns: 0 };
        let groups = said.get("config_groups").and_then(Value::as_object);
        let groups = groups.into_iter().flat_map(Map::values).map(|said| reader.group(said));
        let groups: Vec<_> = groups.collect::<Result<_>>()?;
        if groups.is_empty() {
            return Err((reader.refuse)("compressed-tensors without config_groups".to_owned()));
        }
        Ok(Self { groups, ignore: reader.targets(said, "ignore")? })
    }

    /// The scheme of the module `name`. Targets with the module's name take precedence over its
    /// class.
    pub(super) fn scheme(&self, name: &str) -> Option<Scheme> {
        if self.ignore.iter().any(|target| target.names(name)) {
            return None;
        }
        let named =
            self.groups.iter().find(|group| group.targets.iter().any(|target| target.names(name)));
        let linear =
            || self.groups.iter().find(|group| group.targets.iter().any(|t| t.text() == "Linear"));
        named.or_else(linear).map(|group| group.scheme)
    }

    pub(super) fn declared(&self, plain: &[String]) -> Value {
        let groups: Map<String, Value> = self
            .groups
            .iter()
            .enumerate()
            .map(|(index, group)| (format!("group_{index}"), group.declared()))
            .collect();
        json!({
            "config_groups": groups,
            "format": self.format(),
            "global_compression_ratio": null,
            "ignore": self.ignored(plain),
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": VERSION,
        })
    }

    /// The format of all groups.
    fn format(&self) -> &'static str {
        let formats: Vec<_> = self.groups.iter().map(|group| format_of(group.scheme)).collect();
        if formats.iter().all(|format| *format == formats[0]) { formats[0] } else { MIXED }
    }

    /// The targets that are not quantized, and the modules `plain`. A config that was read may name
    /// modules that are in `plain` too.
    fn ignored(&self, plain: &[String]) -> Vec<String> {
        let mut listed = BTreeSet::new();
        let named = self.ignore.iter().map(Target::text).chain(plain.iter().cloned());
        named.filter(|module| listed.insert(module.clone())).collect()
    }
}

impl SchemeGroup {
    /// Modules of the class `Linear`. Activations stay as they are except for e4m3 by rows: engines
    /// multiply such experts only in float8, and round each token to it (llm-compressor's
    /// `FP8_DYNAMIC`).
    pub fn linear(scheme: Scheme) -> Self {
        let input_activations = match scheme {
            Scheme::Fp8(Blocks::Rows) => json!({
                "actorder": null,
                "block_structure": null,
                "dynamic": true,
                "group_size": null,
                "num_bits": 8,
                "observer": null,
                "observer_kwargs": {},
                "scale_dtype": null,
                "strategy": "token",
                "symmetric": true,
                "type": "float",
                "zp_dtype": null,
            }),
            Scheme::Fp8(Blocks::Of(_)) | Scheme::Integers(_) => Value::Null,
        };
        Self { targets: vec![Target::Class("Linear".to_owned())], scheme, input_activations }
    }

    pub(super) fn declared(&self) -> Value {
        json!({
            "format": format_of(self.scheme),
            "input_activations": self.input_activations,
            "output_activations": null,
            "targets": self.targets.iter().map(Target::text).collect::<Vec<_>>(),
            "weights": weights(self.scheme),
        })
    }
}

fn format_of(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Integers(_) => PACKED,
        Scheme::Fp8(_) => FLOAT,
    }
}

/// The value of a group's key `weights` for `scheme`.
fn weights(scheme: Scheme) -> Value {
    let (bits, kind, symmetric) = match scheme {
        Scheme::Integers(Integers { bits, symmetric, .. }) => (bits, "int", symmetric),
        Scheme::Fp8(_) => (8, "float", true),
    };
    let (strategy, group, block) = strategy_of(scheme);
    json!({
        "actorder": null,
        "block_structure": block,
        "dynamic": false,
        "group_size": group,
        "num_bits": bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "scale_dtype": null,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
        "zp_dtype": null,
    })
}

/// The strategy by which `scheme` shares scales, with its `group_size` and `block_structure`.
fn strategy_of(scheme: Scheme) -> (&'static str, Option<usize>, Option<[usize; 2]>) {
    match scheme {
        Scheme::Integers(Integers { group: Some(group), .. }) => ("group", Some(group), None),
        Scheme::Integers(Integers { group: None, .. }) | Scheme::Fp8(Blocks::Rows) => {
            ("channel", None, None)
        }
        Scheme::Fp8(Blocks::Of(block)) => ("block", None, Some(block)),
    }
}

/// Refuses a format that isn't supported, and transforms of weights.
fn check_encoding(said: &Value, refuse: impl Fn(String) -> Error) -> Result<()> {
    if let Some(format) = text(said, "format").filter(|f| ![PACKED, FLOAT, MIXED].contains(f)) {
        return Err(refuse(format!("the compressed-tensors format {format:?}")));
    }
    let transforms = said.get("transform_config").and_then(|said| said.get("config_groups"));
    if transforms.and_then(Value::as_object).is_some_and(|groups| !groups.is_empty()) {
        let what =
            "a transform_config of compressed-tensors, which changes what weights mean,".to_owned();
        return Err(refuse(what));
    }
    Ok(())
}

/// Reads the parts of a config. `refuse` makes the error for what isn't supported.
struct ConfigReader<R> {
    refuse: R,
    /// Number of patterns read so far.
    patterns: usize,
}

impl<R: Fn(String) -> Error> ConfigReader<R> {
    fn group(&mut self, said: &Value) -> Result<SchemeGroup> {
        Ok(SchemeGroup {
            targets: self.targets(said, "targets")?,
            scheme: scheme(said, &self.refuse)?,
            input_activations: said.get("input_activations").cloned().unwrap_or_default(),
        })
    }

    fn targets(&mut self, said: &Value, key: &str) -> Result<Vec<Target>> {
        let targets = said.get(key).and_then(Value::as_array);
        targets.into_iter().flatten().map(|target| self.target(target)).collect()
    }

    fn target(&mut self, value: &Value) -> Result<Target> {
        let said = value.as_str().unwrap_or_default();
        self.patterns += usize::from(Target::is_pattern(said));
        if self.patterns > MAX_PATTERNS {
            let what = format!("a config with more than {MAX_PATTERNS} patterns for targets");
            return Err((self.refuse)(what));
        }
        Target::parse(said).map_err(|_| (self.refuse)(format!("the target {said:?}")))
    }
}

fn scheme(said: &Value, refuse: impl Fn(String) -> Error) -> Result<Scheme> {
    let weights = said.get("weights").filter(|w| w.is_object());
    let weights = weights
        .ok_or_else(|| refuse("a group of compressed-tensors without weights".to_owned()))?;
    let bits = width(weights, "num_bits");
    let group = group_size(weights);
    let symmetric = weights.get("symmetric").and_then(Value::as_bool).unwrap_or(true);
    match (text(weights, "type").unwrap_or("int"), text(weights, "strategy"), bits) {
        ("int", Some("group" | "channel"), bits) => {
            Integers { bits, group, symmetric }.checked(refuse).map(Scheme::Integers)
        }
        ("float", Some("channel"), 8) => Ok(Scheme::Fp8(Blocks::Rows)),
        ("float", Some("block"), 8) => match weights.get("block_structure").and_then(sides) {
            Some(block) => Ok(Scheme::Fp8(Blocks::Of(block))),
            None => Err(refuse("e4m3 in blocks without block_structure".to_owned())),
        },
        (kind, strategy, bits) => Err(refuse(format!(
            "compressed-tensors with {bits}-bit {kind} by the strategy {:?}",
            strategy.unwrap_or("?")
        ))),
    }
}

/// Number of columns in a group; None for whole rows.
fn group_size(weights: &Value) -> Option<usize> {
    let said = weights.get("group_size").and_then(Value::as_i64);
    said.filter(|group| *group > 0).map(|group| group as usize)
}
