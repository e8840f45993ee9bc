//! Quantized weights: how a config's `quantization_config` describes their encoding, and how it is
//! written.

mod compressed;
mod groups;
mod relisted;
mod target;

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use compressed::{CompressedTensors, SchemeGroup};
pub use target::Target;

use crate::error::{Error, Kind, Result};
use crate::json::shown;

/// The config key that describes quantized weights.
pub const QUANTIZATION_KEY: &str = "quantization_config";

/// The block size of Hugging Face's fp8 if a config has no `weight_block_size` (transformers'
/// `FineGrainedFP8Config`).
const DEFAULT_BLOCK: [usize; 2] = [128, 128];

/// How the quantized weights of a checkpoint are encoded. Names and element types of tensors show
/// which weights are quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantization {
    /// Hugging Face's `fp8`: 8-bit floats (e4m3) with a scale for each block, as DeepSeek-V3 ships
    /// them.
    BlockFp8 {
        /// Rows and columns of a block; blocks at the end of a matrix may be smaller.
        block: [usize; 2],
    },
    /// compressed-tensors: integers of a few bits, or e4m3.
    Compressed(CompressedTensors),
    /// GPTQ v1: integers of a few bits.
    Gptq(Integers),
}

/// The encoding of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// e4m3: value = code × scale of its block.
    Fp8(Blocks),
    /// value = (code − zero) × scale of its group.
    Integers(Integers),
}

/// The values of a matrix that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Blocks {
    /// All codes of a row share one.
    Rows,
    /// The codes of a block share one; the numbers are its rows and columns. Blocks at the end of a
    /// matrix may be smaller.
    Of([usize; 2]),
}

impl Blocks {
    /// Rows and columns of a block in a matrix of the shape `shape`.
    pub fn size(self, shape: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Rows => [1, shape[1].max(1)],
            Self::Of(block) => block,
        }
    }
}

/// Integers of a few bits in groups along a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Integers {
    /// Bits of a code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Columns that share a scale; `None` for whole rows.
    pub group: Option<usize>,
    /// Whether the middle code stands for 0; otherwise each group has a zero point.
    pub symmetric: bool,
}

impl Integers {
    /// The bit widths that can be read and written; GPTQ has neither 5 nor 6.
    pub const WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

    /// Number of a row's `columns` that share a scale.
    pub fn group_size(self, columns: usize) -> usize {
        self.group.unwrap_or(columns)
    }

    /// Number of groups in a row of `columns`.
    pub fn groups(self, columns: usize) -> usize {
        columns.div_ceil(self.group_size(columns))
    }

    /// Number of 32-bit words for this many `codes`, packed without gaps.
    pub fn words(self, codes: usize) -> usize {
        (codes * self.bits as usize).div_ceil(32)
    }

    /// Whether this many `codes` fill their words.
    pub fn fills_words(self, codes: usize) -> bool {
        (codes * self.bits as usize).is_multiple_of(32)
    }

    fn checked(self, refuse: impl Fn(String) -> Error) -> Result<Self> {
        if !Self::WIDTHS.contains(&self.bits) {
            return Err(refuse(format!("integers of {} bits", self.bits)));
        }
        Ok(self)
    }
}

impl fmt::Display for Integers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.symmetric { "symmetric" } else { "asymmetric" };
        match self.group {
            Some(group) => write!(f, "{kind} {}-bit integers in groups of {group}", self.bits),
            None => write!(f, "{kind} {}-bit integers, a scale for each row", self.bits),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fp8(Blocks::Rows) => write!(f, "fp8 (e4m3), a scale for each row"),
            Self::Fp8(Blocks::Of([rows, columns])) => {
                write!(f, "fp8 (e4m3) in blocks of {rows} × {columns}")
            }
            Self::Integers(integers) => integers.fmt(f),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockFp8 { block } => Scheme::Fp8(Blocks::Of(*block)).fmt(f),
            Self::Gptq(integers) => write!(f, "GPTQ, {integers}"),
            Self::Compressed(CompressedTensors { groups, .. }) => {
                let schemes: Vec<_> = groups.iter().map(|group| group.scheme.to_string()).collect();
                write!(f, "compressed-tensors, {}", schemes.join("; "))
            }
        }
    }
}

