//! Tests signals that end a process by default, limits, and pipes without a reader: no files are
//! left behind, and a message says how to go on.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::held::Held;
use crate::common::{BINARY, Outcome, Sandbox, assert_none};

/// This run is long enough to be stopped, even on a fast machine.
const QUANTIZE: &str = "quantize golden/models/moe -o out --scheme w4a16 --group-size 32 --data golden/text/english.calibration.txt \
                        --data-tokens 16384 --sequence-length 256";
const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 8 --top-k 2";

/// Runs [`QUANTIZE`] after `before`, sends `signal` once there are files that could be left behind,
/// and waits for the end.
fn killed(sandbox: &Sandbox, before: &str, signal: &str) -> Outcome {
    sandbox.held(&Held {
        before,
        line: &format!("{QUANTIZE} 2>said"),
        once: "-d .out.partial-moe-convert",
        then: &format!("kill -{signal} $pid"),
    })
}

/// Name for `kill`, number on Linux for common processors, and words of the message.
const SIGNALS: [(&str, i32, &str); 18] = [
    ("HUP", 1, "SIGHUP (the terminal was closed"),
    ("INT", 2, "Ctrl-C"),
    ("QUIT", 3, "SIGQUIT"),
    ("TRAP", 5, "SIGTRAP"),
    ("ABRT", 6, "SIGABRT"),
    ("USR1", 10, "SIGUSR1"),
    ("USR2", 12, "SIGUSR2"),
    ("ALRM", 14, "SIGALRM"),
    ("TERM", 15, "SIGTERM"),
    ("STKFLT", 16, "SIGSTKFLT"),
    ("XCPU", 24, "SIGXCPU (the limit of CPU time"),
    ("XFSZ", 25, "SIGXFSZ (the limit of a file's size"),
    ("VTALRM", 26, "SIGVTALRM"),
    ("PROF", 27, "SIGPROF"),
    ("IO", 29, "SIGIO"),
    ("PWR", 30, "SIGPWR"),
    ("SYS", 31, "SIGSYS"),
    ("RTMIN", 34, "signal 34"),
];

#[test]
fn every_signal_that_ends_a_process_leaves_nothing() {
    let mut problems = Vec::new();
    for (signal, number, name) in SIGNALS {
        let sandbox = Sandbox::new();
        let code = killed(&sandbox, "", signal).code;
        let (said, left) = (String::from_utf8(sandbox.read("said")).unwrap(), sandbox.names("."));
        let complete =
            said.contains(&format!("stopped by {name}")) && said.trim_end().ends_with("--resume");
        if code != 128 + number || left != ["golden", "said"] || !complete {
            problems.push(format!("{signal}: exit code {code}, left {left:?}, said {said}"));
        }
    }
    assert_none(&problems);
}

/// What came of a run that got a signal in the middle of its file.
struct Signalled {
    was_writing: bool,
    status: std::process::ExitStatus,
    said: String,
    left: Vec<String>,
}

fn send(child: &std::process::Child, signal: &str) {
    let mut kill = Command::new("kill");
    kill.args([&format!("-{signal}"), &child.id().to_string()]);
    assert!(kill.status().unwrap().success());
}

/// Holds a run while it writes tensors, so that no machine is too fast, and lets it get `signal`.
fn signalled_while_writing(signal: &str) -> Signalled {
    let sandbox = Sandbox::new();
    let line = "upcycle golden/models/dense -o out --experts 64 --top-k 2 --noise-std 0.01 --probe-tokens 0";
    let mut command = Command::new(BINARY);
    command.args(line.split_whitespace()).current_dir(sandbox.path(".")).stdout(Stdio::null());
    command.stderr(fs::File::create(sandbox.path("said")).unwrap());
    let mut child = command.spawn().unwrap();
    let is_writing = || half_written(&sandbox.path(".out.partial-moe-convert"));
    let start = Instant::now();
    while !is_writing() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_micros(200));
    }
    send(&child, "STOP");
    let was_writing = is_writing() && !sandbox.path("out").exists();
    send(&child, signal);
    send(&child, "CONT");
    let status = child.wait().unwrap();
    let said = String::from_utf8(sandbox.read("said")).unwrap();
    Signalled { was_writing, status, said, left: sandbox.names(".") }
}

