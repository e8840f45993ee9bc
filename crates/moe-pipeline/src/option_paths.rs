//! Paths in options. They say where a file lies, and not what is in it: work is the same wherever
//! the same files lie.

use std::path::PathBuf;

use serde_json::Value;

/// Options that name checkpoints. Receipts have their hashes under `others`.
const CHECKPOINTS: [&str; 2] = ["expert-model", "original"];
/// Options that name files other than text.
const FILES: [&str; 4] = ["add", "plan", "prompts", "stats"];

/// Options of a pass or of `observe` without the paths of what is read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PathlessOptions {
    /// The options. Each path is an empty text, so that it still shows how many files an option
    /// names, and under which labels.
    pub options: Value,
    /// The paths of the files, in the order of the options' names. Checkpoints aren't among them.
    pub files: Vec<PathBuf>,
}

impl PathlessOptions {
    pub fn new(mut options: Value) -> Self {
        let mut files = Vec::new();
        let fields = options.as_object_mut().into_iter();
        let mut fields: Vec<(&String, &mut Value)> = fields.flatten().collect();
        // Receipts keep the order of keys of whoever wrote them.
        fields.sort_by_key(|(name, _)| *name);
        for (name, value) in fields {
            if CHECKPOINTS.contains(&name.as_str()) {
                each(value).for_each(|path| _ = taken(path));
            } else if FILES.contains(&name.as_str()) {
                files.extend(each(value).filter_map(taken));
            } else {
                files.extend(each(value).filter_map(|text| taken(text.get_mut("path")?)));
            }
        }
        Self { options, files }
    }
}

/// The values of a list; of another value, itself.
fn each(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    match value {
        Value::Array(values) => values.as_mut_slice(),
        single => std::slice::from_mut(single),
    }
    .iter_mut()
}

/// The path, which becomes empty; None where there is no path.
fn taken(path: &mut Value) -> Option<PathBuf> {
    match path {
        Value::String(text) => Some(std::mem::take(text).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::any::TypeId;
    use std::collections::BTreeSet;
    use std::path::Path;

    use clap::{Args, Command};
    use moe_forward::DataSpec;
    use moe_passes::{PASSES, Pass, PassInfo};

    use super::*;
    use crate::observe::ObserveOptions;

    /// Options that name every kind of file that each pass reads.
    const READING: [(&str, &str); 7] = [
        (
            "upcycle",
            "experts = 2\ntop-k = 1\nexpert-model = ['M', 'N']\nprompts = 'P'\ndata = ['D']",
        ),
        ("prune", "plan = 'P'\nstats = 'S'\ndata = ['D', 'l=E@2']\nheld-out = ['H']"),
        ("merge", "keep = 0.5\nstats = 'S'\ndata = ['D']\nheld-out = ['H']"),
        ("quantize", "data = ['D']\npool = ['P']\nheld-out = ['H']"),
        ("distill", "data = ['D']\nheld-out = ['H']"),
        ("heal", "original = 'M'\ndata = ['D']\nheld-out = ['H']"),
        ("heal", "data = ['D']"),
    ];

    fn pass(name: &str, options: &str) -> Box<dyn Pass> {
        PassInfo::named(name).unwrap().options.from_table(options.parse().unwrap()).unwrap()
    }

    #[test]
    fn files_are_those_that_passes_read() {
        for (name, options) in READING {
            let pass = pass(name, options);
            let PathlessOptions { options, files } = PathlessOptions::new(pass.options());
            let found: BTreeSet<&Path> = files.iter().map(PathBuf::as_path).collect();
            assert_eq!(found, pass.inputs().files().collect(), "{name}");
            let elsewhere: Vec<&Path> = pass.inputs().paths().collect();
            for path in elsewhere {
                let quoted = format!("{:?}", path.to_str().unwrap());
                let label = format!("\"label\":{quoted}");
                let said = options.to_string().replace(&label, "");
                assert!(!said.contains(&quoted), "{name}: {options}");
            }
        }
    }

    /// A new option that names a file or a text is known here, too.
    #[test]
    fn all_options_that_name_files_are_known() {
        let observe = ObserveOptions::augment_args(Command::new("observe"));
        let passes = PASSES.into_iter().map(|info| info.options.add_to(Command::new(info.name)));
        let known: Vec<&str> = CHECKPOINTS.into_iter().chain(FILES).collect();
        for command in passes.chain([observe]) {
            for option in command.get_arguments() {
                let (name, of) = (option.get_long().unwrap(), option.get_value_parser().type_id());
                let is_path = of == TypeId::of::<PathBuf>() && name != "plan-out";
                assert_eq!(is_path, known.contains(&name), "{} --{name}", command.get_name());
                let is_text = ["data", "held-out", "pool"].contains(&name);
                assert_eq!(of == TypeId::of::<DataSpec>(), is_text, "--{name}");
            }
        }
    }

    #[test]
    fn labels_weights_and_numbers_of_files_stay() {
        let of = |data: &str| PathlessOptions::new(pass("quantize", data).options());
        let one = of("data = ['a=x']");
        assert_eq!(one.options, of("data = ['a=y']").options);
        assert_eq!(one.files, [Path::new("x")]);
        for other in
            ["data = ['b=x']", "data = ['a=x@1']", "data = ['a=x', 'a=x']", "pool = ['a=x']"]
        {
            assert_ne!(one.options, of(other).options, "{other}");
        }
    }

    #[test]
    fn edited_options_are_taken_as_they_are() {
        let nothing = Vec::<PathBuf>::new();
        for edited in
            ["5", "null", "[\"x\"]", "{\"data\": 1, \"stats\": {\"x\": 1}}", "{\"data\": [{}]}"]
        {
            let options: Value = serde_json::from_str(edited).unwrap();
            let pathless = PathlessOptions::new(options.clone());
            assert_eq!((&pathless.options, &pathless.files), (&options, &nothing));
        }
    }
}
