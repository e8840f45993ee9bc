//! Tests `--overwrite`: it replaces only files that a run has written and that are unedited. Files
//! that can't be replaced are refused before the work, and outputs that aren't files are written
//! to.

use std::fs;
use std::os::unix::fs::symlink;

use crate::common::held::{Held, while_stopped};
use crate::common::{Outcome, Sandbox, assert_none};

const HEAL: &str = "heal m -o healed --data ids.jsonl --sequence-length 64 --batch-tokens 64 --eval-every 1 --steps 2";
const PLAN: &str = "prune m -o out --keep 0.5 --data ids.jsonl --data-tokens 128 --sequence-length 64 \
                    --plan-out plan.json";
const JUNIT: &str = "run r.toml --junit j.xml";
const MAN: &str = "man pages";
const RECIPE: &str = "[[step]]\nrun = \"prune\"\nmodel = \"m\"\nexperts = 3\ncriterion = \"random\"\noutput = \"made\"\n";

/// A sandbox with what each of these commands writes.
fn written() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.write("r.toml", RECIPE);
    for line in [HEAL, PLAN, JUNIT, MAN] {
        sandbox.run(line).succeeds();
    }
    sandbox
}

/// A command, a file that it wrote, and a shell command that edits `FILE`.
type Edit = (&'static str, &'static str, &'static str);

/// Edits a file that a run wrote: the run that would replace it refuses to, and names it.
#[track_caller]
fn assert_edits_are_kept(sandbox: &Sandbox, edits: &[Edit]) {
    let mut problems = Vec::new();
    for (line, file, edit) in edits {
        sandbox.shell(&format!("cp {file} before; {}", edit.replace("FILE", file))).succeeds();
        let name = file.rsplit('/').next().unwrap();
        let refused = sandbox.refuses(&format!("{line} --overwrite"), 2, &[name]);
        problems.extend(refused.map(|problem| format!("{edit}\n{problem}")));
        sandbox.shell(&format!("mv before {file}")).succeeds();
    }
    assert_none(&problems);
}

#[test]
fn results_that_were_edited_after_a_run_wrote_them_are_kept() {
    let sandbox = written();
    let foreign = "prune healed -o foreign --experts 3 --criterion random -q";
    sandbox.run(foreign).succeeds();
    let run = "healed/run.json";
    let edits = [
        (HEAL, "healed/training.jsonl", "echo '{\"step\":9,\"mine\":\"x\"}' >>FILE"),
        (HEAL, "healed/training.jsonl", "sed -i '1s/{/{\"mine\":1,/' FILE"),
        (HEAL, "healed/training.jsonl", "sed -i '2s/\"loss\":[0-9]/\"loss\":7/' FILE"),
        (HEAL, run, "sed -i 's/\"host\": \".*\"/\"host\": {\"notes\": \"mine\"}/' FILE"),
        (HEAL, run, "sed -i 's/\"host\": \".*\"/\"host\": \"my note\"/' FILE"),
        (HEAL, run, "sed -i 's/\"device\": \".*\"/\"device\": [\"my note\"]/' FILE"),
        // The folder holds a partial copy of another model.
        (HEAL, "healed/model.safetensors", "head -c 40000 foreign/model.safetensors >FILE"),
        (HEAL, "healed/moe-convert.json", "echo '{\"mine\": [' >FILE"),
    ];
    assert_edits_are_kept(&sandbox, &edits);
}

#[test]
fn files_that_were_edited_after_a_run_wrote_them_are_kept() {
    let mine = "echo '{\"layers\": {\"0\": {\"experts\": 7, \"keep\": [0, 1, 2]}}}' >FILE";
    let edits = [
        (PLAN, "plan.json", "sed -i 's/\"keep\": \\[/\"keep\": [ /' FILE"),
        (PLAN, "plan.json", "sed -i 's/\"method\": \".*\"/\"method\": \"mine\"/' FILE"),
        (PLAN, "plan.json", "echo >>FILE"),
        (PLAN, "plan.json", mine),
        (JUNIT, "j.xml", "sed -i 's/name=\"1. prune/name=\"my prune/' FILE"),
        (JUNIT, "j.xml", "echo '<testsuites><testsuite name=\"pytest\"/></testsuites>' >FILE"),
        (MAN, "pages/moe-convert-prune.1", "echo 'See my notes.' >>FILE"),
        (MAN, "pages/moe-convert.1", "sed -i 's/SYNOPSIS/MINE/' FILE"),
    ];
    assert_edits_are_kept(&written(), &edits);
}

/// --overwrite is proposed where it replaces the result, and other options where they would make it.
#[test]
fn a_result_in_the_way_has_a_remedy_that_works() {
    const PRUNE: &str = "prune m -o out --experts 3 --criterion random";
    let sandbox = Sandbox::with_model_and_text();
    let remedy = |line: &str| {
        let refused = sandbox.run(&format!("{line} --resume")).exits(2).stderr;
        refused.split_once("remedy: ").unwrap().1.trim().to_owned()
    };
    sandbox.run(PRUNE).succeeds();
    let seed = format!("{PRUNE} --seed 1");
    let options = "give --overwrite, another name, or the options that it was made with";
    assert_eq!(remedy(&seed), options);
    assert_eq!(remedy(&HEAL.replace("healed", "out")), "give --overwrite, or another name");
    sandbox.shell("echo >>out/moe-convert.json").succeeds();
    let edited = remedy(PRUNE);
    assert!(edited.starts_with("choose another name, or remove the output yourself"), "{edited}");
    assert!(edited.contains("out/moe-convert.json"), "{edited}");
    sandbox.run(&format!("{PRUNE} --overwrite")).exits(2);
    sandbox.shell(&format!("rm -r out && moe-convert {PRUNE}")).succeeds();
}

/// A full disk or a crash leaves files that belong to no user.
#[test]
fn what_is_unedited_or_damaged_is_replaced() {
    let sandbox = written();
    for line in [HEAL, PLAN, JUNIT, MAN] {
        sandbox.run(&format!("{line} --overwrite")).succeeds();
    }
    for damage in [
        "truncate -s 40000 healed/model.safetensors; rm healed/run.json healed/training.jsonl",
        // The weights end within their header.
        "truncate -s 0 healed/run.json healed/training.jsonl; truncate -s 300 healed/model.safetensors",
    ] {
        sandbox.shell(damage).succeeds();
        sandbox.run(&format!("{HEAL} --overwrite")).succeeds();
    }
}

#[test]
fn an_edited_plan_is_still_a_plan() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(PLAN).succeeds();
    sandbox.shell("sed -i 's/\"keep\": \\[/\"keep\": [ /' plan.json").succeeds();
    sandbox.run("prune m -o of-plan --plan plan.json").succeeds();
}

