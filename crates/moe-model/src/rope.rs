//! Rotary position embeddings: parameters under old and new config keys, and inverse frequencies.
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`; YaRN is Peng et al.
//! 2309.00071.

use std::f64::consts::PI;

use moe_checkpoint::json::{is_true, number};
use serde_json::{Map, Value, json};

use crate::codec::Config;
use crate::{Error, Kind, Result};

/// The older config key of the scaling of frequencies.
const SCALING: &str = "rope_scaling";
/// The config key of transformers 5, which also holds the base wavelength.
const PARAMETERS: &str = "rope_parameters";
/// The config key of the fraction of a head's dimensions that is rotated.
const PARTIAL: &str = "partial_rotary_factor";

/// How frequencies are scaled for contexts longer than in pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies are not scaled.
    Default,
    /// Every frequency is divided by `factor`.
    Linear {
        /// The factor by which the context is extended.
        factor: f64,
    },
    /// Llama 3: long wavelengths are divided by `factor`, with a smooth transition.
    Llama3 {
        /// The factor by which the context is extended.
        factor: f64,
        /// Wavelengths above `original / low` are stretched.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Pretraining context in tokens.
        original: f64,
    },
    /// YaRN: dimensions that turn slowly are stretched, with a smooth transition.
    Yarn {
        /// The factor by which the context is extended.
        factor: f64,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Dimensions with more rotations over the pretraining context are kept.
        beta_fast: f64,
        /// Dimensions with fewer rotations over the pretraining context are stretched.
        beta_slow: f64,
        /// Whether the borders between the two are rounded to whole dimensions.
        truncate: bool,
        /// Pretraining context in tokens.
        original: f64,
    },
}

impl RopeScaling {
    /// The name of the scaling in a config.
    fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
        }
    }

    fn factor(&self) -> Option<f64> {
        match self {
            Self::Default => None,
            Self::Linear { factor } | Self::Llama3 { factor, .. } | Self::Yarn { factor, .. } => {
                Some(*factor)
            }
        }
    }

    /// The pretraining context in tokens; None if frequencies don't depend on it.
    fn original(&self) -> Option<f64> {
        match self {
            Self::Default | Self::Linear { .. } => None,
            Self::Llama3 { original, .. } | Self::Yarn { original, .. } => Some(*original),
        }
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base θ of the wavelengths.
    pub theta: f64,
    /// The number of dimensions that are rotated: the first ones of a head (or of its rotary part,
    /// where attention is latent).
    pub dims: usize,
    /// Whether neighboring dimensions are rotated together, rather than i and i + dims / 2.
    pub interleaved: bool,
    /// The scaling of frequencies.
    pub scaling: RopeScaling,
}

/// The properties of rotary embeddings that a family determines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeShape {
    /// Number of dimensions that may be rotated.
    pub width: usize,
    /// Whether `partial_rotary_factor` is read.
    pub partial: bool,
    /// Whether neighboring dimensions are rotated together.
    pub interleaved: bool,
}

/// The object under `key`; None if it is empty.
fn object<'a>(config: Config<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match config.raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|m| !m.is_empty())),
        // As in transformers 5, values that are false in Python count as missing.
        Some(value) if key == SCALING && !is_true(value) => Ok(None),
        Some(_) => Err(config.error(key, "is not an object")),
    }
}

/// The rotary keys of a config, under their old or new names.
struct Keys<'a> {
    config: Config<'a>,
    parameters: Option<&'a Map<String, Value>>,
}

impl<'a> Keys<'a> {
    fn of(config: Config<'a>) -> Result<Self> {
        // As in transformers, the older key takes precedence.
        let parameters = object(config, SCALING)?.or(object(config, PARAMETERS)?);
        Ok(Self { config, parameters })
    }

    /// Returns the type of scaling.
    fn kind(&self) -> Result<&'a str> {
        match self.get("rope_type").or(self.get("type")) {
            None => Ok("default"),
            // NaN and the like are kept as strings.
            Some(kind) if number(kind).is_none() => {
                kind.as_str().ok_or_else(|| self.error("rope_type", "is not a string"))
            }
            Some(_) => Err(self.error("rope_type", "is not a string")),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.parameters.and_then(|p| p.get(key)).filter(|v| !v.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.error(
                    key,
                    &format!("is {}, not a number", moe_checkpoint::json::shown(value)),
                )),
            },
        }
    }

    /// Returns the number under `key`; None if it is missing or 0.
    fn nonzero(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.number(key)?.filter(|x| *x != 0.0))
    }

    fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => Err(self.error(key, &format!("is {x}, not positive"))),
            None => Err(self.error(key, "is missing")),
        }
    }

    fn error(&self, key: &str, what: &str) -> Error {
        self.config.error(&format!("rope_parameters.{key}"), what)
    }

    /// Returns the pretraining context in tokens. The config's own key takes precedence over the
    /// one among the parameters; without both it is the context length.
    fn original(&self) -> Result<f64> {
        let key = "original_max_position_embeddings";
        let found = self.config.optional_f64(key)?.or(self.number(key)?);
        let original = found.or(self.config.optional_f64("max_position_embeddings")?);
        original.filter(|x| *x > 0.0).ok_or_else(|| self.error(key, "is missing"))
    }
}

impl Rope {
    /// Reads `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
    pub(crate) fn decode(config: Config<'_>, shape: RopeShape) -> Result<Self> {
        let keys = Keys::of(config)?;
        if keys.parameters.is_some_and(|p| p.values().any(Value::is_object)) {
            return Err(unsupported(&config, "rotary parameters that differ between layers"));
        }
        let dims = rotated(&keys, shape)?;
        let theta = match keys.number("rope_theta")?.or(config.optional_f64("rope_theta")?) {
            Some(theta) if theta > 0.0 => theta,
            _ => return Err(config.error("rope_theta", "is missing or not positive")),
        };
        let scaling = match keys.kind()? {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: keys.positive("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: keys.positive("factor")?,
                low: keys.positive("low_freq_factor")?,
                high: keys.positive("high_freq_factor")?,
                original: keys.original()?,
            },
            "yarn" => decode_yarn(&keys)?,
            other => return Err(unsupported(&config, &format!("rope type {other:?}"))),
        };
        Ok(Self { theta, dims, interleaved: shape.interleaved, scaling })
    }

    /// Returns the factor by which yarn's `mscale_all_dim` multiplies the scale of latent
    /// attention's scores (DeepSeek-V2); 1 without that key.
    pub(crate) fn score_factor(config: Config<'_>) -> Result<f64> {
        let keys = Keys::of(config)?;
        let Some(all) = keys.nonzero("mscale_all_dim")? else {
            return Ok(1.0);
        };
        match keys.kind()? {
            "default" => Ok(1.0),
            _ => Ok(mscale(keys.positive("factor")?, all).powi(2)),
        }
    }

    /// Writes old and new keys if both can express the scaling, so that old and new loaders read
    /// them.
    ///
    /// `width` is the number of dimensions that may be rotated, if the family may rotate only a
    /// part of them.
    pub(crate) fn encode(&self, width: Option<usize>, raw: &mut Map<String, Value>) {
        let existing = filled(raw, SCALING).or(filled(raw, PARAMETERS));
        let mut parameters = existing.cloned().unwrap_or_default();
        parameters.retain(|_, value| !value.is_null());
        parameters.remove("type");
        parameters.insert("rope_type".into(), json!(self.scaling.kind()));
        // Older loaders neither look for these at the top level nor compute them.
        if let Some(factor) = self.scaling.factor() {
            parameters.insert("factor".into(), json!(factor));
        }
        if let Some(original) = self.scaling.original() {
            parameters.insert("original_max_position_embeddings".into(), json!(original as u64));
        }
        if let Some(width) = width {
            let factor = self.partial_factor(width, parameters.get(PARTIAL).or(raw.get(PARTIAL)));
            parameters.insert(PARTIAL.into(), json!(factor));
            raw.insert(PARTIAL.into(), json!(factor));
        }
        self.encode_parameters(parameters, raw);
    }

    /// Returns the fraction of `width` that is rotated. The value that the config has, `said`, is
    /// kept if it is right.
    fn partial_factor(&self, width: usize, said: Option<&Value>) -> f64 {
        let said = said.and_then(Value::as_f64);
        said.filter(|factor| (width as f64 * factor) as usize == self.dims)
            .unwrap_or(self.dims as f64 / width as f64)
    }

    /// Writes `parameters` under old and new keys.
    fn encode_parameters(&self, mut parameters: Map<String, Value>, raw: &mut Map<String, Value>) {
        let mut scaling = parameters.clone();
        parameters.insert("rope_theta".into(), json!(self.theta));
        scaling.remove("rope_theta");
        raw.insert("rope_theta".into(), json!(self.theta));
        raw.insert(PARAMETERS.into(), Value::Object(parameters));
        // A rope_scaling of the default type makes 4.x validators complain, so it stays out.
        if self.scaling == RopeScaling::Default {
            raw.remove(SCALING);
        } else {
            raw.insert(SCALING.into(), Value::Object(scaling));
        }
    }

    /// Returns the inverse frequencies, `[dims / 2]` in radians per token, and the factor of cos
    /// and sin.
    pub fn inverse_frequencies(&self) -> (Vec<f64>, f64) {
        let plain =
            (0..self.dims / 2).map(|i| self.theta.powf(-((2 * i) as f64) / self.dims as f64));
        match self.scaling {
            RopeScaling::Default => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
            RopeScaling::Llama3 { factor, low, high, original } => {
                (plain.map(|f| llama3(f, factor, [low, high], original)).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
                original,
            } => {
                let dimensions = [beta_fast, beta_slow].map(|beta| self.dimension(beta, original));
                let borders = yarn_borders(dimensions, truncate, self.dims);
                let blended = plain.enumerate().map(|(i, f)| yarn(f, factor, i, borders));
                (blended.collect(), attention_factor)
            }
        }
    }

    /// The dimension that makes `rotations` turns over the pretraining context of `original`
    /// tokens.
    fn dimension(&self, rotations: f64, original: f64) -> f64 {
        self.dims as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
    }
}

