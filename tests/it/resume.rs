//! Tests that a run continues or keeps only the work of the same run: the same options, inputs, way
//! of writing, and build.
//!
//! A limit on the size of files ends a run at the same place each time: after its training, while
//! it writes the result.

use std::os::unix::fs::PermissionsExt as _;

use std::fs;

use crate::common::{Outcome, Sandbox, assert_none};

const DISTILL: &str = "distill m --data ids.jsonl --width 32 --batch-tokens 32";
const HEAL: &str = "heal m --data ids.jsonl --eval-every 1 --batch-tokens 64 --sequence-length 64";

/// Runs `line` until its training is done.
fn stopped(sandbox: &Sandbox, line: &str) {
    let limited = format!("ulimit -f 24; trap '' XFSZ; moe-convert {line}");
    sandbox.shell(&limited).exits(1).says(&["ulimit"]);
}

fn refused(sandbox: &Sandbox, line: &str, complaints: &[&str]) -> Option<String> {
    sandbox.refuses(line, 1, complaints)
}

#[test]
fn layers_of_other_runs_and_layers_are_refused() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(&format!("{DISTILL} -o whole --steps 3")).succeeds();
    stopped(&sandbox, &format!("{DISTILL} -o a --steps 3"));
    stopped(&sandbox, &format!("{DISTILL} -o b --steps 2"));
    assert_eq!(sandbox.names("a.training"), ["of", "trained.0", "trained.1"]);
    let resume = format!("{DISTILL} -o a --steps 3 --resume");
    let mut problems = Vec::new();
    // Other options, and other settings that change the bytes.
    for (other, differs) in [
        (resume.replace("--steps 3", "--steps 2"), "--steps was 3, and is 2"),
        (resume.replace("--width 32", "--width 40"), "--width was 32, and is 40"),
        (format!("{resume} --dtype bf16"), "--dtype was \"f32\", and is \"bf16\""),
        (format!("{resume} --seed 1"), "--seed was 0, and is 1"),
    ] {
        problems.extend(refused(
            &sandbox,
            &other,
            &["a.training/of", "other options", "--overwrite", differs],
        ));
    }
    let saved = |name: &str| sandbox.path(&format!("a.training/{name}"));
    let intact = |name: &str| sandbox.read(&format!("a.training/{name}"));
    let (first, second, mark) = (intact("trained.0"), intact("trained.1"), intact("of"));
    let of_other = sandbox.read("b.training/trained.0");
    for (name, bytes, complaint) in [
        ("trained.0", &of_other, "trained.0"),
        ("trained.0", &second, "trained.0"),
        ("trained.1", &first, "trained.1"),
        ("trained.0", &first[..first.len() - 1].to_vec(), "trained.0"),
        ("trained.0", &[&first[..], b"x"].concat(), "trained.0"),
        ("of", &sandbox.read("b.training/of"), "other options"),
        ("of", &b"words".to_vec(), "a.training/of"),
        ("of", &Vec::new(), "a.training/of"),
        ("of", &vec![255; 80], "a.training/of"),
    ] {
        let whole = intact(name);
        fs::write(saved(name), bytes).unwrap();
        problems.extend(refused(&sandbox, &resume, &[complaint]));
        fs::write(saved(name), whole).unwrap();
    }
    fs::remove_file(saved("of")).unwrap();
    for how in ["--resume", "--overwrite"] {
        let line = resume.replace("--resume", how);
        problems.extend(refused(&sandbox, &line, &["a.training/of", "missing"]));
    }
    fs::write(saved("of"), mark).unwrap();
    assert_none(&problems);
    sandbox.run(&resume).succeeds().says(&["taken from what was saved"]);
    assert!(sandbox.read("a/model.safetensors") == sandbox.read("whole/model.safetensors"));
    assert!(!sandbox.path("a.training").exists());
    // A run that begins again doesn't use what was saved.
    sandbox.run(&format!("{DISTILL} -o b --steps 3 --overwrite")).succeeds();
    assert!(sandbox.read("b/model.safetensors") == sandbox.read("whole/model.safetensors"));
}

