//! Tests text and JSON that begin with a byte order mark, as PowerShell and some editors write it:
//! it is read as if the mark weren't there. Python's JSON reader fails at one, so `verify` names
//! files that loaders wouldn't read.

use crate::common::{Sandbox, assert_none};

const TEXT: &str =
    "--data golden/text/english.calibration.txt --data-tokens 128 --sequence-length 64";

/// Writes the file `name` again, with the mark.
fn mark(sandbox: &Sandbox, name: &str) {
    let bytes = sandbox.read(name);
    sandbox.write(name, [b"\xef\xbb\xbf", &bytes[..]].concat());
}

/// A copy of the built-in MoE.
fn trained(sandbox: &Sandbox, name: &str) {
    sandbox.shell(&format!("cp -rL golden/models/moe {name}")).succeeds();
}

/// Files of users, and commands that read them and write `out`.
const READ: [(&str, &str); 5] = [
    ("plan.json", "prune m -o out --plan plan.json"),
    ("tokens.json", "logits m --tokens tokens.json -o out"),
    (
        "prompts.json",
        "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json",
    ),
    ("r.toml", "run r.toml"),
    (
        "before.json",
        "eval moe --data golden/text/english.heldout.txt --data-tokens 64 --golden before.json",
    ),
];

/// A sandbox with each file of `READ`.
fn with_files() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    trained(&sandbox, "moe");
    let plan = "prune m -o planned --experts 3 --criterion random --plan-out plan.json";
    sandbox.run(plan).succeeds();
    sandbox.write("tokens.json", "[[1, 2, 3, 4]]");
    sandbox.write("prompts.json", "[{\"positive\": [\"one\"]}, {\"positive\": [\"two\"]}]");
    sandbox.write("r.toml", "[[step]]\nrun = \"verify\"\nmodel = \"m\"\n");
    let eval = READ[4].1.replace("--golden before.json", "--json");
    sandbox.write("before.json", sandbox.run(&eval).succeeds().stdout);
    sandbox
}

#[test]
fn what_users_write_is_read_behind_a_mark() {
    let sandbox = with_files();
    let mut problems = Vec::new();
    for (file, line) in READ {
        let plain = sandbox.run(line);
        sandbox.shell("rm -rf plain; [ ! -e out ] || mv out plain").succeeds();
        mark(&sandbox, file);
        let marked = sandbox.run(line);
        let same =
            "[ ! -e plain ] || cmp plain out || cmp plain/model.safetensors out/model.safetensors";
        let is_same = plain.code == 0 && marked.code == 0 && sandbox.shell(same).code == 0;
        if !is_same {
            problems.push(format!("{file}: {plain}\n{marked}"));
        }
        sandbox.shell("rm -rf out").succeeds();
    }
    assert_none(&problems);
}

#[test]
fn errors_behind_a_mark_still_name_the_key() {
    let sandbox = Sandbox::new();
    sandbox.write("r.toml", "\u{feff}[[step]]\nrun = \"verify\"\nmodle = \"m\"\n");
    sandbox.run("run r.toml").exits(2).says(&["modle"]);
}

fn prune(model: &str) -> String {
    format!("prune {model} -o out-{model} --experts 12 {TEXT}")
}

/// A sandbox in which the JSON file `name` of the trained model "m" has a mark, and what `verify`
/// said of it.
fn verified_with_mark(name: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    trained(&sandbox, "m");
    mark(&sandbox, &format!("m/{name}"));
    let named = format!("{name} begins with a byte order mark");
    sandbox.run("verify m").exits(1).says(&[&named, "remedy"]);
    sandbox
}

#[test]
fn a_config_with_a_mark_is_rewritten_without() {
    let sandbox = verified_with_mark("config.json");
    trained(&sandbox, "plain");
    for model in ["m", "plain"] {
        sandbox.run(&prune(model)).succeeds();
    }
    let weights = |model: &str| sandbox.read(&format!("out-{model}/model.safetensors"));
    assert!(weights("m") == weights("plain"));
    sandbox.run("verify out-m").succeeds();
}

/// It would be copied as it is, into a result that loaders refuse.
#[test]
fn a_tokenizer_with_a_mark_is_refused() {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let sandbox = verified_with_mark(name);
        let named = format!("{name} begins with a byte order mark");
        sandbox.run(&prune("m")).exits(1).says(&[&named, "remedy"]);
        assert!(!sandbox.path("out-m").exists(), "{name}");
    }
}

#[test]
fn an_index_with_a_mark_is_read_and_verify_says_so() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    sandbox.copy("families/mixtral/sharded/model", "sharded");
    mark(&sandbox, "sharded/model.safetensors.index.json");
    sandbox.run("logits sharded --tokens tokens.json -o l").succeeds();
    sandbox.run("verify sharded").exits(1).says(&["index.json begins with a byte order mark"]);
}

/// The first list of hashes isn't ours. Our own is refused as edited, as after any change.
#[test]
fn a_list_of_hashes_with_a_mark_is_read_unless_it_is_ours() {
    let sandbox = Sandbox::new();
    trained(&sandbox, "m");
    sandbox.run(&prune("m")).succeeds();
    sandbox.shell("cd m && sha256sum config.json >SHA256SUMS").succeeds();
    mark(&sandbox, "m/SHA256SUMS");
    sandbox.run("verify m").succeeds();
    mark(&sandbox, "out-m/SHA256SUMS");
    sandbox.run("verify out-m").exits(1).says(&["SHA256SUMS", "changed after"]);
}
