//! Tests that files that lie where a run writes stay, whenever they came there, and that a run
//! leaves no files behind, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::common::held::{Held, while_stopped};
use crate::common::{Sandbox, assert_none};

const OBSERVE: &str =
    "observe golden/models/moe --data golden/text/english.calibration.txt --data-tokens 4096";

const LONG: &str =
    "observe golden/models/moe --data golden/text/english.calibration.txt --data-tokens 16384";

#[test]
fn a_file_that_was_written_while_a_run_worked_is_not_replaced() {
    let mut problems = Vec::new();
    for (before, option, change) in [
        ("touch stats", "", "echo THESIS >stats"),
        ("moe-convert $O -o stats", "--overwrite", "rm stats; echo THESIS >stats"),
        ("moe-convert $O -o stats", "--overwrite", "echo THESIS >stats"),
    ] {
        let sandbox = Sandbox::new();
        let outcome = sandbox.held(&Held {
            before: &format!("O='{OBSERVE}'; {before} || exit 9"),
            line: &format!("{OBSERVE} -o stats {option}"),
            once: "-e .stats.partial-moe-convert",
            then: &while_stopped(change),
        });
        let kept = sandbox.read("stats") == b"THESIS\n" && sandbox.path("stats-2").is_file();
        if outcome.code != 1 || !kept {
            problems.push(format!("{change} after {before}: {:?}\n{outcome}", sandbox.names(".")));
        }
    }
    assert_none(&problems);
}

#[test]
fn a_report_that_somebody_replaces_is_not_written_again() {
    let sandbox = Sandbox::new();
    // The second step runs after a foreign file was put in place during the first.
    let step = "[[step]]\nrun = \"observe\"\nmodel = \"golden/models/moe\"\ndata = [\"golden/text/english.calibration.txt\"]\n";
    sandbox.write(
        "r.toml",
        format!(
            "{step}output = \"a\"\ndata-tokens = 4096\n{step}output = \"b\"\ndata-tokens = 512\n"
        ),
    );
    let outcome = sandbox.held(&Held {
        before: "",
        line: "run r.toml --junit j.xml",
        once: "-e .a.partial-moe-convert",
        then: &while_stopped("echo THESIS >j.xml"),
    });
    // The second step runs all the same, and its report is complete.
    outcome.exits(1).says(&["j-2.xml", "in the way"]);
    assert_eq!(sandbox.read("j.xml"), b"THESIS\n");
    let report = String::from_utf8(sandbox.read("j-2.xml")).unwrap();
    assert!(
        report.contains("2. observe: b")
            && !report.contains("<error")
            && !report.contains("<skipped"),
        "{report}"
    );
    assert!(sandbox.path("b").is_file() && !sandbox.path("j.xml-3").exists());
}

const PRUNE: &str = "prune m --experts 3 --criterion random -o out";

#[test]
fn what_replaces_a_private_result_is_private() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(PRUNE).succeeds();
    sandbox.shell("chmod 700 out; chmod 600 out/*").succeeds();
    sandbox.run(&format!("{PRUNE} --overwrite --seed 2")).succeeds();
    let mode = |name: &str| fs::metadata(sandbox.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode("out"), mode("out/model.safetensors"), mode("out/run.json")),
        (0o700, 0o600, 0o600)
    );
}

/// Changes to a result, how each is taken back, and what is said of it.
const CHANGES: [(&str, &str, &str); 6] = [
    ("chmod 555 out", "chmod 700 out", "write-protected"),
    ("chmod 444 out/model.safetensors", "chmod 600 out/model.safetensors", "write-protected"),
    (
        "cp -r out keep; echo mine >out/model.safetensors",
        "rm -r out; mv keep out",
        "model.safetensors",
    ),
    (
        "cp -r out keep; sed -i 's/{/{\"mine\": 1,/;' out/run.json",
        "rm -r out; mv keep out",
        "run.json",
    ),
    (
        "cp -r out keep; echo 'my notes' >out/moe-convert.json",
        "rm -r out; mv keep out",
        "moe-convert.json",
    ),
    (
        "cp -r out keep; echo '{}' >out/moe-convert.json",
        "rm -r out; mv keep out",
        "moe-convert.json",
    ),
];

