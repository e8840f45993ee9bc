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

#[test]
fn what_users_write_is_read_behind_a_mark() {
    let sandbox = Sandbox::with_model_and_text();
    trained(&sandbox, "moe");
    sandbox
        .run("prune m -o planned --experts 3 --criterion random --plan-out plan.json")
        .succeeds();
    sandbox.write("tokens.json", "[[1, 2, 3, 4]]");
    sandbox.write("prompts.json", "[{\"positive\": [\"one\"]}, {\"positive\": [\"two\"]}]");
    sandbox.write("r.toml", "[[step]]\nrun = \"verify\"\nmodel = \"m\"\n");
    let eval = "eval moe --data golden/text/english.heldout.txt --data-tokens 64";
    sandbox.write("before.json", sandbox.run(&format!("{eval} --json")).succeeds().stdout);
    let lines = [
        ("plan.json", "prune m -o out --plan plan.json".to_owned()),
        ("tokens.json", "logits m --tokens tokens.json -o out".to_owned()),
        (
            "prompts.json",
            "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json"
                .to_owned(),
        ),
        ("r.toml", "run r.toml".to_owned()),
        ("before.json", format!("{eval} --golden before.json")),
    ];
    let mut problems = Vec::new();
    for (file, line) in lines {
        let plain = sandbox.run(&line);
        sandbox.shell("rm -rf plain; [ ! -e out ] || mv out plain").succeeds();
        mark(&sandbox, file);
        let marked = sandbox.run(&line);
        let weights = "model.safetensors";
        let same =
            "[ ! -e plain ] || cmp plain out || cmp plain/model.safetensors out/model.safetensors";
        let is_same = plain.code == 0 && marked.code == 0 && sandbox.shell(same).code == 0;
        if !is_same {
            problems.push(format!("{file}, {weights}: {plain}\n{marked}"));
        }
        sandbox.shell("rm -rf out").succeeds();
    }
    assert_none(&problems);
    // Errors in a recipe still name the line.
    sandbox.write("r.toml", "\u{feff}[[step]]\nrun = \"verify\"\nmodle = \"m\"\n");
    sandbox.run("run r.toml").exits(2).says(&["modle"]);
}

#[test]
fn a_checkpoint_with_marks_is_read_and_verify_says_what_loaders_do() {
    let sandbox = Sandbox::new();
    sandbox.write("tokens.json", "[[1, 2, 3, 4, 5, 6]]");
    trained(&sandbox, "m");
    let prune = |model: &str| format!("prune {model} -o out-{model} --experts 12 {TEXT}");
    sandbox.run(&prune("m")).succeeds();
    let mut problems = Vec::new();
    for (at, file) in
        ["config.json", "tokenizer.json", "tokenizer_config.json"].into_iter().enumerate()
    {
        let model = format!("m{at}");
        trained(&sandbox, &model);
        mark(&sandbox, &format!("{model}/{file}"));
        let named = format!("{file} begins with a byte order mark");
        let verified = sandbox.run(&format!("verify {model}"));
        if verified.code != 1
            || !verified.stderr.contains(&named)
            || !verified.stderr.contains("remedy")
        {
            problems.push(format!("{file}: {verified}"));
        }
        let pruned = sandbox.run(&prune(&model));
        // A config is rewritten. A tokenizer would be copied as it is, into a result that loaders
        // refuse.
        let is_right = match file {
            "config.json" => {
                let weights = ["m", &model]
                    .map(|model| sandbox.read(&format!("out-{model}/model.safetensors")));
                pruned.code == 0
                    && weights[0] == weights[1]
                    && sandbox.run(&format!("verify out-{model}")).code == 0
            }
            _ => {
                let is_written = sandbox.path(&format!("out-{model}")).exists();
                pruned.code == 1
                    && pruned.stderr.contains(&named)
                    && pruned.stderr.contains("remedy")
                    && !is_written
            }
        };
        if !is_right {
            problems.push(format!("{file}: {pruned}"));
        }
    }
    sandbox.copy("families/mixtral/sharded/model", "sharded");
    mark(&sandbox, "sharded/model.safetensors.index.json");
    sandbox.run("logits sharded --tokens tokens.json -o l").succeeds();
    sandbox.run("verify sharded").exits(1).says(&["index.json begins with a byte order mark"]);
    // The list of hashes isn't ours. Our own would be refused as edited, as after any change.
    sandbox.shell("cd m && sha256sum config.json >SHA256SUMS").succeeds();
    mark(&sandbox, "m/SHA256SUMS");
    sandbox.run("verify m").succeeds();
    mark(&sandbox, "out-m/SHA256SUMS");
    sandbox.run("verify out-m").exits(1).says(&["SHA256SUMS", "changed after"]);
    assert_none(&problems);
}
