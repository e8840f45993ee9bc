//! Tests links and names in a source: those of a hub's cache are followed, and no others lead out
//! of an output.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::common::Sandbox;

/// `huggingface_hub` keeps downloads as links to blobs whose names are hashes.
#[test]
fn links_of_a_hub_cache_are_followed() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("families/mixtral/sharded/model", "hub/models--o--n/snapshots/main");
    fs::create_dir(sandbox.path("hub/models--o--n/blobs")).unwrap();
    for name in sandbox.names("hub/models--o--n/snapshots/main") {
        fs::rename(model.path(&name), sandbox.path(&format!("hub/models--o--n/blobs/of-{name}")))
            .unwrap();
        symlink(format!("../../blobs/of-{name}"), model.path(&name)).unwrap();
    }
    sandbox.run("verify hub/models--o--n/snapshots/main").succeeds();
    let before = sandbox.contents();
    sandbox
        .run("prune hub/models--o--n/snapshots/main -o out --experts 4 --criterion random")
        .succeeds();
    assert!(outside(&sandbox, "out") == before);
    for name in sandbox.names("out") {
        assert!(
            sandbox.path("out").join(&name).symlink_metadata().unwrap().is_file(),
            "{name} is no file"
        );
    }
    sandbox.run("verify out").succeeds();
}

#[test]
fn the_hub_cache_lays_links() {
    let sandbox = Sandbox::new();
    let blobs = sandbox.copy("families/mixtral/sharded/model", "models--o--n/blobs");
    let snapshot = "models--o--n/snapshots/main";
    fs::create_dir_all(sandbox.path(snapshot)).unwrap();
    for name in sandbox.names("models--o--n/blobs") {
        symlink(blobs.path(&name), sandbox.path(snapshot).join(&name)).unwrap();
    }
    sandbox.run(&format!("verify {snapshot}")).succeeds();
}

/// All files outside of the output.
fn outside(sandbox: &Sandbox, output: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    sandbox.contents().into_iter().filter(|(path, _)| !path.starts_with(output)).collect()
}

#[test]
fn names_in_a_source_lead_nowhere() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("families/llama/base/model", "model");
    let absolute = sandbox.path("absolute").to_string_lossy().into_owned();
    // Tensors that the family doesn't know keep their names.
    for name in ["../upwards", "../../upwards.safetensors", &absolute, "..", "a/b", "config.json"] {
        model.add_empty_tensor(name);
    }
    let line = ["tokenizer\n", &"0".repeat(64), "  config.json"].concat();
    for name in [b"tokenizer\n", line.as_bytes(), b"tokenizer\xff", b"tokenizer\\..\\config.json"] {
        fs::write(sandbox.path("model").join(std::ffi::OsStr::from_bytes(name)), "side").unwrap();
    }
    let before = sandbox.contents();
    sandbox.run("upcycle model -o out --experts 2 --top-k 1").succeeds();
    assert!(outside(&sandbox, "out") == before);
    // `sha256sum` finds exactly the files that exist.
    sandbox.shell("cd out && sha256sum --quiet --strict -c SHA256SUMS").succeeds();
    sandbox.shell("cd out && test $(wc -l < SHA256SUMS) = $(($(ls | wc -l) - 2))").succeeds();
    sandbox.run("verify out").succeeds();
}