#[test]
fn earlier_results_that_are_protected_or_changed_are_refused_before_the_work() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(PRUNE).succeeds();
    sandbox.shell("chmod 700 out; chmod 600 out/*").succeeds();
    let again = format!("{PRUNE} --overwrite --seed 3");
    let mut problems = Vec::new();
    for (change, back, complaint) in CHANGES {
        sandbox.shell(change).succeeds();
        problems.extend(sandbox.refuses(&again, 2, &[complaint]));
        sandbox.shell(back).succeeds();
    }
    assert_none(&problems);
    sandbox.run(&again).succeeds();
}

#[test]
fn statistics_that_are_protected_are_refused_before_the_work() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(&format!("{OBSERVE} -o stats")).succeeds();
    sandbox.shell("chmod 444 stats").succeeds();
    let again = format!("{OBSERVE} -o stats --overwrite");
    assert_none(&Vec::from_iter(sandbox.refuses(&again, 2, &["write-protected"])));
}

#[test]
fn links_in_an_earlier_result_are_not_copied() {
    let sandbox = Sandbox::with_model_and_text();
    let step = "[[step]]\nrun = \"prune\"\nmodel = \"m\"\nexperts = 3\ncriterion = \"random\"\n";
    sandbox.write("r.toml", format!("{step}output = \"a\"\n{step}output = \"b\"\n"));
    sandbox.run("run r.toml").succeeds();
    sandbox
        .shell("rm -r b; mv a/run.json secret; ln -s ../secret a/run.json; ln -s ../secret a/training.jsonl")
        .succeeds();
    let again = sandbox.run("run r.toml").succeeds();
    assert!(again.stdout.contains("copy of"), "{again}");
    assert!(!sandbox.names("b").iter().any(|name| name == "run.json" || name == "training.jsonl"));
}

#[test]
fn links_to_folders_are_what_loaders_go_through() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run("prune m --experts 3 --criterion random -o out").succeeds();
    sandbox.write("out/.x/default.jinja", "{{ \"EVIL\" }}");
    let mut problems = Vec::new();
    for (name, target) in [("additional_chat_templates", ".x"), ("code", "nowhere"), ("back", ".")]
    {
        sandbox.shell(&format!("ln -s {target} out/{name}")).succeeds();
        problems.extend(sandbox.refuses("verify out", 1, &[name]));
        fs::remove_file(sandbox.path(&format!("out/{name}"))).unwrap();
    }
    assert_none(&problems);
    // In a hub cache all files are links to blobs.
    sandbox
        .shell(
            "rm -r out/.x; s=models--o--n/snapshots/1; mkdir -p $s models--o--n/blobs; for f in out/*; do n=${f##*/}; \
             cp $f models--o--n/blobs/$n; ln -s ../../blobs/$n $s/$n; done",
        )
        .succeeds();
    let verified = sandbox.run("verify models--o--n/snapshots/1 --json").succeeds();
    assert_eq!(verified.json()["unlisted"], serde_json::json!([]), "{verified}");
}

#[test]
fn temporary_folders_are_removed_by_signals() {
    let mut problems = Vec::new();
    for command in ["selftest", "bench --scratch tmp --layers 1 --data-tokens 4096"] {
        for signal in ["INT", "TERM"] {
            let sandbox = Sandbox::new();
            let outcome = sandbox.held(&Held {
                before: "mkdir tmp; export TMPDIR=$PWD/tmp",
                line: &format!("{command} >said 2>&1"),
                once: "-n \"$(ls -A tmp)\"",
                then: &format!("sleep 0.3; kill -{signal} $pid"),
            });
            let left = sandbox.names("tmp");
            if ![130, 143].contains(&outcome.code) || !left.is_empty() {
                problems.push(format!("{command}, {signal}: left {left:?}\n{outcome}"));
            }
        }
    }
    assert_none(&problems);
}

/// A terminal that was stopped by Ctrl-S blocks like a full pipe.
#[test]
fn a_run_whose_messages_nobody_takes_can_be_stopped() {
    let sandbox = Sandbox::new();
    let start = Instant::now();
    // The pipe is filled before the run begins, and its reader sleeps.
    let outcome = sandbox.held(&Held {
        before: "mkfifo pipe; sleep 60 <pipe & reader=$!; trap 'kill $reader' EXIT\n\
                 exec 9>pipe; timeout 1 head -c 65536 /dev/zero >&9",
        line: &format!("{LONG} -o stats --quiet 2>&9"),
        once: "-e .stats.partial-moe-convert",
        then: "kill -TERM $pid",
    });
    assert_eq!(outcome.code, 143, "{outcome}");
    assert!(start.elapsed() < Duration::from_secs(30), "{outcome}");
    assert_eq!(sandbox.names("."), ["golden", "pipe"]);
}

