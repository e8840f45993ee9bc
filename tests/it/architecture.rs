//! ARCHITECTURE.md's invariants, as far as reading the sources can tell.

use std::path::{Path, PathBuf};

use crate::common::{assert_none, root};

/// Every Rust source below `dir`, without its tests.
fn sources(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            found.push((
                path.clone(),
                code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n"),
            ));
        }
    }
    found
}

fn crate_sources(name: &str) -> Vec<(PathBuf, String)> {
    sources(&root().join("crates").join(name).join("src"))
}

fn crates() -> Vec<String> {
    let list = std::fs::read_dir(root().join("crates")).unwrap();
    list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn uses(name: &str, words: &[&str]) -> Vec<String> {
    let complain = |path: &Path, word: &str| format!("{} uses {word}", path.display());
    let hits = |(path, code): &(PathBuf, String)| -> Vec<String> {
        words.iter().filter(|w| code.contains(**w)).map(|w| complain(path, w)).collect()
    };
    crate_sources(name).iter().flat_map(hits).collect()
}

#[test]
fn a_family_is_named_in_its_file_alone() {
    let families = std::fs::read_dir(root().join("crates/moe-model/families")).unwrap();
    let names: Vec<String> =
        families.map(|e| format!("\"{}\"", e.unwrap().path().file_stem().unwrap().to_str().unwrap())).collect();
    assert!(names.len() >= 8);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_none(&crates().iter().flat_map(|name| uses(name, &names)).collect::<Vec<_>>());
}

#[test]
fn only_the_binary_prints_and_uses_anyhow() {
    let libraries = crates().into_iter().filter(|name| name != "moe-convert");
    assert_none(
        &libraries.flat_map(|n| uses(&n, &["println!", "eprint", "print!", "anyhow", "indicatif"])).collect::<Vec<_>>(),
    );
}

#[test]
fn numerics_know_no_files_and_passes_do_no_io() {
    assert_none(&uses("moe-math", &["std::fs", "std::path", "moe_checkpoint", "moe_model"]));
    // A pass's options name files, which the pipeline opens.
    let io =
        ["std::fs", "std::io", "std::thread", ".exists()", ".is_file()", ".is_dir()", "canonicalize", "Checkpoint"];
    assert_none(&uses("moe-passes", &io));
    assert_none(&uses("moe-checkpoint", &["expert", "router"]));
}

#[test]
fn build_scripts_download_nothing() {
    let scripts: Vec<_> = crates().iter().map(|name| root().join("crates").join(name).join("build.rs")).collect();
    let scripts: Vec<_> = scripts.iter().filter(|path| path.is_file()).collect();
    assert!(!scripts.is_empty());
    for script in scripts {
        let text = std::fs::read_to_string(script).unwrap();
        // What it runs is named by the variable of this name alone.
        let runs = text.matches("Command::new(").count();
        assert_eq!(runs, text.matches("Command::new(&nvcc)").count(), "{}", script.display());
        assert!(!["http", "std::net", "curl"].iter().any(|word| text.contains(word)), "{}", script.display());
    }
}
