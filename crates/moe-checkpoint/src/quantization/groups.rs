//! Finds few targets that give each module its scheme.

use std::collections::{BTreeMap, BTreeSet};

use super::Scheme;
use super::compressed::{CompressedTensors, SchemeGroup};
use super::target::{Target, escaped};

impl CompressedTensors {
    /// The same config with groups that give each of `modules` its scheme. The most frequent scheme
    /// is for `Linear`. The others get patterns of layer names and, if a layer has several schemes,
    /// of the last part of a module's name. Activations and ignored modules stay as they are.
    ///
    /// vLLM, SGLang and compressed-tensors look for a module's name before its class. For whole
    /// layers, engines can also look under their own names.
    pub(super) fn regrouped(&self, modules: &[(String, Scheme)]) -> Self {
        let places = TargetPlaces::of(modules);
        let mut groups = Vec::new();
        for scheme in by_frequency(modules) {
            let known = self.groups.iter().find(|group| group.scheme == scheme).cloned();
            let targets = if groups.is_empty() {
                vec![Target::Class("Linear".to_owned())]
            } else {
                places.targets(scheme)
            };
            groups.push(SchemeGroup {
                targets,
                ..known.unwrap_or_else(|| SchemeGroup::linear(scheme))
            });
        }
        Self { groups, ignore: self.ignore.clone() }
    }
}

/// Modules by layer, and by the last part of their names.
struct TargetPlaces<'m> {
    modules: &'m [(String, Scheme)],
    layers: BTreeMap<usize, BTreeMap<&'m str, BTreeSet<usize>>>,
    /// Indices of modules outside layers.
    others: Vec<usize>,
}

impl<'m> TargetPlaces<'m> {
    fn of(modules: &'m [(String, Scheme)]) -> Self {
        let mut places = Self { modules, layers: BTreeMap::new(), others: Vec::new() };
        for (index, (name, _)) in modules.iter().enumerate() {
            match place(name) {
                Some((layer, last)) => {
                    places.layers.entry(layer).or_default().entry(last).or_default().insert(index);
                }
                None => places.others.push(index),
            }
        }
        places
    }

    /// Targets for the modules of one scheme.
    fn targets(&self, scheme: Scheme) -> Vec<Target> {
        // Groups layers by which of their kinds have the scheme; an empty list stands for all
        // kinds.
        let mut alike: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
        let mut single: Vec<usize> = self.with_scheme(&self.others, scheme).collect();
        for (layer, kinds) in &self.layers {
            let mut named: Vec<&str> = Vec::new();
            for (last, members) in kinds {
                if self.with_scheme(members, scheme).count() == members.len() {
                    named.push(last);
                } else {
                    single.extend(self.with_scheme(members, scheme));
                }
            }
            match named.len() {
                0 => {}
                all if all == kinds.len() => alike.entry(Vec::new()).or_default().push(*layer),
                _ => alike.entry(named).or_default().push(*layer),
            }
        }
        let patterns = alike.into_iter().map(|(named, layers)| pattern(&layers, &named));
        patterns
            .chain(single.into_iter().map(|index| Target::Name(self.modules[index].0.clone())))
            .collect()
    }

    fn with_scheme<'i>(
        &self,
        indices: impl IntoIterator<Item = &'i usize>,
        scheme: Scheme,
    ) -> impl Iterator<Item = usize> {
        indices.into_iter().copied().filter(move |index| self.modules[*index].1 == scheme)
    }
}

/// The layer of the module `name`, such as `model.layers.3.mlp.experts.0.up_proj`, and the last
/// part of its name.
fn place(name: &str) -> Option<(usize, &str)> {
    let (_, rest) = name.split_once("layers.")?;
    let (layer, _) = rest.split_once('.')?;
    Some((layer.parse().ok()?, name.rsplit_once('.')?.1))
}

