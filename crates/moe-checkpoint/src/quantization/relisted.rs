//! Keeps a `quantization_config` when modules get other numbers: its lists follow the modules, and
//! the rest stays.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::compressed::CompressedTensors;
use super::target::Target;
use super::{Quantization, Scheme, kept};

/// The config keys under which Hugging Face's fp8, and vLLM, list modules that stay as they are.
const NOT_CONVERTED: [&str; 2] = ["modules_to_not_convert", "ignored_layers"];
/// The prefix of GPTQ's patterns for modules that aren't quantized.
const EXCEPT: &str = "-:";
/// Part of the names of modules in layers.
const LAYERS: &str = "layers.";

/// The modules of the model that the config is for.
struct Modules<'a> {
    plain: &'a [String],
    quantized: &'a [(String, Scheme)],
}

impl Quantization {
    /// `said`, from which this was read, for a model with other modules. `plain` names those with a
    /// matrix that isn't quantized, `quantized` the others. Patterns and classes that still hold
    /// stay; names of modules that are gone or quantized are removed. Each entry is listed once.
    pub fn relisted(
        &self,
        said: &Value,
        plain: &[String],
        quantized: &[(String, Scheme)],
    ) -> Value {
        let modules = Modules { plain, quantized };
        let Some(mut said) = said.as_object().cloned() else {
            return self.declared(plain, quantized);
        };
        match self {
            Self::Compressed(compressed) => modules.relist_compressed(compressed, &mut said),
            Self::BlockFp8 { block } => {
                // Without this key, not all loaders assume what transformers assumes.
                said.entry("weight_block_size").or_insert_with(|| json!(block));
                modules.relist_fp8(&mut said);
            }
            Self::Gptq(_) => modules.relist_gptq(&mut said),
        }
        Value::Object(said)
    }
}

impl Modules<'_> {
    fn relist_compressed(&self, compressed: &CompressedTensors, said: &mut Map<String, Value>) {
        let ignore = self.still_ignored(&compressed.ignore);
        let mut found = CompressedTensors { groups: compressed.groups.clone(), ignore };
        if !self.has_schemes_of(&found) {
            found = found.regrouped(self.quantized);
            let targets = said
                .get("config_groups")
                .and_then(Value::as_object)
                .map(|old| targets(compressed, &found, old));
            said.insert("config_groups".to_owned(), Value::Object(targets.unwrap_or_default()));
        }
        let missing = self.plain.iter().filter(|module| found.scheme(module).is_some());
        let ignore: Vec<String> =
            found.ignore.iter().map(Target::text).chain(missing.cloned()).collect();
        said.insert("ignore".to_owned(), json!(ignore));
    }

    /// The targets in `ignore` that still hold, each once.
    fn still_ignored(&self, ignore: &[Target]) -> Vec<Target> {
        let plain: BTreeSet<&String> = self.plain.iter().collect();
        let mut listed = Vec::new();
        for target in ignore {
            let still_holds = match target {
                Target::Class(_) => true,
                Target::Name(name) => plain.contains(name),
                Target::Pattern(_) => {
                    !self.quantized.iter().any(|(module, _)| target.names(module))
                }
            };
            if still_holds && !listed.contains(target) {
                listed.push(target.clone());
            }
        }
        listed
    }

    /// Whether `compressed` gives each quantized module its scheme, and names only modules that
    /// exist.
    fn has_schemes_of(&self, compressed: &CompressedTensors) -> bool {
        let there: BTreeSet<&String> = self.quantized.iter().map(|(module, _)| module).collect();
        let mut targets = compressed.groups.iter().flat_map(|group| &group.targets);
        !targets.any(|target| matches!(target, Target::Name(name) if !there.contains(name)))
            && self
                .quantized
                .iter()
                .all(|(module, scheme)| compressed.scheme(module) == Some(*scheme))
    }

    fn relist_fp8(&self, said: &mut Map<String, Value>) {
        for key in NOT_CONVERTED {
            let Some(old) = said.get(key).and_then(Value::as_array) else { continue };
            let mut listed: Vec<Value> = Vec::new();
            for entry in old {
                if self.still_covers_plain(entry) && !listed.contains(entry) {
                    listed.push(entry.clone());
                }
            }
            let missing = self.plain.iter().filter(|module| !is_covered(&listed, module));
            let missing: Vec<Value> = missing.map(|module| json!(module)).collect();
            listed.extend(missing);
            said.insert(key.to_owned(), Value::Array(listed));
        }
    }

    /// Whether fp8's `entry` covers no quantized module, and at least one plain module if it is
    /// about a layer.
    fn still_covers_plain(&self, entry: &Value) -> bool {
        entry.as_str().is_some_and(|name| {
            let is_of_layer = name.contains(LAYERS);
            !self.quantized.iter().any(|(module, _)| covers(name, module))
                && (!is_of_layer || self.plain.iter().any(|module| covers(name, module)))
        })
    }

    fn relist_gptq(&self, said: &mut Map<String, Value>) {
        let Some(Value::Object(old)) = said.get("dynamic") else { return };
        let mut listed = Map::new();
        let mut patterns = Vec::new();
        for (text, value) in old {
            // An entry that this program can't interpret stays as it is.
            let Some(pattern) = exception(text) else {
                listed.insert(text.clone(), value.clone());
                continue;
            };
            if self.still_excepts_plain(&pattern, text) {
                listed.insert(text.clone(), value.clone());
                patterns.push(pattern);
            }
        }
        for module in self.plain {
            if !patterns.iter().any(|pattern| pattern.is_match(module)) {
                listed.insert(kept(module, self.quantized), json!({}));
            }
        }
        said.insert("dynamic".to_owned(), Value::Object(listed));
    }

    /// Whether the `pattern` of GPTQ's exception `text` matches no quantized module, and at least
    /// one plain module if it is about layers.
    fn still_excepts_plain(&self, pattern: &Regex, text: &str) -> bool {
        let is_of_layer = text.contains("layers");
        !self.quantized.iter().any(|(module, _)| pattern.is_match(module))
            && (!is_of_layer || self.plain.iter().any(|module| pattern.is_match(module)))
    }
}