/// Prunes a model into `out` with --overwrite, and does `change` while the run works.
#[track_caller]
fn changed_while_pruning(sandbox: &Sandbox, change: &str) -> Outcome {
    sandbox.held(&Held {
        before: "",
        line: "prune golden/models/moe --keep 0.5 --data golden/text/english.calibration.txt \
               --data-tokens 4096 -o out --overwrite -q",
        once: "-e .out.partial-moe-convert",
        then: &format!("sleep 0.1; {}", while_stopped(change)),
    })
}

#[test]
fn a_result_that_comes_while_a_run_works_is_not_replaced() {
    let mut problems = Vec::new();
    for (before, change) in [
        ("true", "mv other out"),
        ("mkdir out", "rmdir out; mv other out"),
        ("cp -r other out", "rm -r out; mv other out"),
        ("cp -r other out", "rm -r out/*; mv other/* out"),
        ("cp -r other out", "echo mine >out/README.md"),
        ("cp -r other out", "chmod 700 out; echo mine >out/README.md"),
    ] {
        let sandbox = Sandbox::with_model_and_text();
        let prune = "prune m --experts 3 --criterion random";
        sandbox.run(&format!("{prune} -o other --seed 7")).succeeds();
        sandbox.shell(before).succeeds();
        let outcome = changed_while_pruning(&sandbox, &format!("{change}; cp -r out kept"));
        let kept = sandbox.shell("diff -r out kept && [ -e out-2/moe-convert.json ]").code == 0;
        if outcome.code != 1 || !kept || !outcome.stderr.contains("in the way") {
            problems.push(format!("{change} after {before}: {:?}\n{outcome}", sandbox.names(".")));
        }
    }
    assert_none(&problems);
}

#[test]
fn other_permissions_make_no_other_result_of_it() {
    let mut problems = Vec::new();
    for change in [
        "chmod 700 out",
        "chmod 640 out/README.md out/model.safetensors",
        "chmod -R go-rwx out",
        "touch out/README.md",
    ] {
        let sandbox = Sandbox::with_model_and_text();
        sandbox.run("prune m --experts 3 --criterion random -o out").succeeds();
        // Every run does the same work, so that its result can be compared with the first.
        let outcome = changed_while_pruning(&sandbox, change);
        let is_new =
            sandbox.shell("grep -q leave-one-out out/moe-convert.json && [ ! -e out-2 ]").code == 0;
        if outcome.code != 0 || !is_new {
            problems.push(format!("{change}: {:?}\n{outcome}", sandbox.names(".")));
        }
    }
    assert_none(&problems);
}