impl Quantization {
    /// Reads the `quantization_config` of `config`; errors name `file`. `None` if the checkpoint
    /// isn't quantized.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for any other method or scheme, by its name.
    pub fn read(config: &Map<String, Value>, file: &Path) -> Result<Option<Self>> {
        let said = match config.get(QUANTIZATION_KEY) {
            None | Some(Value::Null) => return Ok(None),
            Some(said) => said,
        };
        let refuse = |what: String| {
            Error::new(Kind::Unsupported, format!("{what} is not read by this version")).file(file).remedy(
                "supported: fp8 (e4m3) in blocks, compressed-tensors with integers or e4m3, GPTQ; \
                 else start from the unquantized checkpoint",
            )
        };
        match said.get("quant_method").and_then(Value::as_str) {
            Some("fp8") => block_fp8(said, refuse).map(Some),
            Some("compressed-tensors") => {
                CompressedTensors::read(said, refuse).map(Self::Compressed).map(Some)
            }
            Some("gptq") => gptq(said, refuse).map(Some),
            Some(method) => Err(refuse(format!("quantization by {method:?}"))),
            None => Err(refuse(format!("a {QUANTIZATION_KEY} without quant_method"))),
        }
    }

    /// How the matrix of the module `name`, such as `model.layers.0.mlp.experts.3.up_proj`, is
    /// encoded if it is quantized.
    pub fn scheme(&self, name: &str) -> Option<Scheme> {
        match self {
            Self::BlockFp8 { block } => Some(Scheme::Fp8(Blocks::Of(*block))),
            Self::Gptq(integers) => Some(Scheme::Integers(*integers)),
            Self::Compressed(compressed) => compressed.scheme(name),
        }
    }

    /// The suffix of the scales of e4m3 codes, after the weight's name.
    pub fn scale_suffix(&self) -> &'static str {
        match self {
            Self::BlockFp8 { .. } => "_scale_inv",
            Self::Compressed(_) | Self::Gptq(_) => "_scale",
        }
    }

    /// The `quantization_config` for loaders. `plain` names the modules with a matrix that isn't
    /// quantized, `quantized` the others with their schemes, which may differ only for
    /// compressed-tensors.
    pub fn declared(&self, plain: &[String], quantized: &[(String, Scheme)]) -> Value {
        match self {
            Self::BlockFp8 { block } => json!({
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": block,
                "modules_to_not_convert": plain,
            }),
            Self::Compressed(said) if quantized.is_empty() => said.declared(plain),
            Self::Compressed(said) => said.regrouped(quantized).declared(plain),
            Self::Gptq(Integers { bits, group, symmetric }) => json!({
                "quant_method": "gptq",
                "bits": bits,
                "group_size": group.map_or(-1, |group| group as i64),
                "sym": symmetric,
                "desc_act": false,
                "checkpoint_format": "gptq",
                "pack_dtype": "int32",
                "lm_head": false,
                "dynamic": plain.iter().map(|name| (kept(name, quantized), json!({}))).collect::<Map<_, _>>(),
            }),
        }
    }
}

/// GPTQ's pattern for a module that isn't quantized. Engines fuse neighbors under their own name
/// (q, k and v to `qkv_proj`), and SGLang 0.5.23 looks only for that name
/// (`get_linear_quant_method`). So the pattern covers everything under the same parent, if all of
/// it is plain.
fn kept(name: &str, quantized: &[(String, Scheme)]) -> String {
    let parent = name.rsplit_once('.').map(|(parent, _)| format!("{parent}."));
    match parent
        .filter(|parent| !quantized.iter().any(|(name, _)| name.starts_with(parent.as_str())))
    {
        Some(parent) => format!("-:^{}", target::escaped(&parent)),
        None => format!("-:^{}$", target::escaped(name)),
    }
}

