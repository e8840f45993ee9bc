//! Gives each build an id, so that results of another build of the same version aren't taken for
//! this build's.
//!
//! The id is a hash of all sources that decide a result's bytes: the libraries, the families, the
//! kernels and the versions of their dependencies. The same sources have the same id wherever they
//! lie. In a package from a registry, the other libraries' sources are elsewhere, so the hash
//! covers this package alone: the exact versions in its manifest stand for the others.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// The crates whose sources are hashed. The command line isn't among them: it only passes options
/// on.
const CRATES: [&str; 6] =
    ["moe-checkpoint", "moe-model", "moe-math", "moe-forward", "moe-passes", "moe-pipeline"];
const PARTS: [&str; 5] = ["src", "families", "kernels", "build.rs", "Cargo.toml"];

fn main() {
    let package = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let package = Path::new(&package);
    let checkout = package.join("../..");
    let (root, parts) = if checkout.join("crates/moe-pipeline").is_dir() {
        (checkout, of_checkout())
    } else {
        (package.to_owned(), PARTS.map(PathBuf::from).to_vec())
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for part in parts.into_iter().filter(|part| root.join(part).exists()) {
        println!("cargo::rerun-if-changed={}", root.join(&part).display());
        list(&root, &part, &mut files);
    }
    files.sort();
    // std's hasher has fixed keys. If another compiler hashes differently, no harm is done.
    let mut hasher = DefaultHasher::new();
    for file in files {
        let path = root.join(&file);
        let bytes =
            fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        (file.to_string_lossy(), bytes).hash(&mut hasher);
    }
    for name in ["TARGET", "CARGO_FEATURE_CUDA", "CARGO_FEATURE_METAL"] {
        (name, env::var_os(name)).hash(&mut hasher);
    }
    println!("cargo::rustc-env=MOE_BUILD={:016x}", hasher.finish());
}

/// The files of a checkout that are hashed, relative to its root.
fn of_checkout() -> Vec<PathBuf> {
    let of_crates = CRATES
        .iter()
        .flat_map(|name| PARTS.iter().map(move |part| Path::new("crates").join(name).join(part)));
    of_crates.chain(["Cargo.lock".into(), "Cargo.toml".into()]).collect()
}

/// Adds the files in `part`, a file or folder below `root`.
fn list(root: &Path, part: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root.join(part)) else { return files.push(part.to_owned()) };
    for name in entries.flatten().map(|entry| entry.file_name()) {
        // Editors leave hidden files beside sources; these aren't sources.
        let shown = name.to_string_lossy();
        if !shown.starts_with('.') && !shown.ends_with('~') {
            list(root, &part.join(&name), files);
        }
    }
}
