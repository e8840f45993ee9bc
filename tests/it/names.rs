//! Tests difficult names: paths that aren't UTF-8, and folders named like the files of a result.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;

use crate::common::{BINARY, Sandbox, assert_none};

/// Runs the words of `line`, in which `?` stands for a byte that isn't UTF-8, and reads the JSON
/// that it prints.
fn json_of(sandbox: &Sandbox, line: &str) -> serde_json::Value {
    let not_utf_8 = |byte: u8| if byte == b'?' { 0xff } else { byte };
    let words = line.split(' ').map(|word| word.bytes().map(not_utf_8).collect());
    let words = words.map(OsString::from_vec);
    let output = Command::new(BINARY).args(words).current_dir(sandbox.path(".")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    let text = String::from_utf8(output.stdout).unwrap_or_else(|e| panic!("{line}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}\n{text}"))
}

/// JSON is UTF-8: other bytes are replaced in it, while the result has the requested name.
#[test]
fn json_is_text_whatever_a_path_is_called() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense -o out? --experts 4 --top-k 2 --json";
    json_of(&sandbox, upcycle);
    let output = OsStr::from_bytes(b"out\xff");
    assert!(sandbox.path(".").join(output).join("moe-convert.json").exists());
    for line in [
        "inspect out? --json",
        "verify out? --json",
        "eval out? --data golden/text/english.heldout.txt --data-tokens 64 --json",
        &format!("{upcycle} --resume"),
        "man pages? --json",
        &format!("{upcycle} --overwrite --dry-run"),
    ] {
        json_of(&sandbox, line);
    }
}

/// A receipt has all options, even where they name a path that isn't UTF-8. A result of other
/// options isn't finished.
#[test]
fn options_are_kept_beside_a_path_that_is_not_utf_8() {
    let sandbox = Sandbox::new();
    let data = "--data golden/text/english.calibration.txt --data-tokens 256";
    let observed = json_of(&sandbox, &format!("observe golden/models/moe -o s? {data} --json"));
    assert!(observed.to_string().contains("tokens"), "{observed}");
    let added = json_of(&sandbox, "observe golden/models/moe -o two --add s? --json");
    assert!(added.to_string().contains("two"), "{added}");
    let prune = |keep: &str| {
        sandbox.shell(&format!(
            "moe-convert prune golden/models/moe -o out --keep {keep} --stats $'s\\xff' --resume"
        ))
    };
    prune("0.5").succeeds();
    let options = sandbox.json("out/moe-convert.json")["options"].clone();
    assert_eq!(options["keep"], 0.5, "{options}");
    assert_eq!(options["stats"], "s\u{fffd}", "{options}");
    assert!(prune("0.5").succeeds().stdout.contains("finished already"));
    prune("0.75").exits(2).says(&["out", "other options"]);
}

/// A folder that has the name of a file of a result belongs to the user: it is in the way, and
/// stays.
#[test]
fn folders_named_like_files_of_a_result_stay() {
    const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 4 --top-k 2 --overwrite";
    let mut problems = Vec::new();
    let names = ["run.json", "README.md", "SHA256SUMS", "moe-convert.json"];
    for name in names.into_iter().chain(["model.safetensors", "config.json"]) {
        let sandbox = Sandbox::new();
        sandbox.run(UPCYCLE).succeeds();
        fs::remove_file(sandbox.path(&format!("out/{name}"))).unwrap();
        sandbox.write(&format!("out/{name}/mine.txt"), "mine");
        problems.extend(sandbox.refuses(UPCYCLE, 2, &["out"]));
        // The record of a run is not part of the result; every other file would be missing.
        let verified = sandbox.run("verify out");
        let code = i32::from(name != "run.json");
        if verified.code != code || !(verified.stdout + &verified.stderr).contains(name) {
            problems.push(format!("{name}: verify doesn't name it: exit code {}", verified.code));
        }
    }
    assert_none(&problems);
}

/// Beside a source's weights, a folder can't stand in for a file that is needed; where the file is
/// rewritten anyway, the folder is left out.
#[test]
fn folders_named_like_files_of_a_source_are_refused_or_left_out() {
    let mut problems = Vec::new();
    for name in ["run.json", "README.md", "tokenizer.json", "config.json"] {
        let sandbox = Sandbox::new();
        let model = sandbox.copy("models/dense", "model");
        if model.path(name).exists() {
            model.remove(name);
        }
        sandbox.write(&format!("model/{name}/mine.txt"), "mine");
        let line = "upcycle model -o out --experts 4 --top-k 2";
        match name {
            // A folder would be copied, but no loader accepts one for these files.
            "README.md" | "config.json" | "tokenizer.json" => {
                problems.extend(sandbox.refuses(line, 1, &[name]))
            }
            _ => {
                sandbox.run(line).succeeds();
                assert!(sandbox.json("out/run.json").is_object());
            }
        }
        assert_eq!(sandbox.read(&format!("model/{name}/mine.txt")), b"mine");
    }
    assert_none(&problems);
}

/// The same run gives the same receipt, wherever the user keeps its plan.
#[test]
fn a_receipt_names_no_folders_around_a_plan() {
    let sandbox = Sandbox::with_model_and_text();
    let here = sandbox.path(".").canonicalize().unwrap();
    fs::create_dir_all(sandbox.path("jane/plans")).unwrap();
    let prune = |plan: &str, how: &str| {
        sandbox
            .run(&format!("prune m -o out --experts 3 --criterion random --plan-out {plan} {how}"))
            .succeeds()
    };
    let receipt = |plan: &str| {
        prune(plan, "--overwrite");
        String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap()
    };
    let absolute = here.join("jane/plans/plan.json").display().to_string();
    let plain = receipt("plan.json");
    assert!(plain.contains("\"plan.json\": \""), "{plain}");
    assert_eq!(receipt(&absolute), plain);
    // The plan is recognized by any of its paths, as long as it is unedited.
    for plan in [&absolute, "jane/plans/plan.json", "./plan.json"] {
        assert!(prune(plan, "--resume").stdout.contains("finished already"), "{plan}");
    }
    sandbox.write("plan.json", "{}");
    let line = "prune m -o out --experts 3 --criterion random --plan-out plan.json --resume";
    sandbox.run(line).exits(2).says(&["no such plan"]);
}