fn text<'a>(said: &'a Value, key: &str) -> Option<&'a str> {
    said.get(key).and_then(Value::as_str)
}

fn block_fp8(said: &Value, refuse: impl Fn(String) -> Error) -> Result<Quantization> {
    if let Some(format) = text(said, "fmt").filter(|format| *format != "e4m3") {
        return Err(refuse(format!("fp8 of the format {format:?}")));
    }
    if let Some(scheme) = text(said, "activation_scheme").filter(|scheme| *scheme != "dynamic") {
        return Err(refuse(format!("fp8 with {scheme} scales of activations")));
    }
    match said.get("weight_block_size") {
        None => Ok(Quantization::BlockFp8 { block: DEFAULT_BLOCK }),
        Some(said) => match sides(said) {
            Some(block) => Ok(Quantization::BlockFp8 { block }),
            None => Err(refuse(format!("fp8 with weight_block_size {}", shown(said)))),
        },
    }
}

/// The bit width of an integer; 0, which no scheme has, if it isn't given.
fn width(said: &Value, key: &str) -> u32 {
    said.get(key).and_then(Value::as_u64).and_then(|bits| bits.try_into().ok()).unwrap_or(0)
}

/// Rows and columns of a block.
fn sides(value: &Value) -> Option<[usize; 2]> {
    let side =
        |value: &Value| value.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
    let sides: Option<Vec<_>> = value.as_array()?.iter().map(side).collect();
    sides?.try_into().ok()
}