/// The schemes of `modules`, the most frequent first.
fn by_frequency(modules: &[(String, Scheme)]) -> Vec<Scheme> {
    let mut schemes: Vec<(Scheme, usize)> = Vec::new();
    for (_, scheme) in modules {
        match schemes.iter_mut().find(|(known, _)| known == scheme) {
            Some((_, count)) => *count += 1,
            None => schemes.push((*scheme, 1)),
        }
    }
    // The sort is stable: the first of equals stays first.
    schemes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    schemes.into_iter().map(|(scheme, _)| scheme).collect()
}

/// A pattern for all modules of `layers`, or for those whose names end in one of `named`.
fn pattern(layers: &[usize], named: &[&str]) -> Target {
    let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
    let mut text = format!("re:.*layers\\.{}\\.", alternatives(&layers));
    if !named.is_empty() {
        let named: Vec<String> = named.iter().map(|last| escaped(last)).collect();
        text += &format!(".*\\.{}$", alternatives(&named));
    }
    Target::parse(&text).expect("layers' numbers and escaped names make a pattern")
}

fn alternatives(words: &[String]) -> String {
    match words {
        [one] => one.clone(),
        several => format!("({})", several.join("|")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantization::Integers;

    fn scheme(bits: u32) -> Scheme {
        Scheme::Integers(Integers { bits, group: Some(32), symmetric: true })
    }

    /// Two experts in each layer, with the `bits` of gate, up and down.
    fn modules(bits: &[[u32; 3]]) -> Vec<(String, Scheme)> {
        let of_layer = |(layer, bits): (usize, &[u32; 3])| {
            let named = ["gate_proj", "up_proj", "down_proj"].into_iter().zip(*bits);
            let named: Vec<_> = named.collect();
            let experts =
                (0..2).map(move |expert| format!("model.layers.{layer}.mlp.experts.{expert}"));
            experts.flat_map(move |expert| {
                named
                    .clone()
                    .into_iter()
                    .map(move |(name, bits)| (format!("{expert}.{name}"), scheme(bits)))
            })
        };
        bits.iter().enumerate().flat_map(of_layer).collect()
    }

    /// Scheme and targets of each group; checks that each module is found with its own scheme.
    fn found(modules: &[(String, Scheme)]) -> Vec<(Scheme, Vec<String>)> {
        let compressed =
            CompressedTensors { groups: Vec::new(), ignore: Vec::new() }.regrouped(modules);
        for (name, scheme) in modules {
            assert_eq!(compressed.scheme(name), Some(*scheme), "{name}");
        }
        compressed
            .groups
            .iter()
            .map(|g| (g.scheme, g.targets.iter().map(Target::text).collect()))
            .collect()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn one_scheme_is_for_linear() {
        assert_eq!(found(&modules(&[[4; 3]; 3])), [(scheme(4), texts(&["Linear"]))]);
    }

    #[test]
    fn whole_layers_are_named_by_their_numbers() {
        let mut bits = [[4; 3]; 12];
        (bits[1], bits[11]) = ([8; 3], [8; 3]);
        let wanted =
            [(scheme(4), texts(&["Linear"])), (scheme(8), texts(&[r"re:.*layers\.(1|11)\."]))];
        assert_eq!(found(&modules(&bits)), wanted);
        bits[1] = [4; 3];
        assert_eq!(found(&modules(&bits))[1].1, [r"re:.*layers\.11\."]);
    }

    #[test]
    fn projections_are_named_where_a_layer_has_several_schemes() {
        let found = found(&modules(&[[4, 4, 8], [4, 4, 8], [3, 3, 3], [4, 3, 4]]));
        let wanted = [
            (scheme(4), texts(&["Linear"])),
            (scheme(3), texts(&[r"re:.*layers\.2\.", r"re:.*layers\.3\..*\.up_proj$"])),
            (scheme(8), texts(&[r"re:.*layers\.(0|1)\..*\.down_proj$"])),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn modules_without_a_pattern_are_named_one_by_one() {
        let mut modules = modules(&[[4; 3]; 2]);
        modules[4].1 = scheme(8);
        modules.push(("lm_head".to_owned(), scheme(8)));
        let wanted = texts(&["lm_head", "model.layers.0.mlp.experts.1.up_proj"]);
        assert_eq!(found(&modules)[1], (scheme(8), wanted));
    }
}
