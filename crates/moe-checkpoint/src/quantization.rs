//! Quantized weights: what a config's `quantization_config` says of their encoding.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};

/// The config key that describes quantized weights.
const KEY: &str = "quantization_config";

/// How the quantized weights of a checkpoint are encoded. Which weights are, their element types say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantization {
    /// 8-bit floats (e4m3) with a scale for each block, as DeepSeek-V3 ships them: value = code × scale of its block.
    BlockFp8 {
        /// Rows and columns of a block; blocks at the end of a matrix may be smaller.
        block: [usize; 2],
    },
}

impl Quantization {
    /// What the name of a weight's scales has beyond the weight's.
    pub const SCALE_SUFFIX: &str = "_scale_inv";

    /// Reads `config`; `file` is it for messages. `None` for a checkpoint that isn't quantized.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for any other method, by its name.
    pub fn read(config: &Map<String, Value>, file: &Path) -> Result<Option<Self>> {
        let said = match config.get(KEY) {
            None | Some(Value::Null) => return Ok(None),
            Some(said) => said,
        };
        let refuse = |what: String| {
            Err(Error::new(Kind::Unsupported, format!("{what} is not read by this version")).file(file).remedy(
                "supported: fp8 (e4m3) in blocks with dynamic activations; else start from the unquantized checkpoint",
            ))
        };
        let text = |key: &str| said.get(key).and_then(Value::as_str);
        match text("quant_method") {
            Some("fp8") => {}
            Some(method) => return refuse(format!("quantization by {method:?}")),
            None => return refuse(format!("a {KEY} without quant_method")),
        }
        if let Some(format) = text("fmt").filter(|format| *format != "e4m3") {
            return refuse(format!("fp8 of the format {format:?}"));
        }
        if let Some(scheme) = text("activation_scheme").filter(|scheme| *scheme != "dynamic") {
            return refuse(format!("fp8 with {scheme} scales of activations"));
        }
        let side = |value: &Value| value.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
        let sides = said.get("weight_block_size").and_then(Value::as_array);
        let sides: Option<Vec<_>> = sides.and_then(|sides| sides.iter().map(side).collect());
        match sides.as_deref() {
            Some([rows, columns]) => Ok(Some(Self::BlockFp8 { block: [*rows, *columns] })),
            _ => refuse("fp8 without weight_block_size".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(quantization: Value) -> Result<Option<Quantization>> {
        let config = json!({ KEY: quantization });
        Quantization::read(config.as_object().unwrap(), Path::new("config.json"))
    }

    #[test]
    fn block_fp8_is_read_and_other_methods_are_refused_by_name() {
        assert_eq!(read(Value::Null).unwrap(), None);
        let fp8 = json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64] });
        assert_eq!(read(fp8.clone()).unwrap(), Some(Quantization::BlockFp8 { block: [128, 64] }));
        let with = |key: &str, value: Value| {
            let mut changed = fp8.clone();
            changed[key] = value;
            read(changed).unwrap_err().to_string()
        };
        assert!(with("quant_method", json!("gptq")).contains("\"gptq\""));
        assert!(with("fmt", json!("e5m2")).contains("e5m2"));
        assert!(with("activation_scheme", json!("static")).contains("static"));
        for block in [json!(null), json!([128]), json!([0, 128]), json!(128)] {
            assert!(with("weight_block_size", block).contains("weight_block_size"));
        }
    }
}