fn gptq(said: &Value, refuse: impl Fn(String) -> Error) -> Result<Quantization> {
    if let Some(format) = text(said, "checkpoint_format").filter(|format| *format != "gptq") {
        return Err(refuse(format!("GPTQ of the format {format:?}")));
    }
    let bits = width(said, "bits");
    let group = match said.get("group_size").and_then(Value::as_i64) {
        Some(-1) => None,
        Some(group @ 1..) => Some(group as usize),
        _ => return Err(refuse("GPTQ without group_size".to_owned())),
    };
    if [5, 6].contains(&bits) {
        return Err(refuse(format!("GPTQ with integers of {bits} bits")));
    }
    let symmetric = said.get("sym").and_then(Value::as_bool).unwrap_or(true);
    Integers { bits, group, symmetric }.checked(refuse).map(Quantization::Gptq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(quantization: Value) -> Result<Option<Quantization>> {
        let config = json!({ QUANTIZATION_KEY: quantization });
        Quantization::read(config.as_object().unwrap(), Path::new("config.json"))
    }

    fn refused(mut said: Value, path: &str, value: Value) -> String {
        *said.pointer_mut(path).unwrap() = value;
        read(said).unwrap_err().to_string()
    }

    #[test]
    fn block_fp8_is_read_and_other_methods_are_refused_by_name() {
        assert_eq!(read(Value::Null).unwrap(), None);
        let fp8 = json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64] });
        assert_eq!(read(fp8.clone()).unwrap(), Some(Quantization::BlockFp8 { block: [128, 64] }));
        let with = |key: &str, value: Value| refused(fp8.clone(), &format!("/{key}"), value);
        assert!(with("quant_method", json!("awq")).contains("\"awq\""));
        assert!(with("fmt", json!("e5m2")).contains("e5m2"));
        assert!(with("activation_scheme", json!("static")).contains("static"));
        let mut without = fp8.clone();
        without.as_object_mut().unwrap().remove("weight_block_size");
        assert_eq!(read(without).unwrap(), Some(Quantization::BlockFp8 { block: [128, 128] }));
        for block in [json!(null), json!([128]), json!([0, 128]), json!(128)] {
            assert!(with("weight_block_size", block).contains("weight_block_size"));
        }
    }

    #[test]
    fn declared_configs_are_read_back() {
        let integers = Integers { bits: 4, group: Some(128), symmetric: true };
        let linear = SchemeGroup::linear;
        let compressed =
            |groups| Quantization::Compressed(CompressedTensors { groups, ignore: vec![] });
        let wide = Integers { bits: 8, group: None, symmetric: false };
        let layer = Target::parse("re:.*layers\\.3\\.mlp\\.experts\\..*").unwrap();
        for quantization in [
            Quantization::BlockFp8 { block: [128, 128] },
            Quantization::Gptq(integers),
            Quantization::Gptq(wide),
            compressed(vec![linear(Scheme::Integers(integers))]),
            compressed(vec![linear(Scheme::Fp8(Blocks::Rows))]),
            compressed(vec![linear(Scheme::Fp8(Blocks::Of([128, 128])))]),
            compressed(vec![
                SchemeGroup { targets: vec![layer], ..linear(Scheme::Integers(wide)) },
                linear(Scheme::Integers(integers)),
            ]),
        ] {
            let plain = ["model.layers.0.mlp.gate".to_owned()];
            let found = read(quantization.declared(&plain, &[])).unwrap().unwrap();
            assert_eq!(found.to_string(), quantization.to_string());
            let expert = "model.layers.3.mlp.experts.0.up_proj";
            assert_eq!(found.scheme(expert), quantization.scheme(expert));
            if let Quantization::Compressed(_) = found {
                assert_eq!(found.scheme(&plain[0]), None);
            }
        }
    }

    #[test]
    fn gptq_also_excepts_modules_that_engines_fuse() {
        let integers = Integers { bits: 4, group: Some(128), symmetric: true };
        let plain = [
            "layers.0.self_attn.q_proj",
            "layers.0.self_attn.k_proj",
            "layers.0.mlp.gate",
            "lm_head",
        ];
        let quantized = [("layers.0.mlp.experts.0.up_proj".to_owned(), Scheme::Integers(integers))];
        let said = Quantization::Gptq(integers).declared(&plain.map(str::to_owned), &quantized);
        let patterns: Vec<_> =
            said["dynamic"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            patterns,
            [r"-:^layers\.0\.self_attn\.", r"-:^layers\.0\.mlp\.gate$", "-:^lm_head$"]
        );
    }

    #[test]
    fn unsupported_schemes_are_refused_by_name() {
        let scheme = Scheme::Integers(Integers { bits: 4, group: Some(32), symmetric: true });
        let group = SchemeGroup::linear(scheme);
        let said =
            Quantization::Compressed(CompressedTensors { groups: vec![group], ignore: vec![] })
                .declared(&[], &[]);
        let with = |path: &str, value: Value| refused(said.clone(), path, value);
        assert!(with("/config_groups/group_0/weights/num_bits", json!(7)).contains("7 bits"));
        assert!(
            with("/config_groups/group_0/weights/strategy", json!("tensor")).contains("\"tensor\"")
        );
        assert!(with("/config_groups/group_0/targets", json!(["re:("])).contains("re:("));
        assert!(with("/format", json!("marlin-24")).contains("marlin-24"));
        assert!(with("/config_groups", json!({})).contains("config_groups"));
    }

    #[test]
    fn a_module_that_is_ignored_is_listed_once() {
        let scheme = Scheme::Integers(Integers { bits: 4, group: Some(32), symmetric: true });
        let group = SchemeGroup::linear(scheme);
        let compressed = |ignore: &[&str]| {
            let ignore = ignore.iter().map(|text| target::Target::parse(text).unwrap()).collect();
            Quantization::Compressed(CompressedTensors { groups: vec![group.clone()], ignore })
        };
        let plain = ["lm_head", "model.layers.0.mlp.gate"].map(str::to_owned);
        let once = ["re:.*norm", "lm_head", "model.layers.0.mlp.gate"];
        let said = compressed(&["re:.*norm", "lm_head", "lm_head"]).declared(&plain, &[]);
        assert_eq!(said["ignore"], json!(once));
        // Reading and writing it again changes nothing.
        let again = read(said).unwrap().unwrap().declared(&plain, &[]);
        assert_eq!(again["ignore"], json!(once));
    }
}
