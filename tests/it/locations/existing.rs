//! Tests that existing files are replaced only by files of their kind, and that files of the user
//! stay.

use std::fs;
use std::os::unix::fs::symlink;

use super::{TEXT, sandbox};
use crate::common::held::Held;
use crate::common::{Sandbox, assert_none};

/// A file, a command that writes it in place of `FILE`, and what errors call its content.
type Writer = (&'static str, String, &'static str);

fn writers() -> [Writer; 4] {
    [
        ("stats", format!("observe m -o FILE {TEXT}"), "statistics"),
        ("logits", "logits m --tokens ids.json -o FILE".to_owned(), "logits"),
        ("plan", format!("prune m -o out --keep 0.5 {TEXT} --dry-run --plan-out FILE"), "a plan"),
        ("junit", "run recipe.toml --junit FILE".to_owned(), "JUnit XML"),
    ]
}

/// A sandbox in which each of `writers` has written its file.
fn written(writers: &[Writer]) -> Sandbox {
    let sandbox = sandbox();
    sandbox.write("recipe.toml", "[[step]]\nrun = \"verify\"\nmodel = \"m\"\n");
    for (file, line, _) in writers {
        sandbox.run(&line.replace("FILE", file)).succeeds();
    }
    sandbox
}

#[test]
fn empty_files_and_files_of_the_same_kind_are_replaced() {
    let writers = writers();
    let sandbox = written(&writers);
    for (file, line, _) in &writers {
        sandbox.write("empty", "");
        sandbox.run(&line.replace("FILE", "empty")).succeeds();
        assert!(!sandbox.read("empty").is_empty());
        let again = line.replace("FILE", file);
        sandbox.must_refuse(&again, 2, &["exists", "--overwrite"]);
        sandbox.run(&format!("{again} --overwrite")).succeeds();
    }
}

#[test]
fn files_of_another_kind_are_not_replaced() {
    let writers = writers();
    let sandbox = written(&writers);
    sandbox.write("thesis.tex", "years");
    sandbox.write("other.json", "{\"layers\": 3, \"keep\": []}");
    symlink("thesis.tex", sandbox.path("to-thesis")).unwrap();
    symlink("nowhere", sandbox.path("dangling")).unwrap();
    sandbox.write("out.bin", [0, 159, 146, 150]);
    for (own, line, content) in &writers {
        let over =
            |file: &str| ["", "--overwrite"].map(|how| line.replace("FILE", file) + " " + how);
        let others = writers.iter().map(|(file, ..)| *file).filter(|file| file != own);
        for other in others.chain(["thesis.tex", "other.json", "out.bin"]) {
            sandbox.must_refuse_all(&over(other), 2, &[content]);
        }
        // This is a name of the model, which some of these commands don't read.
        sandbox.must_refuse_all(&over("hard"), 2, &["remedy"]);
        for link in ["to-thesis", "dangling"] {
            sandbox.must_refuse_all(&over(link), 2, &["is a link"]);
        }
        sandbox.must_refuse_all(&over("held"), 2, &["is a directory"]);
    }
}

/// Text may go to a device: see `replaced.rs`.
#[test]
fn tensors_do_not_go_to_a_device() {
    let writers = writers();
    let sandbox = written(&writers);
    for (_, line, _) in writers.iter().filter(|(file, ..)| ["stats", "logits"].contains(file)) {
        let line = line.replace("FILE", "/dev/null");
        sandbox.must_refuse_all(&[format!("{line} --overwrite"), line], 2, &["regular file"]);
    }
}

const PRUNE: &str = "prune m --keep 0.5 --criterion random --seed 1 --overwrite";

/// A sandbox with a result of [`PRUNE`] in `out`.
fn pruned() -> Sandbox {
    let sandbox = sandbox();
    sandbox.run("prune m -o out --keep 0.5 --criterion random").succeeds();
    sandbox
}