/// The groups `new`. A group whose scheme was in `read` keeps all other settings from `old`, the
/// text of `read`.
fn targets(
    read: &CompressedTensors,
    new: &CompressedTensors,
    old: &Map<String, Value>,
) -> Map<String, Value> {
    let mut groups = Map::new();
    for (index, group) in new.groups.iter().enumerate() {
        let before = read.groups.iter().position(|known| known.scheme == group.scheme);
        let (name, said) = match before.and_then(|at| old.iter().nth(at)) {
            Some((name, said)) => (name.clone(), said.clone()),
            None => (format!("group_{index}"), group.declared()),
        };
        let mut said = said;
        said["targets"] = json!(group.targets.iter().map(Target::text).collect::<Vec<_>>());
        groups.insert(name, said);
    }
    groups
}

/// The pattern of modules that the key `text` of GPTQ's `dynamic` excepts; None if it isn't such a
/// key.
fn exception(text: &str) -> Option<Regex> {
    Regex::new(&format!("^(?:{})", text.strip_prefix(EXCEPT)?)).ok()
}

/// Whether one of fp8's entries `listed` keeps `module` as it is.
fn is_covered(listed: &[Value], module: &str) -> bool {
    listed.iter().filter_map(Value::as_str).any(|name| covers(name, module))
}