#[test]
fn trainings_of_other_runs_are_refused() {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(&format!("{HEAL} -o whole --steps 3")).succeeds();
    stopped(&sandbox, &format!("{HEAL} -o a --steps 3"));
    stopped(&sandbox, &format!("{HEAL} -o b --steps 3 --seed 1"));
    assert_eq!(sandbox.names("a.training"), ["of", "state.safetensors", "training.jsonl"]);
    let resume = format!("{HEAL} -o a --steps 3 --resume");
    let mut problems = Vec::new();
    for other in [resume.replace("--steps 3", "--steps 4"), format!("{resume} --dtype bf16")] {
        problems.extend(refused(&sandbox, &other, &["other options"]));
    }
    let path = |name: &str| sandbox.path(&format!("a.training/{name}"));
    let log = sandbox.read("a.training/training.jsonl");
    // The log is cut after its first line, which has the settings, and the first step.
    let ends: Vec<usize> =
        log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let cut = ends[1];
    for (name, bytes, complaints) in [
        (
            "state.safetensors",
            sandbox.read("b.training/state.safetensors"),
            ["state.safetensors", "other options"],
        ),
        ("state.safetensors", b"words".to_vec(), ["state.safetensors", "remedy"]),
        ("training.jsonl", log[..cut].to_vec(), ["training.jsonl", "only the first 1"]),
        ("training.jsonl", log[cut..].to_vec(), ["training.jsonl", "only the first 0"]),
        ("training.jsonl", b"words\n".to_vec(), ["training.jsonl", "line 1"]),
        ("training.jsonl", vec![255], ["training.jsonl", "can't be read"]),
    ] {
        let whole = sandbox.read(&format!("a.training/{name}"));
        fs::write(path(name), bytes).unwrap();
        problems.extend(refused(&sandbox, &resume, &complaints));
        fs::write(path(name), whole).unwrap();
    }
    fs::remove_file(path("training.jsonl")).unwrap();
    problems.extend(refused(&sandbox, &resume, &["training.jsonl"]));
    fs::write(path("training.jsonl"), log).unwrap();
    assert_none(&problems);
    sandbox.run(&resume).succeeds().says(&["goes on after step 3"]);
    assert!(sandbox.read("a/model.safetensors") == sandbox.read("whole/model.safetensors"));
    assert!(!sandbox.path("a.training").exists());
}

/// The options and texts of a stopped training may be spelled otherwise.
#[test]
fn a_training_goes_on_however_it_is_spelled() {
    let sandbox = Sandbox::with_model_and_text();
    stopped(&sandbox, &format!("{HEAL} -o a --steps 3"));
    let further = "--warmup 0 --data-tokens 192 --train router --resume";
    let respelled = format!("{HEAL} -o a --steps 3 {further}").replace("ids", "./ids");
    sandbox.run(&respelled).succeeds().says(&["goes on after step 3"]);
    stopped(&sandbox, &format!("{DISTILL} -o b --steps 3"));
    let respelled =
        format!("{DISTILL} -o b --steps 3 --down ridge --resume").replace("ids", "./ids");
    sandbox.run(&respelled).succeeds().says(&["taken from what was saved"]);
}