/// Returns Llama 3's frequency in place of `f`; `low` and `high` are numbers of wavelengths in the
/// `original` context.
fn llama3(f: f64, factor: f64, [low, high]: [f64; 2], original: f64) -> f64 {
    let wavelength = 2.0 * PI / f;
    if wavelength < original / high {
        return f;
    }
    if wavelength > original / low {
        return f / factor;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * f / factor + smooth * f
}

/// Returns the first of `dims` dimensions that YaRN stretches, and the first that it stretches by
/// the whole factor.
fn yarn_borders([first, last]: [f64; 2], truncate: bool, dims: usize) -> [f64; 2] {
    let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
    let (first, last) = (first.max(0.0), last.min(dims as f64 - 1.0));
    // The two must differ: the ramp between them divides by their distance.
    [first, if first == last { last + 0.001 } else { last }]
}

/// Returns YaRN's frequency in place of `f`, the frequency of pair `i` of dimensions.
fn yarn(f: f64, factor: f64, i: usize, [first, last]: [f64; 2]) -> f64 {
    let stretched = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
    f / factor * stretched + f * (1.0 - stretched)
}

/// Returns the object under `key` of `config`; None if it is missing or empty.
fn filled<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    config.get(key)?.as_object().filter(|keys| !keys.is_empty())
}