const HEAL: &str = "heal m --data ids.jsonl --held-out ids.jsonl --sequence-length 64 --batch-tokens 64 --eval-every 2 --steps 400";

#[test]
fn a_training_goes_on_from_its_own_state_and_log_alone() {
    let sandbox = Sandbox::with_model_and_text();
    for (name, rate) in [("a", ""), ("b", "--learning-rate 0.01")] {
        let state = format!("{name}.training/state.safetensors");
        sandbox.killed_at(&format!("{HEAL} -o {name} {rate}"), &state);
    }
    sandbox.shell("rm -rf .*.partial-moe-convert; cp -r a.training a.whole").succeeds();
    let mut problems = Vec::new();
    for (change, complaint) in [
        ("cp b.training/state.safetensors a.training/", "training.jsonl"),
        ("cp b.training/training.jsonl a.training/", "training.jsonl"),
        ("sed -i '2s/\"loss\":/\"loss\":1/' a.training/training.jsonl", "training.jsonl"),
        ("rm a.training/training.jsonl", "training.jsonl"),
    ] {
        sandbox.shell(change).succeeds();
        problems.extend(sandbox.refuses(&format!("{HEAL} -o a --resume"), 1, &[complaint]));
        sandbox.shell("rm -r a.training; cp -r a.whole a.training").succeeds();
    }
    // After more steps than one measurement, a state must have been saved.
    sandbox.shell("rm a.training/state.safetensors; for i in 1 2 3 4 5; do echo \"{\\\"step\\\":$i,\\\"loss\\\":1}\"; done >a.training/training.jsonl").succeeds();
    problems.extend(sandbox.refuses(
        &format!("{HEAL} -o a --resume"),
        1,
        &["state.safetensors", "put the file back"],
    ));
    assert_none(&problems);
    let few = HEAL.replace("400", "2");
    sandbox.run(&format!("{few} -o new --resume")).succeeds().says(&["nothing was saved here"]);
}

#[test]
fn absolute_paths_stay_out_of_what_is_published() {
    let sandbox = Sandbox::with_model_and_text();
    let texts = sandbox.path("home/jane");
    fs::create_dir_all(&texts).unwrap();
    fs::copy(sandbox.path("ids.jsonl"), texts.join("a.jsonl")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::copy(sandbox.path("ids.jsonl"), elsewhere.path().join("b.jsonl")).unwrap();
    let outside = elsewhere.path().display();
    sandbox
        .run(&format!(
            "prune m --experts 3 --data {}/a.jsonl --data b={outside}/b.jsonl --held-out {outside}/b.jsonl -o out",
            texts.display()
        ))
        .succeeds();
    for page in ["out/README.md", "out/report.html"] {
        let text = String::from_utf8(sandbox.read(page)).unwrap();
        let root = sandbox.path("").display().to_string();
        assert!(
            !text.contains(&outside.to_string()) && !text.contains(root.trim_end_matches('/')),
            "{page}"
        );
    }
    sandbox
        .run(&format!(
            "prune {} --experts 3 --criterion random -o far",
            sandbox.path("m").display()
        ))
        .succeeds();
    let run = sandbox.json("far/run.json");
    assert_eq!(run["source"], "m", "{run}");
}

#[test]
fn a_summary_that_cannot_be_written_is_refused_before_the_first_step() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.write(
        "r.toml",
        "[[step]]\nrun = \"prune\"\nmodel = \"m\"\nexperts = 3\ncriterion = \"random\"\noutput = \"o\"\n",
    );
    sandbox.write("notes.md", "# Notes\n");
    sandbox
        .shell("mkdir -p m/deep/er/est; ln notes.md m/deep/er/est/x.md; touch p.md; ln p.md q.md")
        .succeeds();
    let mut problems = Vec::new();
    for summary in ["notes.md", "p.md", "/proc/nothing.md"] {
        let refused = sandbox.run(&format!("run r.toml --summary {summary}"));
        if refused.code == 0 || sandbox.path("o").exists() {
            problems.push(format!("{summary}\n{refused}"));
        }
    }
    assert_none(&problems);
    assert_eq!(sandbox.read("notes.md"), b"# Notes\n");
    sandbox.run("run r.toml --summary new.md").succeeds();
}
