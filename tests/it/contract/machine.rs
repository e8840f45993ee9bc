//! Tests that the program checks itself, and what it needs of its machine.

use serde_json::Value;

use super::LOGITS;
use crate::common::{BINARY, Sandbox, has, root};

#[test]
fn a_device_that_is_not_there() {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        return;
    }
    let sandbox = Sandbox::new();
    let cuda = sandbox.run(&format!("{LOGITS} --device cuda:0")).exits(1).says(&["CUDA", "remedy"]);
    assert!(cuda.stdout.is_empty());
    sandbox.run(&format!("{LOGITS} --device metal")).exits(1).says(&["Metal", "remedy"]);
    // Commands that read only headers need no device.
    sandbox.run(LOGITS).succeeds();
    sandbox.run(&format!("{LOGITS} --device auto --overwrite")).succeeds();
}

#[test]
fn the_binary_needs_no_libraries_of_its_own() {
    let sandbox = Sandbox::new();
    if has(&["ldd"], "the libraries of the program were not looked for") {
        let ldd = sandbox.shell(&format!("env -u LD_LIBRARY_PATH ldd '{BINARY}'")).succeeds();
        assert!(
            ldd.stdout.contains("libc.so") && !ldd.stdout.contains("not found"),
            "{}",
            ldd.stdout
        );
    }
}

#[test]
fn selftest_checks_every_family_and_pass() {
    let sandbox = Sandbox::new();
    let found = sandbox.run("selftest --json --device cpu").succeeds();
    let checks = found.json();
    let name = |check: &Value| check["name"].as_str().unwrap().to_owned();
    let names: Vec<_> = checks.as_array().unwrap().iter().map(name).collect();
    // Other checks use the built-in MoE, which is in wheels (.ci/run).
    for (start, least) in [("forward", 76), ("upcycle", 20), ("quantized", 3)] {
        let of_kind =
            checks.as_array().unwrap().iter().filter(|check| name(check).starts_with(start));
        let cases: u64 = of_kind.map(|check| check["cases"].as_u64().unwrap()).sum();
        assert!(cases >= least, "{start}: {cases}");
    }
    for family in families() {
        assert!(names.contains(&format!("forward {family}")), "{family}: {names:?}");
    }
    for pass in ["upcycle llama", "quantized", "gradients", "distill"] {
        assert!(names.iter().any(|name| name.starts_with(pass)), "{pass}: {names:?}");
    }
    let left_out = ["prune, merge and GPTQ are not checked", "--features goldens"];
    assert!(left_out.iter().all(|said| found.stderr.contains(said)), "{}", found.stderr);
}

/// The names of all family files.
fn families() -> Vec<String> {
    let files = std::fs::read_dir(root().join("crates/moe-model/families")).unwrap();
    let stem = |path: std::path::PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    files.map(|file| stem(file.unwrap().path())).collect()
}