/// Whether fp8's entry `name` keeps `module` as it is, by the beginning or the end of its name.
fn covers(name: &str, module: &str) -> bool {
    let begins_with_it = module
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || name.ends_with('.'));
    begins_with_it || module.ends_with(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Integers, QUANTIZATION_KEY};
    use super::*;

    fn relisted(said: &Value, plain: &[&str], quantized: &[(String, Scheme)]) -> Value {
        let plain: Vec<String> = plain.iter().map(|name| (*name).to_owned()).collect();
        let again = |said: &Value| {
            let config = json!({ QUANTIZATION_KEY: said });
            let read = Quantization::read(config.as_object().unwrap(), Path::new("config.json"))
                .unwrap()
                .unwrap();
            read.relisted(said, &plain, quantized)
        };
        let relisted = again(said);
        // Relisting again changes nothing.
        assert_eq!(again(&relisted), relisted);
        relisted
    }

    fn scheme(bits: u32) -> Scheme {
        Scheme::Integers(Integers { bits, group: Some(32), symmetric: true })
    }

    fn expert(index: usize) -> String {
        format!("model.layers.0.mlp.experts.{index}.up_proj")
    }

    fn group(bits: u32, targets: &Value) -> Value {
        json!({
            "targets": targets,
            "weights": { "num_bits": bits, "type": "int", "strategy": "group", "group_size": 32, "observer": "mse" },
        })
    }

    #[test]
    fn ignored_modules_follow_experts_and_are_listed_once() {
        let router = "model.layers.0.mlp.gate";
        let said = |ignore: Value| {
            json!({
                "quant_method": "compressed-tensors",
                "config_groups": { "mine": group(4, &json!(["Linear"])) },
                "ignore": ignore,
                "kv_cache_scheme": { "num_bits": 8 },
            })
        };
        let quantized = [(expert(0), scheme(4)), (expert(2), scheme(4))];
        let plain_expert = expert(1);
        let plain = ["lm_head", router, &plain_expert];
        // Expert 1 was expert 3; expert 0 was plain and is gone.
        for (before, after) in [
            (
                json!(["lm_head", router, expert(3), expert(0)]),
                json!(["lm_head", router, expert(1)]),
            ),
            (json!(["lm_head", "lm_head", router, router]), json!(["lm_head", router, expert(1)])),
            (
                json!(["re:.*gate$", "Embedding", "lm_head", "re:.*experts\\.2\\."]),
                json!(["re:.*gate$", "Embedding", "lm_head", expert(1)]),
            ),
            (json!([]), json!(["lm_head", router, expert(1)])),
            (Value::Null, json!(["lm_head", router, expert(1)])),
        ] {
            assert_eq!(relisted(&said(before), &plain, &quantized), said(after));
        }
    }

    #[test]
    fn groups_follow_experts() {
        let said = |groups: Value| json!({ "quant_method": "compressed-tensors", "config_groups": groups, "ignore": [] });
        let before = said(json!({
            "a": group(8, &json!(["re:.*experts\\.5\\..*"])),
            "b": group(4, &json!(["Linear"])),
        }));
        // Expert 5 is now expert 1.
        let quantized = [(expert(0), scheme(4)), (expert(1), scheme(8)), (expert(2), scheme(4))];
        let after =
            said(json!({ "a": group(8, &json!([expert(1)])), "b": group(4, &json!(["Linear"])) }));
        assert_eq!(relisted(&before, &[], &quantized), after);
        // A name that is gone is removed; a pattern that still holds stays.
        let gone = said(
            json!({ "a": group(8, &json!([expert(1), expert(7)])), "b": group(4, &json!(["Linear"])) }),
        );
        assert_eq!(relisted(&gone, &[], &quantized), after);
        let holds = said(
            json!({ "a": group(8, &json!(["re:.*experts\\.1\\."])), "b": group(4, &json!(["Linear"])) }),
        );
        assert_eq!(relisted(&holds, &[], &quantized), holds);
    }

    #[test]
    fn lists_of_other_methods_follow_experts() {
        let fp8 = |listed: Value| json!({ "quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": listed });
        let quantized = [(expert(0), scheme(4)), (expert(10), scheme(4))];
        let plain_expert = expert(1);
        let plain = ["lm_head", "model.layers.0.mlp.gate", &plain_expert];
        let before = fp8(json!([
            "lm_head",
            "lm_head",
            "mlp.gate",
            "model.layers.0.mlp.experts.10",
            expert(3)
        ]));
        assert_eq!(
            relisted(&before, &plain, &quantized),
            fp8(json!(["lm_head", "mlp.gate", expert(1)]))
        );
        let gptq = |dynamic: Value| json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": dynamic });
        let before = gptq(json!({
            "-:^lm_head$": {}, "-:.*mlp\\.gate$": {}, "-:^model\\.layers\\.0\\.mlp\\.experts\\.0\\.": {}, "+:x": { "bits": 8 },
        }));
        let after = gptq(json!({
            "-:^lm_head$": {}, "-:.*mlp\\.gate$": {}, "+:x": { "bits": 8 },
            "-:^model\\.layers\\.0\\.mlp\\.experts\\.1\\.": {},
        }));
        assert_eq!(relisted(&before, &plain, &quantized), after);
    }
}
