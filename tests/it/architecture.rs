//! Tests ARCHITECTURE.md's invariants, as far as manifests and sources show them.

mod modules;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::common::{assert_none, root};
use modules::Modules;
use tokens::Source;

/// The crates of ours that each crate may depend on: all that its row of ARCHITECTURE.md lies
/// above.
const EDGES: [(&str, &[&str]); 7] = [
    ("moe-checkpoint", &[]),
    ("moe-math", &[]),
    ("moe-model", &["moe-checkpoint", "moe-math"]),
    ("moe-forward", &["moe-checkpoint", "moe-math", "moe-model"]),
    ("moe-passes", &["moe-checkpoint", "moe-forward", "moe-math", "moe-model"]),
    ("moe-pipeline", &["moe-checkpoint", "moe-forward", "moe-math", "moe-model", "moe-passes"]),
    (
        "moe-convert",
        &["moe-checkpoint", "moe-forward", "moe-math", "moe-model", "moe-passes", "moe-pipeline"],
    ),
];

/// Crates of others that only the program may depend on.
const OF_THE_PROGRAM: [&str; 3] = ["anyhow", "console", "indicatif"];

fn crates() -> BTreeSet<String> {
    let list = std::fs::read_dir(root().join("crates")).unwrap();
    list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// The sources of a crate, without tests.
fn sources(name: &str) -> Vec<Source> {
    let sources = Source::below(&root().join("crates").join(name).join("src"));
    assert!(sources.len() >= 3, "{name} has {} sources", sources.len());
    sources
}

/// The places in the sources of the crate `name` with a word that `is_forbidden` accepts.
fn uses(name: &str, is_forbidden: impl Fn(&str) -> bool) -> Vec<String> {
    let sources = sources(name);
    let found =
        sources.iter().flat_map(|source| source.words.iter().map(move |word| (source, word)));
    let forbidden = found.filter(|(_, word)| is_forbidden(word));
    forbidden.map(|(source, word)| format!("{} uses {word}", source.path.display())).collect()
}

/// Whether the path `word` is `path` or lies below it.
fn is_below(word: &str, path: &str) -> bool {
    word.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All crates that the manifest of `name` depends on, including those for tests, build scripts and
/// single targets.
fn dependencies(name: &str) -> BTreeSet<String> {
    let text =
        std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let tables = |of: &toml::Table| -> Vec<toml::Table> {
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .filter_map(|kind| of.get(*kind)?.as_table().cloned())
            .collect()
    };
    let targets = manifest
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::values);
    let all = targets.filter_map(toml::Value::as_table).flat_map(tables).chain(tables(&manifest));
    // A dependency may be renamed; `package` is then its real name.
    let names = all.flatten().map(|(key, value)| {
        match value.get("package").and_then(toml::Value::as_str) {
            Some(package) => package.to_owned(),
            None => key,
        }
    });
    names.collect()
}

#[test]
fn arrows_between_crates_point_down_only() {
    let edges: BTreeMap<_, _> = EDGES.into_iter().collect();
    assert_eq!(
        crates(),
        edges.keys().map(|name| (*name).to_owned()).collect(),
        "a crate is not in the table"
    );
    let mut problems = Vec::new();
    for (name, allowed) in edges {
        let found = dependencies(name);
        let ours: BTreeSet<&str> =
            found.iter().map(String::as_str).filter(|d| d.starts_with("moe-")).collect();
        if ours != allowed.iter().copied().collect() {
            problems.push(format!("{name} depends on {ours:?}, not on {allowed:?}"));
        }
        let programs: Vec<_> =
            OF_THE_PROGRAM.iter().filter(|crate_| found.contains(**crate_)).collect();
        if name != "moe-convert" && !programs.is_empty() {
            problems.push(format!("{name} depends on {programs:?}, which are the program's"));
        }
    }
    assert_none(&problems);
}

/// Circles of modules that are intended, each within one folder, with the reason.
const CIRCLES: [(&str, &[&str], &str); 7] = [
    (
        "moe-checkpoint",
        &["staging", "staging::interrupted"],
        "what a killed run left is checked as an output is",
    ),
    (
        "moe-checkpoint",
        &["quantization", "quantization::compressed"],
        "a format's reader gives schemes that all formats share, which one enum of formats hands out",
    ),
    ("moe-convert", &["commands"], "a recipe runs the other commands in one session"),
    (
        "moe-forward",
        &["chat::jinja"],
        "a value can be a macro, whose body the interpreter runs, and text a template",
    ),
    ("moe-math", &["kernels"], "the check of all kernels lies where what they share does"),
    ("moe-math", &["quantize"], "a grid is fitted by the solver that rounds to it, strip by strip"),
    ("moe-pipeline", &["selftest"], "each part checks in the words of the run that it is part of"),
];

/// Whether a row of [`CIRCLES`] has all modules of `circle`.
fn is_meant(name: &str, circle: &BTreeSet<String>) -> bool {
    CIRCLES.iter().any(|(crate_, modules, _)| {
        let has = |module: &String| modules.iter().any(|meant| is_below(module, meant));
        *crate_ == name && circle.iter().all(has)
    })
}

#[test]
fn modules_import_each_other_in_one_direction() {
    let mut problems = Vec::new();
    for name in crates() {
        let circles = Modules::of(&root().join("crates").join(&name).join("src")).circles();
        let others = circles.iter().filter(|circle| !is_meant(&name, circle));
        problems.extend(others.map(|circle| format!("modules of {name}: {circle:?}")));
    }
    assert_none(&problems);
}

#[test]
fn a_family_is_named_in_its_file_alone() {
    let families = std::fs::read_dir(root().join("crates/moe-model/families")).unwrap();
    let names: BTreeSet<String> = families
        .map(|e| format!("\"{}\"", e.unwrap().path().file_stem().unwrap().to_str().unwrap()))
        .collect();
    assert!(names.len() >= 8);
    assert_none(
        &crates()
            .iter()
            .flat_map(|name| uses(name, |word| names.contains(word)))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn only_the_binary_prints() {
    let prints = |word: &str| {
        ["print!", "println!", "eprint!", "eprintln!", "dbg!"]
            .contains(&word.rsplit("::").next().unwrap())
            || ["io::stdout", "io::stderr", "std::io::stdout", "std::io::stderr"].contains(&word)
            || word.contains("stdio::std")
    };
    let libraries = crates().into_iter().filter(|name| name != "moe-convert");
    // The user may give /dev/stdout as the name of a file.
    let is_named = |used: &String| used.contains("staging/stream.rs uses stdio::");
    let used = libraries.flat_map(|name| uses(&name, prints)).filter(|used| !is_named(used));
    assert_none(&used.collect::<Vec<_>>());
    assert!(!uses("moe-convert", prints).is_empty(), "the program prints, and this sees it");
}

const IO_PATHS: [&str; 7] = [
    "std::fs",
    "std::io",
    "std::thread",
    "std::net",
    "std::process",
    "Checkpoint",
    "moe_checkpoint::Checkpoint",
];
const IO_METHODS: [&str; 6] =
    [".exists", ".is_file", ".is_dir", ".canonicalize", ".metadata", ".read_dir"];

#[test]
fn numerics_know_no_files_and_passes_do_no_io() {
    let files =
        |word: &str| ["std::fs", "std::path", "std::net"].iter().any(|path| is_below(word, path));
    assert_none(&uses("moe-math", files));
    // A pass's options name files, but the pipeline opens them.
    let io =
        |word: &str| IO_PATHS.iter().any(|path| is_below(word, path)) || IO_METHODS.contains(&word);
    assert_none(&uses("moe-passes", io));
    assert!(!uses("moe-pipeline", io).is_empty(), "the pipeline opens files, and this sees it");
    // All names and texts, but no comments.
    let of_mixtures =
        |word: &str| ["expert", "router"].iter().any(|name| word.to_lowercase().contains(name));
    assert_none(&uses("moe-checkpoint", of_mixtures));
}

#[test]
fn build_scripts_download_nothing() {
    let paths: Vec<_> =
        crates().iter().map(|name| root().join("crates").join(name).join("build.rs")).collect();
    let scripts: Vec<_> = paths.iter().filter(|path| path.is_file()).collect();
    assert!(!scripts.is_empty());
    for path in scripts {
        let script = Source::read(path);
        let loads = |word: &String| {
            is_below(word, "std::net") || ["http", "curl", "wget"].iter().any(|w| word.contains(w))
        };
        assert_eq!(script.words.iter().find(|word| loads(word)), None, "{}", path.display());
        // The script runs at most the program that this variable names.
        assert_eq!(
            runs(path).iter().find(|program| *program != "& nvcc"),
            None,
            "{}",
            path.display()
        );
    }
}

/// The arguments that a source gives to `Command::new`.
fn runs(path: &Path) -> BTreeSet<String> {
    tokens::arguments_of(&std::fs::read_to_string(path).unwrap(), "Command::new")
}
