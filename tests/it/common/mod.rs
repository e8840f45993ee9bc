//! Common code of the black-box tests: a sandbox in which the binary runs, and checkpoints that can
//! be damaged there.
//!
//! A [`Sandbox`] is a temporary directory that holds a link `golden` to the repository's goldens.
//! Commands run in it, so a test reads like a shell session: `sandbox.run("inspect
//! golden/models/dense")`.

pub mod checkpoint;
pub mod held;
mod json;
pub mod made;
mod outcome;
pub mod passes;
pub mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use checkpoint::Checkpoint;
pub use outcome::Outcome;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_moe-convert");
/// The time limit for errors.
const ERROR_LIMIT: Duration = Duration::from_secs(1);

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Whether `programs` are on this machine. Where one isn't, the caller skips its test. This is
/// printed past libtest, which hides the output of passing tests; with MOE_NO_SKIPS in the
/// environment, as in CI, it is a failure.
#[track_caller]
pub fn has(programs: &[&str], what: &str) -> bool {
    let sandbox = Sandbox::new();
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| sandbox.shell(&format!("command -v {program}")).code != 0)
        .collect();
    if missing.is_empty() {
        return true;
    }
    let text = format!("SKIPPED: {what}, since {missing:?} are not installed");
    assert!(std::env::var_os("MOE_NO_SKIPS").is_none(), "{text}; MOE_NO_SKIPS forbids that");
    let _ = writeln!(std::io::stderr(), "{text}");
    false
}

/// Fails with all of `problems`, so that one run of a table shows every case that is wrong.
#[track_caller]
pub fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems\n\n{}\n", problems.len(), problems.join("\n\n"));
}

/// A step of a recipe: `run` on `model`, with further `keys`, one a line.
pub fn step(run: &str, model: &str, keys: &str) -> String {
    format!("[[step]]\nrun = {run:?}\nmodel = {model:?}\n{keys}\n")
}

/// A temporary directory in which the binary runs.
pub struct Sandbox(TempDir);

impl Sandbox {
    /// A sandbox that is empty except for the link `golden`.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink(root().join("golden"), dir.path().join("golden")).unwrap();
        Self(dir)
    }

    /// The path of `name` in the sandbox.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, and makes its directory if needed.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A sandbox with a small model `m`, and text for it in `ids.jsonl`.
    pub fn with_model_and_text() -> Self {
        let sandbox = Self::new();
        sandbox.copy("families/qwen3_moe/base/model", "m");
        let line = |start: usize| {
            format!(
                "{{\"input_ids\":{:?}}}\n",
                (0..40).map(|i| (start + i) % 100).collect::<Vec<_>>()
            )
        };
        sandbox.write("ids.jsonl", (0..8).map(|i| line(7 * i)).collect::<String>());
        sandbox
    }

    /// The bytes of a file.
    #[track_caller]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The value of a JSON file.
    #[track_caller]
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Copies `golden/<golden>` to `name`, to be damaged there.
    pub fn copy(&self, golden: &str, name: &str) -> Checkpoint {
        let target = self.path(name);
        fs::create_dir_all(&target).unwrap();
        for entry in fs::read_dir(root().join("golden").join(golden)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, target.join(from.file_name().unwrap())).unwrap();
        }
        Checkpoint::new(target)
    }

    /// Runs the binary. `line` is split at spaces.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        self.run_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs the binary. In every test, JSON that it writes must be as documented.
    #[track_caller]
    pub fn run_args(&self, args: &[&str]) -> Outcome {
        let outcome = self.outcome(&args.join(" "), Command::new(BINARY).args(args));
        if outcome.code == 0 {
            let problems = json::problems(args, self.0.path(), &outcome.stdout);
            assert!(problems.is_empty(), "{problems:#?}\n{outcome}");
        }
        outcome
    }

    /// Runs a line of shell where `moe-convert` is the binary.
    #[track_caller]
    pub fn shell(&self, script: &str) -> Outcome {
        let script = format!("moe-convert() {{ '{BINARY}' \"$@\"; }}\n{script}");
        self.outcome(&script, Command::new("bash").args(["-c", &script]))
    }

    fn outcome(&self, line: &str, command: &mut Command) -> Outcome {
        let start = Instant::now();
        let output = command.current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap();
        Outcome::new(line, &output, start.elapsed())
    }

    /// Runs `line`, which must be refused as bad input: with exit code `code`, within a second,
    /// with a message that holds `complaints` and a remedy, and without a trace in the sandbox.
    /// Returns the problems, if any.
    pub fn refuses(&self, line: &str, code: i32, complaints: &[&str]) -> Option<String> {
        let before = self.contents();
        let mut outcome = self.run(line);
        // The machine may be busy; only a command that is slow three times is slow.
        for _ in 0..2 {
            if outcome.took > ERROR_LIMIT {
                outcome = self.run(line);
            }
        }
        let mut problems = outcome.refusal_problems(code, complaints);
        let after = self.contents();
        let changed = |name: &&PathBuf| before.get(*name) != after.get(*name);
        let changes: std::collections::BTreeSet<_> =
            before.keys().chain(after.keys()).filter(changed).collect();
        if !changes.is_empty() {
            problems.push(format!("it changed, left or removed {changes:?}"));
        }
        (!problems.is_empty()).then(|| format!("{}\n{outcome}", problems.join("; ")))
    }

    /// Asserts that `line` is refused as bad input, as [`Self::refuses`] has it.
    #[track_caller]
    pub fn must_refuse(&self, line: &str, code: i32, complaints: &[&str]) {
        self.must_refuse_all(&[line], code, complaints);
    }

    /// Asserts that all of `lines` are refused as bad input.
    #[track_caller]
    pub fn must_refuse_all(&self, lines: &[impl AsRef<str>], code: i32, complaints: &[&str]) {
        let found = lines.iter().filter_map(|line| self.refuses(line.as_ref(), code, complaints));
        assert_none(&found.collect::<Vec<_>>());
    }

    /// The words that the option `option` of the pass `pass` takes, by the schema of recipes.
    pub fn words(&self, pass: &str, option: &str) -> Vec<String> {
        let schema = self.run("schema").succeeds().json();
        // Variables may stand for words, which is the other kind of value.
        let words = &schema["$defs"][pass]["properties"][option]["anyOf"][0]["enum"];
        serde_json::from_value(words.clone()).unwrap()
    }

    /// All files in the sandbox, including hidden ones; links are not followed.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut contents = BTreeMap::new();
        collect(self.0.path(), self.0.path(), &mut contents);
        contents
    }

    /// The names in the directory `name`, sorted.
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn collect(root: &Path, dir: &Path, contents: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        let bytes = match () {
            () if kind.is_symlink() => {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            }
            () if kind.is_file() => fs::read(&path).unwrap(),
            () if kind.is_dir() => {
                collect(root, &path, contents);
                Vec::new()
            }
            () => Vec::new(),
        };
        contents.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
    }
}
