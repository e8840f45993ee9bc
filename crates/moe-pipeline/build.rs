//! Gives the build an id, so that results of other builds of the same version are not taken for
//! this one's.
//!
//! It is a hash of all sources that decide what a result's bytes are: the libraries, the families,
//! the kernels and the versions of what they are built on. The same sources have the same id
//! wherever they lie. Out of a registry, where the other libraries' sources are elsewhere, it is a
//! hash of this package: the versions in its manifest, which are exact, stand for the others.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// The command line only passes options on.
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
    // std's hasher has fixed keys; that another compiler may hash in another way does no harm.
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

/// What is hashed of a checkout, from its root.
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
        // What editors leave beside sources is none.
        let shown = name.to_string_lossy();
        if !shown.starts_with('.') && !shown.ends_with('~') {
            list(root, &part.join(&name), files);
        }
    }
}