/// Options that decide how far a step goes may change when a training continues. The log and the
/// receipt say where they did.
#[test]
fn a_training_goes_on_at_another_rate() {
    let sandbox = Sandbox::with_model_and_text();
    let line = |rate: &str| format!("{HEAL} -o a --steps 3 --learning-rate {rate}");
    stopped(&sandbox, &line("1e-3"));
    // Users who may read the result needn't read the saved training.
    assert_eq!(sandbox.path("a.training").metadata().unwrap().permissions().mode() & 0o777, 0o700);
    sandbox.run(&format!("{} --resume", line("1e-4"))).succeeds().says(&["goes on after step 3"]);
    let log = String::from_utf8(sandbox.read("a/training.jsonl")).unwrap();
    let settings: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| !line["settings"].is_null())
        .collect();
    let rates: Vec<_> =
        settings.iter().map(|line| line["settings"]["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [1e-3, 1e-4], "{log}");
    let of_receipt = sandbox.json("a/moe-convert.json")["training"]["settings"].clone();
    assert_eq!(of_receipt.as_array().map(Vec::len), Some(2), "{of_receipt}");
    sandbox.run("verify a").succeeds();
    // The result is finished for a command that would continue it, but a recipe doesn't take it for
    // a result of these options.
    assert!(finished(&sandbox.run(&format!("{} --resume", line("1e-4"))).succeeds()));
    let step = |output: &str| {
        let words = HEAL.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let value = |option: &str| {
            words.iter().position(|word| word == option).map(|place| words[place + 1].clone())
        };
        let keys = ["--sequence-length", "--batch-tokens", "--data-tokens", "--seed"];
        let given = keys
            .iter()
            .filter_map(|key| Some(format!("{} = {}\n", &key[2..], value(key)?)))
            .collect::<String>();
        format!(
            "[[step]]\nrun = \"heal\"\nmodel = \"{}\"\noutput = \"{output}\"\nsteps = 3\nlearning-rate = 1e-4\ndata = [\"{}\"]\n{given}",
            words[1],
            value("--data").unwrap()
        )
    };
    sandbox.write("r.toml", step("a") + &step("b"));
    let outcome = sandbox.run("run r.toml");
    assert!(
        !outcome.stdout.contains("finished already") && !outcome.stdout.contains("is a copy"),
        "{outcome}"
    );
}

fn finished(outcome: &Outcome) -> bool {
    outcome.stdout.contains("finished already")
}

/// The bytes of a result also depend on how it is written and computed.
#[test]
fn results_that_are_written_otherwise_are_not_finished() {
    let sandbox = Sandbox::with_model_and_text();
    let line = "prune m -o out --keep 0.5 --criterion random --resume";
    sandbox.run(line).succeeds();
    assert!(finished(&sandbox.run(line).succeeds()));
    let mut problems = Vec::new();
    for other in ["--max-shard-size 20kB", "--probe-tokens 3", "--dtype bf16", "--seed 1"] {
        problems.extend(sandbox.refuses(&format!("{line} {other}"), 2, &["out", "other options"]));
    }
    assert_none(&problems);
    let again = "--overwrite --max-shard-size 20kB --probe-tokens 3";
    assert!(!finished(&sandbox.run(&format!("{line} {again}")).succeeds()));
    assert!(sandbox.path("out/model.safetensors.index.json").exists());
    let writing = &sandbox.json("out/moe-convert.json")["writing"];
    assert_eq!(*writing, serde_json::json!({ "max-shard-size": 20_000, "probe-tokens": 3 }));
    assert!(finished(&sandbox.run(&format!("{line} {again}")).succeeds()));
    // The card takes the license of the source's card.
    sandbox.write("m/README.md", "---\nlicense: mit\n---\n");
    sandbox.must_refuse(line, 2, &["out"]);
    assert!(!finished(&sandbox.run(&format!("{line} {again}")).succeeds()));
    assert!(String::from_utf8(sandbox.read("out/README.md")).unwrap().contains("license: mit"));
    assert!(finished(&sandbox.run(&format!("{line} {again}")).succeeds()));
}

#[test]
fn recipes_say_how_results_are_written() {
    let sandbox = Sandbox::with_model_and_text();
    let step = "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"out\"\noverwrite = true\nkeep = 0.5\ncriterion = \"random\"\n";
    let run = |recipe: &str| {
        sandbox.write("recipe.toml", recipe);
        sandbox.run("run recipe.toml").succeeds()
    };
    assert!(!finished(&run(step)) && finished(&run(step)));
    let sharded = format!("{step}max-shard-size = \"20kB\"\nprobe-tokens = 0\n");
    assert!(!finished(&run(&sharded)) && sandbox.path("out/model.safetensors.index.json").exists());
    assert!(sandbox.json("out/moe-convert.json")["measured"].is_null());
    // The keys are defaults for all steps of a command.
    let defaults = format!("[defaults.prune]\nmax-shard-size = \"20kB\"\nprobe-tokens = 0\n{step}");
    assert!(finished(&run(&defaults)) && !finished(&run(step)));
    let passes = "[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"both\"\nmax-shard-size = \"20kB\"\n\
                  [[step.pass]]\nrun = \"prune\"\nkeep = 0.5\ncriterion = \"random\"\n";
    run(passes);
    assert!(sandbox.path("both/model.safetensors.index.json").exists());
    for wrong in [
        "max-shard-size = \"much\"",
        "probe-tokens = -1",
        "max-shard-sizes = \"1GB\"",
        "probe-tokens = 5000",
    ] {
        sandbox.write("recipe.toml", format!("{step}{wrong}\n"));
        let key = wrong.split(' ').next().unwrap();
        sandbox.run("run recipe.toml").exits(2).says(&[key, "remedy"]);
    }
}

/// Every build of a version writes the same version number.
#[test]
fn results_of_another_build_are_made_again() {
    let sandbox = Sandbox::with_model_and_text();
    let line = "prune m -o out --keep 0.5 --criterion random --resume";
    sandbox.run(line).succeeds();
    let receipt = String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap();
    let build = sandbox.json("out/moe-convert.json")["tool"]["build"].as_str().unwrap().to_owned();
    assert!(build.len() == 16 && build.bytes().all(|byte| byte.is_ascii_hexdigit()), "{build}");
    let sums = String::from_utf8(sandbox.read("out/SHA256SUMS")).unwrap();
    let hash = |sandbox: &Sandbox| {
        sandbox.shell("sha256sum out/moe-convert.json").succeeds().stdout[..64].to_owned()
    };
    let earlier = hash(&sandbox);
    // The receipt is changed to that of another build, or of one from before build ids and formats,
    // and is consistent in itself.
    let without = receipt.replace(&format!(",\n    \"build\": \"{build}\""), "");
    let without = without.replace("  \"format\": 1,\n", "");
    for other in [receipt.replace(&build, "0123456789abcdef"), without] {
        assert!(other != receipt);
        sandbox.write("out/moe-convert.json", other);
        sandbox.write("out/SHA256SUMS", sums.replace(&earlier, &hash(&sandbox)));
        sandbox.run("verify out").succeeds();
        sandbox.run(line).exits(2).says(&["another build", "--overwrite"]);
    }
    assert!(!finished(&sandbox.run(&format!("{line} --overwrite")).succeeds()));
    assert!(String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap() == receipt);
    let page = String::from_utf8(sandbox.read("out/report.html")).unwrap();
    assert!(!sandbox.path("out/report.html").exists() || page.contains(&build));
}