/// The same while tensors are being written.
#[test]
fn what_is_half_written_goes_with_the_signal() {
    let mut problems = Vec::new();
    for (signal, number, name) in
        [("HUP", 1, "SIGHUP"), ("TERM", 15, "SIGTERM"), ("XCPU", 24, "SIGXCPU")]
    {
        let Signalled { was_writing, status, said, left } = signalled_while_writing(signal);
        let is_said = said.contains(&format!("stopped by {name}"));
        if !was_writing
            || status.signal() != Some(number) && status.code() != Some(128 + number)
            || !is_said
        {
            problems.push(format!("{signal}: was writing: {was_writing}, {status}, said {said}"));
        }
        if left != ["golden", "said"] {
            problems.push(format!("{signal}: left {left:?}"));
        }
    }
    assert_none(&problems);
}

/// Whether a file of tensors that isn't empty lies in the folder `partial`.
fn half_written(partial: &Path) -> bool {
    let files = fs::read_dir(partial).into_iter().flatten().flatten();
    let is_begun = |file: &fs::DirEntry| {
        let is_tensors = file.file_name().to_string_lossy().contains(".safetensors");
        is_tensors && file.metadata().is_ok_and(|found| found.len() > 0)
    };
    files.into_iter().any(|file| is_begun(&file))
}

/// Where no thread can be started, the error names the limit. The superuser has no such limit, so
/// another user is used in its place.
#[test]
fn threads_that_cannot_be_started_are_an_error_with_a_remedy() {
    let sandbox = Sandbox::new();
    sandbox.shell("chmod -R a+rwX . && chmod a+rx .").succeeds();
    for (line, complaint) in [("inspect golden/models/dense", "thread"), (UPCYCLE, "thread")] {
        // Under the limit bash can't fork, so it becomes the program.
        let limited = format!("ulimit -u 1; exec {BINARY} {line}");
        let script = format!(
            "if [ $(id -u) = 0 ]; then exec setpriv --reuid=54321 --clear-groups bash -c '{limited}'; fi; {limited}"
        );
        let outcome = sandbox.shell(&script).exits(1).says(&[complaint, "remedy: ", "ulimit -u"]);
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
    assert_eq!(sandbox.names("."), ["golden"]);
}

/// nohup ignores SIGHUP for its command, which then runs to the end.
#[test]
fn an_ignored_hangup_stays_ignored() {
    let sandbox = Sandbox::new();
    killed(&sandbox, "trap '' HUP", "HUP").succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out", "said"]);
}

/// A write beyond a limit is an error of that file with the way to go on, though the system sends a
/// signal too.
#[test]
fn a_file_that_may_not_grow_is_an_error() {
    for (kibibytes, line) in
        [(4000, "prune golden/models/moe -o out --experts 12 --criterion random"), (1000, UPCYCLE)]
    {
        let sandbox = Sandbox::new();
        let outcome = sandbox.shell(&format!("ulimit -f {kibibytes}; moe-convert {line}"));
        let outcome = outcome.exits(1).says(&[
            "model.safetensors",
            "File too large",
            "remedy: ",
            "ulimit -f",
        ]);
        assert_eq!(sandbox.names("."), ["golden"], "{outcome}");
    }
}

/// Results are made even if no reader takes them to their end.
#[test]
fn a_closed_pipe_leaves_nothing_unfinished() {
    let sandbox = Sandbox::new();
    sandbox
        .shell(&format!(
            "set -o pipefail; moe-convert {UPCYCLE} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
        ))
        .succeeds();
    sandbox
        .shell("moe-convert inspect golden/models/moe --json | head -c1 >/dev/null; exit ${PIPESTATUS[0]}")
        .succeeds();
    assert_eq!(sandbox.names("."), ["golden", "out"]);
    sandbox.run("verify out").succeeds();
}
