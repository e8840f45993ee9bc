//! Kills every pass with SIGKILL at random moments: nothing incomplete ever has the final name, the
//! source is unchanged, and `--resume` leads to the bytes of an unbroken run. KILLS says how often
//! each pass is killed before it may end; `scripts/full/kills` takes 50.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::passes::{SAMPLES, Sample};
use crate::common::{BINARY, Sandbox, assert_none};

const TEXT: &str = "--data english=golden/text/english.calibration.txt --data code=golden/text/code.calibration.txt \
                    --data-tokens 2048 --sequence-length 128";

/// Runs on a copy of a built-in model, `source`: what they are called, that model, and the line.
fn runs() -> Vec<(&'static str, &'static str, String)> {
    let of_pass = |sample: &Sample| {
        let Sample { pass, model, options, needs_text, .. } = *sample;
        let text = if needs_text { TEXT } else { "" };
        (pass, model, format!("{pass} source -o out {options} {text}"))
    };
    let shards = "upcycle source -o out --experts 8 --top-k 2 --max-shard-size 2MB";
    let further = [
        ("upcycle to shards", "dense", shards.to_owned()),
        ("three in one step", "moe", "run recipe.toml".to_owned()),
    ];
    SAMPLES.iter().map(of_pass).chain(further).collect()
}

const RECIPE: &str = r#"
[vars]
data = ["golden/text/english.calibration.txt"]
[[step]]
run = "convert"
model = "source"
output = "out"
[[step.pass]]
run = "prune"
keep = 0.5
criterion = "reap"
data = "${data}"
data-tokens = 1024
[[step.pass]]
run = "heal"
data = "${data}"
steps = 4
eval-every = 1
batch-tokens = 512
sequence-length = 128
[[step.pass]]
run = "quantize"
scheme = "w4a16"
group-size = 32
data = "${data}"
data-tokens = 1024
"#;

/// Numbers below 1 that look random but are reproducible: the fractional parts of multiples of the
/// golden ratio.
fn moments() -> impl Iterator<Item = f64> {
    (1..).map(|index: u32| (f64::from(index) * 0.618_033_988_749_895).fract())
}

struct Killed<'a> {
    sandbox: &'a Sandbox,
    line: String,
}