/// Finds rotary parameters that transformers 5 refuses although this program doesn't need them.
pub(crate) fn refused(config: &Map<String, Value>) -> Vec<String> {
    let mut places = [SCALING, PARAMETERS].into_iter();
    let found = places.find_map(|place| Some((place, filled(config, place)?)));
    let Some((place, keys)) = found else { return Vec::new() };
    let mut refused = Vec::new();
    for key in ["rope_theta", "original_max_position_embeddings"] {
        if keys.get(key).is_some_and(Value::is_null) {
            refused.push(format!(
                "config.json says {place}.{key} null, where transformers 5 wants a number"
            ));
        }
    }
    let kind = keys.get("rope_type").or(keys.get("type")).and_then(Value::as_str);
    if kind == Some("yarn") && !keys.contains_key("factor") {
        refused.push(format!(
            "config.json has no {place}.factor, without which transformers refuses yarn"
        ));
    }
    refused
}

/// Whether the config scales frequencies by YaRN.
pub(crate) fn is_yarn(config: &Map<String, Value>) -> bool {
    let places = [SCALING, PARAMETERS].into_iter().filter_map(|key| config.get(key));
    let mut kinds = places.filter_map(|keys| keys.get("rope_type").or(keys.get("type")));
    kinds.any(|kind| kind == "yarn")
}

/// Returns YaRN's factor of attention for a context stretched by `factor`.
fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

/// Reads the number of dimensions that are rotated.
fn rotated(keys: &Keys<'_>, shape: RopeShape) -> Result<usize> {
    let partial = match keys.number(PARTIAL)? {
        Some(factor) => factor,
        None => keys.config.optional_f64(PARTIAL)?.unwrap_or(1.0),
    };
    if partial != 1.0 && !shape.partial {
        return Err(unsupported(
            &keys.config,
            "a partial_rotary_factor other than 1 in this family",
        ));
    }
    // Rounded down, as loaders do.
    let dims = (shape.width as f64 * partial) as usize;
    if dims == 0 || dims % 2 == 1 || dims > shape.width {
        let what = format!(
            "makes {dims} of {} dimensions rotate; an even number up to that can",
            shape.width
        );
        return Err(keys.config.error(PARTIAL, &what));
    }
    Ok(dims)
}

/// Reads or computes YaRN's factor of cos and sin.
fn attention_factor(keys: &Keys<'_>, factor: f64) -> Result<f64> {
    let given = keys.number("attention_factor")?;
    let of_rotary = keys.nonzero("mscale")?;
    let of_scores = keys.nonzero("mscale_all_dim")?;
    Ok(match (given, of_rotary, of_scores) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    })
}

fn decode_yarn(keys: &Keys<'_>) -> Result<RopeScaling> {
    let original = keys.original()?;
    let factor = match keys.number("factor")? {
        Some(_) => keys.positive("factor")?,
        None => keys.config.optional_f64("max_position_embeddings")?.unwrap_or(original) / original,
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: attention_factor(keys, factor)?,
        beta_fast: keys.nonzero("beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.nonzero("beta_slow")?.unwrap_or(1.0),
        // A null counts as false there, a missing key as true.
        truncate: keys
            .parameters
            .and_then(|p| p.get("truncate"))
            .is_none_or(|v| v.as_bool() == Some(true)),
        original,
    })
}

fn unsupported(config: &Config<'_>, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{what} is not supported"))
        .file(config.file)
        .remedy("supported rope types: default, linear, llama3, yarn")
}