/// A result is replaced only if all files in it were written by a run.
#[test]
fn overwrite_keeps_what_no_run_has_written() {
    let sandbox = pruned();
    for foreign in ["out/thesis.tex", "out/notes/thesis.tex", "out/model.gguf", "out/.hidden"] {
        sandbox.write(foreign, "years");
        let named = foreign.split('/').nth(1).unwrap();
        let lines = ["", "--dry-run", "--resume"].map(|how| format!("{PRUNE} -o out {how}"));
        sandbox.must_refuse_all(&lines, 2, &[named, "--overwrite would remove"]);
        sandbox.shell(&format!("rm -r out/{named}")).succeeds();
    }
    // A receipt alone doesn't make a folder a result.
    let mine = "mkdir mine; cp out/moe-convert.json mine; echo years > mine/thesis.tex";
    sandbox.shell(mine).succeeds();
    sandbox.must_refuse(&format!("{PRUNE} -o mine"), 2, &["mine", "SHA256SUMS"]);
    symlink("out", sandbox.path("to-out")).unwrap();
    sandbox.must_refuse(&format!("{PRUNE} -o to-out"), 2, &["to-out", "is a link"]);
    sandbox.run(&format!("{PRUNE} -o out")).succeeds();
    sandbox.run(&format!("{PRUNE} -o ./out/.").replace("--seed 1", "--seed 2")).succeeds();
    assert!(!sandbox.path("out-2").exists());
}

/// With an empty or missing list, all files count as foreign.
#[test]
fn overwrite_keeps_what_is_not_listed() {
    let sandbox = pruned();
    let again = format!("{PRUNE} -o out");
    let sums = sandbox.read("out/SHA256SUMS");
    fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    sandbox.must_refuse(&again, 2, &["SHA256SUMS"]);
    for other in ["", "words\n"] {
        sandbox.write("out/SHA256SUMS", other);
        sandbox.must_refuse(&again, 2, &["remedy"]);
    }
    let more = [sums.as_slice(), format!("{}  zzz\n", "0".repeat(64)).as_bytes()].concat();
    sandbox.write("out/SHA256SUMS", more);
    sandbox.must_refuse(&again, 2, &["SHA256SUMS", "zzz is listed"]);
    sandbox.write("out/SHA256SUMS", sums);
    sandbox.run(&again).succeeds();
}

/// Files that a run has written may have been edited since.
#[test]
fn overwrite_keeps_what_was_edited() {
    let sandbox = pruned();
    let again = format!("{PRUNE} -o out");
    for (name, text) in
        [("README.md", "my card"), ("config.json", "{}"), ("run.json", "{\"runs\": 1}")]
    {
        let before = sandbox.read(&format!("out/{name}"));
        sandbox.write(&format!("out/{name}"), text);
        sandbox.must_refuse(&again, 2, &[name, "--overwrite would remove"]);
        sandbox.write(&format!("out/{name}"), before);
    }
    sandbox.write("out/training.jsonl", "{\"step\": 1}\n");
    sandbox.must_refuse(&again, 2, &["training.jsonl", "--overwrite would remove"]);
    fs::remove_file(sandbox.path("out/training.jsonl")).unwrap();
    sandbox.run(&again).succeeds();
}

#[test]
fn pages_of_the_manual_replace_pages_alone() {
    let sandbox = sandbox();
    sandbox.run("man pages").succeeds();
    let mut problems: Vec<_> =
        sandbox.refuses("man pages", 2, &["moe-convert", "--overwrite"]).into_iter().collect();
    sandbox.run("man pages --overwrite").succeeds();
    sandbox.write("thesis.tex", "years");
    sandbox.write("pages/moe-convert-prune.1", "years");
    problems.extend(sandbox.refuses(
        "man pages --overwrite",
        2,
        &["moe-convert-prune.1", "man page"],
    ));
    fs::remove_file(sandbox.path("pages/moe-convert-prune.1")).unwrap();
    symlink("../thesis.tex", sandbox.path("pages/moe-convert-prune.1")).unwrap();
    problems.extend(sandbox.refuses(
        "man pages --overwrite",
        2,
        &["moe-convert-prune.1", "is a link"],
    ));
    problems.extend(sandbox.refuses("man m", 2, &["config.json", "man pages have no place"]));
    assert_none(&problems);
}

/// Of two runs, the second one doesn't touch the first one's output.
#[test]
fn of_two_runs_at_once_one_has_the_output() {
    let sandbox = sandbox();
    let heal = "heal m -o out --data ids.jsonl --steps 400 --eval-every 1 --batch-tokens 64 --sequence-length 64 --train all -q";
    let outcome = sandbox.held(&Held {
        before: "",
        line: heal,
        once: "-e out.training/state.safetensors",
        then: &format!("moe-convert {heal} --overwrite; second=$?; wait $pid && exit $second"),
    });
    outcome.exits(1).says(&["another run is writing this output"]);
    sandbox.run("verify out").succeeds();
    assert!(!sandbox.path("out.training").exists());
}