impl Killed<'_> {
    /// Starts the pass and kills it after `time`. Returns how long it took if it ended before that.
    fn kill_after(&self, time: Duration) -> Option<Duration> {
        let mut child = Command::new(BINARY)
            .args(self.line.split_whitespace())
            .current_dir(self.sandbox.path("."))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while start.elapsed() < time {
            if child.try_wait().unwrap().is_some() {
                return Some(start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // This is SIGKILL on unix.
        let _ = child.kill();
        let status = child.wait().unwrap();
        (status.signal() != Some(9)).then(|| start.elapsed())
    }
}

fn hashes(sandbox: &Sandbox) -> String {
    String::from_utf8(sandbox.read("out/SHA256SUMS")).unwrap()
}

fn hash_of_source(sandbox: &Sandbox) -> String {
    sandbox.shell("cat source/* | sha256sum").succeeds().stdout
}

/// What an unbroken run leaves: the hashes of its result, and the hash of its source.
struct Expected {
    result: String,
    source: String,
}

impl Killed<'_> {
    /// What is wrong with what a killed run left, and with the run that goes on from there.
    fn problems(&self, expected: &Expected) -> Vec<String> {
        let sandbox = self.sandbox;
        let mut problems = Vec::new();
        let mut check = |what: &str, holds: bool| {
            if !holds {
                problems.push(what.to_owned());
            }
        };
        // The final name has the whole result, or doesn't exist.
        if sandbox.path("out").exists() {
            check("what is there is not whole", hashes(sandbox) == expected.result);
            check("what is there is not sound", sandbox.run("verify out").code == 0);
        }
        let again = sandbox.run(&format!("{} --resume", self.line));
        check(&format!("it doesn't go on: {again}"), again.code == 0);
        check("the bytes are others", again.code != 0 || hashes(sandbox) == expected.result);
        check("the source was touched", hash_of_source(sandbox) == expected.source);
        let left = sandbox.names(".");
        check("something is left behind", left == ["golden", "out", "recipe.toml", "source"]);
        problems
    }

    /// Kills the pass `kills` times. Unbroken it takes about as long as `unbroken`: a busy machine
    /// may have needed longer than the next runs will.
    fn problems_of_kills(
        &self,
        kills: usize,
        mut unbroken: Duration,
        expected: &Expected,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let (mut met, mut late) = (0, 0);
        for moment in moments() {
            if met == kills {
                break;
            }
            self.sandbox.shell("rm -rf out out.training .out.partial-moe-convert").succeeds();
            match self.kill_after(unbroken.mul_f64(moment)) {
                None => met += 1,
                Some(took) => (late, unbroken) = (late + 1, unbroken.min(took)),
            }
            assert!(late <= 3 * kills + 10, "{late} times it had ended before it was killed");
            let found = self.problems(expected);
            problems
                .extend(found.iter().map(|p| format!("killed after {moment:.3} of its time: {p}")));
        }
        eprintln!("killed {met} times, {late} times too late ({:.2} s)", unbroken.as_secs_f64());
        problems
    }
}

#[test]
fn a_pass_that_was_killed_comes_to_the_same_bytes() {
    let kills: usize = std::env::var("KILLS").map_or(3, |kills| kills.parse().unwrap());
    let mut problems = Vec::new();
    for (name, source, line) in runs() {
        eprintln!("{name}:");
        let sandbox = Sandbox::new();
        sandbox.shell(&format!("cp -r golden/models/{source} source")).succeeds();
        sandbox.write("recipe.toml", RECIPE);
        let start = Instant::now();
        sandbox.run(&line).succeeds();
        let unbroken = start.elapsed();
        let expected = Expected { result: hashes(&sandbox), source: hash_of_source(&sandbox) };
        let killed = Killed { sandbox: &sandbox, line };
        let found = killed.problems_of_kills(kills, unbroken, &expected);
        problems.extend(found.iter().map(|problem| format!("{name}, {problem}")));
    }
    assert_none(&problems);
}

#[test]
fn what_a_killed_run_left_is_cleared() {
    let sandbox = Sandbox::new();
    sandbox.write(".out.partial-moe-convert/model.safetensors", "half");
    sandbox.run("upcycle golden/models/dense -o out --experts 4 --top-k 2").succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out"]);
    sandbox.run("verify out").succeeds();
}

#[test]
fn a_killed_run_leaves_no_result() {
    let sandbox = Sandbox::new();
    let upcycle = "upcycle golden/models/dense -o out --experts 64 --top-k 2";
    let hidden = sandbox.path(".out.partial-moe-convert");
    // The run is killed when it has begun, and after some of its 66 MB are written.
    for bytes in [0, 1 << 20, 8 << 20] {
        kill_when(&sandbox, upcycle, || {
            let written = hidden.join("model.safetensors").metadata().map_or(0, |file| file.len());
            hidden.is_dir() && written >= bytes
        });
        assert!(hidden.is_dir() && !sandbox.path("out").exists(), "{bytes}");
    }
    sandbox.run(upcycle).succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out"]);
    sandbox.run("verify out").succeeds();
}

/// Kills a run of `line` as soon as `is_reached`, before it ends.
fn kill_when(sandbox: &Sandbox, line: &str, is_reached: impl Fn() -> bool) {
    use std::os::unix::process::ExitStatusExt;
    // Files that an earlier run left would be taken for those of this run.
    sandbox.shell("rm -rf .out.partial-moe-convert").succeeds();
    let mut command = Command::new(BINARY);
    command
        .args(line.split(' '))
        .current_dir(sandbox.path("."))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let (mut child, start) = (command.spawn().unwrap(), Instant::now());
    while !is_reached() {
        assert!(child.try_wait().unwrap().is_none(), "{line} ended before it could be killed");
        assert!(start.elapsed() < Duration::from_secs(60), "{line} never came so far");
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the kill landed");
}