#[test]
fn what_cannot_take_a_name_is_refused_before_the_work() {
    let sandbox = Sandbox::with_model_and_text();
    let prune = "prune m --experts 3 --criterion random -o";
    let mut problems = Vec::new();
    for how in ["", "--overwrite", "--dry-run", "--overwrite --dry-run"] {
        problems.extend(sandbox.refuses(
            &format!("{prune} /proc {how}"),
            2,
            &["mount point", "/proc/proc"],
        ));
        for path in ["q/../q", "q/../out", "m/../q/r/../../out"] {
            problems.extend(sandbox.refuses(&format!("{prune} {path} {how}"), 2, &["isn't there"]));
        }
    }
    assert_none(&problems);
    sandbox.run(&format!("{prune} m/../out")).succeeds();
}

const STEPS: &str = "[[step]]\nrun = \"verify\"\nmodel = \"made\"\n";

fn with_recipe() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.write("r.toml", format!("{RECIPE}{STEPS}"));
    sandbox
}

#[test]
fn a_plan_goes_to_a_device() {
    let sandbox = Sandbox::with_model_and_text();
    let plan = sandbox
        .run(&format!("{} -q --dry-run", PLAN.replace("plan.json", "/dev/stdout")))
        .succeeds()
        .stdout;
    assert!(plan.contains("\"keep\": [") && plan.contains("\"sha256\": "), "{plan}");
    sandbox.run(&PLAN.replace("plan.json", "/dev/null")).succeeds();
    let receipt = String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap();
    assert!(!receipt.contains("\"written\""), "{receipt}");
}

#[test]
fn summaries_go_to_devices_and_after_what_a_file_holds() {
    let sandbox = with_recipe();
    let both = sandbox.run("run r.toml --junit /dev/null --summary /dev/stdout").succeeds().stdout;
    assert!(both.contains("| 2. verify: made |"), "{both}");
    sandbox.shell("echo first >log; moe-convert run r.toml -q --summary /dev/stdout >>log; echo last >>log").succeeds();
    let log = String::from_utf8(sandbox.read("log")).unwrap();
    assert!(
        log.starts_with("first\n") && log.contains("## r\n") && log.ends_with("last\n"),
        "{log}"
    );
}

/// There is one report, when all is done, and one summary.
#[test]
fn reports_go_to_pipes_that_somebody_reads() {
    let sandbox = with_recipe();
    sandbox
        .shell(
            "mkfifo junit summary; for i in $(seq 50); do cat junit >j.xml & cat summary >s.md & sleep 0.1; \
             moe-convert run r.toml -q --junit junit --summary summary && break; kill $(jobs -p); wait; done; wait",
        )
        .succeeds();
    let [junit, summary] =
        ["j.xml", "s.md"].map(|name| String::from_utf8(sandbox.read(name)).unwrap());
    assert_eq!(
        (junit.matches("<testsuites").count(), summary.matches("## r\n").count()),
        (1, 1),
        "{junit}{summary}"
    );
}

#[test]
fn pipes_without_a_reader_and_devices_for_other_files_are_refused() {
    let sandbox = with_recipe();
    sandbox.shell("mkfifo junit summary").succeeds();
    let mut problems = Vec::new();
    symlink("/dev/sda-of-nobody", sandbox.path("dangling")).unwrap();
    for (line, complaints) in [
        ("run r.toml --junit junit", ["nobody reads", "junit"]),
        ("run r.toml --summary summary", ["nobody reads", "summary"]),
        ("run r.toml --summary dangling", ["is a link", "dangling"]),
        ("observe m --data ids.jsonl -o /dev/null", ["regular file", "/dev/null"]),
        ("man /dev/null", ["is a file", "/dev/null"]),
    ] {
        let refused = sandbox.run(line);
        if refused.code == 0
            || complaints.iter().any(|complaint| !refused.stderr.contains(complaint))
        {
            problems.push(refused.to_string());
        }
    }
    assert_none(&problems);
}

#[test]
fn a_training_that_goes_on_with_another_rate_says_so() {
    let sandbox = Sandbox::with_model_and_text();
    let heal = HEAL.replace("--steps 2", "--steps 400");
    sandbox.killed_at(&format!("{heal} -q"), "healed.training/state.safetensors");
    let resumed = sandbox.run(&format!("{heal} --resume --learning-rate 0.02 --clip 2")).succeeds();
    resumed.says(&["--learning-rate is 0.02, no longer", "--clip is 2, no longer"]);
    let run = sandbox.json("healed/run.json");
    assert!(run["source"] == "m" && run["training_log_sha256"].is_string(), "{run}");
    fs::remove_dir_all(sandbox.path("healed")).unwrap();
}
