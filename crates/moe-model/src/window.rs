//! Reads and writes the config keys that say which layers have a sliding window.

use moe_checkpoint::json::shown;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::base_config::is_window;
use crate::codec::{Config, cannot};
use crate::family::WindowRule;

impl WindowRule {
    /// Reads the window of each of `layers` layers, in tokens; None for a layer without one.
    pub(crate) fn decode(self, config: &Config<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
        let has_window =
            self.is_enabled(config)? && config.get(WINDOW).is_some_and(|window| !window.is_null());
        // The list counts even without a window: loaders refuse it, or attend to all tokens,
        // including future ones.
        let types =
            config.get(LAYER_TYPES).filter(|types| self.reads_layer_types() && !types.is_null());
        let slides = match types {
            Some(types) => decode_layer_types(config, types, layers)?,
            None if has_window => self.sliding(config, layers)?,
            None => vec![false; layers],
        };
        if !slides.contains(&true) {
            // Nothing reads the width.
            return Ok(vec![None; layers]);
        }
        if !has_window {
            let what = "has sliding_attention, where no window is set: use_sliding_window is false, or sliding_window is null";
            return Err(config
                .error(LAYER_TYPES, what)
                .better_remedy("set the window, or write full_attention"));
        }
        let window = width(config)?;
        Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
    }

    /// Whether the config switches its window on, if it has one.
    fn is_enabled(self, config: &Config<'_>) -> Result<bool> {
        match self {
            WindowRule::None => Ok(false),
            WindowRule::EveryLayer | WindowRule::EveryUnlessListed => Ok(true),
            _ => config.bool("use_sliding_window"),
        }
    }

    /// Reads which layers have the window, if no list says it.
    fn sliding(self, config: &Config<'_>, layers: usize) -> Result<Vec<bool>> {
        let last = match self {
            WindowRule::LateLayers | WindowRule::AlternateLayers => {
                config.usize("max_window_layers")?
            }
            _ => layers,
        };
        let slides = (0..layers).map(|layer| match self {
            WindowRule::LateLayers => layer >= last,
            WindowRule::AlternateLayers => layer < last && layer.is_multiple_of(2),
            _ => true,
        });
        Ok(slides.collect())
    }

    /// Says what transformers 5.23 refuses of the keys of windows although it has only one meaning;
    /// None if it accepts them.
    pub(crate) fn refused(self, config: &Map<String, Value>) -> Option<String> {
        let window = config.get(WINDOW);
        let is_null = window.is_some_and(Value::is_null);
        let refused = match self {
            // Caches also read it in families without windows.
            WindowRule::None => {
                let said = window.filter(|window| !is_window(window)).map(shown)?;
                format!(
                    "{WINDOW} {said}, where transformers wants a positive whole number, or null"
                )
            }
            WindowRule::EveryUnlessListed if is_null && config.contains_key(LAYER_TYPES) => {
                format!(
                    "{LAYER_TYPES} and {WINDOW} null, at which transformers looks for a window: remove {LAYER_TYPES}"
                )
            }
            WindowRule::AlternateLayers if is_null && is_switched_on_unlisted(config) => {
                format!(
                    "use_sliding_window true and {WINDOW} null, where transformers 5 wants a number"
                )
            }
            _ => return None,
        };
        Some(format!("config.json says {refused}"))
    }

    fn reads_layer_types(self) -> bool {
        matches!(
            self,
            WindowRule::LateLayers | WindowRule::AlternateLayers | WindowRule::EveryUnlessListed
        )
    }

    /// Writes `windows`, one for each layer, into the config `raw` of a family with this rule.
    pub(crate) fn encode(
        self,
        windows: &[Option<usize>],
        raw: &mut Map<String, Value>,
    ) -> Result<()> {
        self.encode_width(windows, raw)?;
        // Two of the rules read the same keys differently, but the list means the same to both. The
        // third rule doesn't need it, and loaders would take it for a sign of another family.
        let needs_list = self != WindowRule::EveryUnlessListed || !is_uniform(windows);
        if self.reads_layer_types() && needs_list {
            let types: Vec<_> =
                windows.iter().map(|w| if w.is_some() { SLIDING } else { FULL }).collect();
            raw.insert(LAYER_TYPES.into(), json!(types));
        } else {
            raw.remove(LAYER_TYPES);
        }
        Ok(())
    }

    /// Writes the width of the window, if a layer has one.
    fn encode_width(self, windows: &[Option<usize>], raw: &mut Map<String, Value>) -> Result<()> {
        match (self, windows.iter().flatten().max()) {
            (WindowRule::None, None) => {
                // Caches of loaders read it in every family.
                raw.remove(WINDOW);
            }
            (WindowRule::None, Some(_)) => return Err(cannot("a sliding window")),
            (WindowRule::EveryLayer | WindowRule::IfEnabled, _) if !is_uniform(windows) => {
                return Err(cannot("a sliding window in some layers only"));
            }
            (WindowRule::EveryLayer | WindowRule::EveryUnlessListed, window) => {
                raw.insert(WINDOW.into(), json!(window));
            }
            (_, None) => switch_off(raw),
            (_, Some(window)) => {
                if windows.iter().flatten().any(|w| w != window) {
                    return Err(cannot("sliding windows of several widths"));
                }
                raw.insert("use_sliding_window".into(), json!(true));
                raw.insert(WINDOW.into(), json!(window));
            }
        }
        Ok(())
    }
}

/// Whether all layers have the same window, or none has one.
fn is_uniform(windows: &[Option<usize>]) -> bool {
    windows.windows(2).all(|pair| pair[0] == pair[1])
}

/// Writes that no layer has a window.
fn switch_off(raw: &mut Map<String, Value>) {
    raw.insert("use_sliding_window".into(), json!(false));
    // A width that nothing reads stays, unless its type alone stops a loader.
    if raw.get(WINDOW).is_some_and(|window| window.as_f64().is_none() && !window.is_null()) {
        raw.remove(WINDOW);
    }
}

/// Whether the window is on, and no list says which layers have it.
fn is_switched_on_unlisted(config: &Map<String, Value>) -> bool {
    config.get("use_sliding_window") == Some(&Value::Bool(true))
        && config.get(LAYER_TYPES).is_none_or(Value::is_null)
}

/// Reads the width of the window in tokens.
fn width(config: &Config<'_>) -> Result<usize> {
    match config.usize(WINDOW)? {
        0 => Err(config.error(WINDOW, "is 0; null stands for no window")),
        window => Ok(window),
    }
}

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

const LAYER_TYPES: &str = "layer_types";
const WINDOW: &str = "sliding_window";

/// Reads from a list of `types` which layers have a window.
fn decode_layer_types(config: &Config<'_>, types: &Value, layers: usize) -> Result<Vec<bool>> {
    let types = types.as_array().filter(|t| t.len() == layers);
    let types = types
        .ok_or_else(|| config.error(LAYER_TYPES, "is not a list with an entry for each layer"))?;
    types
        .iter()
        .map(|t| match t.as_str() {
            Some(SLIDING) => Ok(true),
            Some(FULL) => Ok(false),
            _ => Err(config.error(LAYER_TYPES, &format!("has {t}, which is not supported"))),
        })
        .collect()
}
