//! Signals that end the program: unfinished files are removed, and a message says how to go on.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use libc::c_int;
use moe_checkpoint::{Error, Kind, remove_unfinished, shell_word};
use moe_passes::PassInfo;
use signal_hook::consts::signal::{
    SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGSYS, SIGTERM, SIGTRAP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::{exit, signal_name};

use crate::bar::{say, say_last};
use crate::cli::{as_text, called, end_of_options, place_of};
use crate::stdout::print_error;

/// Signals that would end the program at once. Not in the list: SIGSEGV, SIGBUS, SIGFPE and SIGILL,
/// after which memory can't be trusted for cleaning up; and SIGPIPE, which Rust ignores, so that a
/// write to a closed pipe is an error like others.
const ENDING: [c_int; 14] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGALRM, SIGPROF, SIGSYS, SIGTRAP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
];

/// Returns whether a signal is ending the program.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Waits for the end if a signal is ending the program: an error that occurs now is caused by that.
pub fn give_way() {
    while STOPPING.load(Relaxed) {
        std::thread::park();
    }
}

/// Starts a thread that ends the program at the first signal. If signals can't be watched, they end
/// the program as they do by default.
pub fn listen() {
    let listened = ending().filter(|signal| !stays_ignored(*signal));
    let Ok(mut signals) = SignalsInfo::<WithOrigin>::new(listened) else { return };
    // If no thread can be started for this, the program says so where it needs one.
    let _ = std::thread::Builder::new().spawn(move || {
        let Some(origin) = signals.forever().find(|origin| !is_own_write(origin)) else { return };
        STOPPING.store(true, Relaxed);
        let arguments = as_text(std::env::args_os());
        let cleared = remove_unfinished();
        let next_command = next_command(&arguments);
        // A bar may stand in this line.
        let mut said = format!("\n{}", stopped(origin.signal, next_command.as_ref()));
        said.extend(cleared.err().map(|error| format!("\nerror: {error}")));
        soon(move || say_last(&said));
        if place_of(&arguments, "--json").is_some() {
            let error = stopped_error(origin.signal, next_command.as_ref());
            soon(move || print_error(&error));
        }
        // Threads that hadn't noticed may have written something again. An error was reported
        // before.
        let _ = remove_unfinished();
        // The exit code is the one that shells use. It exits at once: an orderly end would wait for
        // output that nobody reads.
        exit(128 + origin.signal);
    });
}

/// Lets `write` write what it has to say, if that is read: a terminal stopped by Ctrl-S or a full
/// pipe would block forever.
fn soon(write: impl FnOnce() + Send + 'static) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (done, is_done) = mpsc::channel();
    let speaker = std::thread::Builder::new().spawn(move || {
        write();
        let _ = done.send(());
    });
    if speaker.is_ok() {
        let _ = is_done.recv_timeout(PATIENCE);
    }
}

/// All signals of this system that end a process, including real-time signals.
#[cfg(target_os = "linux")]
fn ending() -> impl Iterator<Item = c_int> {
    let of_linux = [libc::SIGIO, libc::SIGPWR, libc::SIGSTKFLT];
    ENDING.into_iter().chain(of_linux).chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// All signals of this system that end a process.
#[cfg(not(target_os = "linux"))]
fn ending() -> impl Iterator<Item = c_int> {
    ENDING.into_iter()
}

/// Whether `signal` is ignored and has to stay so, as SIGHUP is under nohup. Shells ignore SIGINT
/// and SIGQUIT for background jobs, for which Ctrl-C isn't meant; but one that arrives was sent to
/// this process.
fn stays_ignored(signal: c_int) -> bool {
    let mut present = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing is changed; the current one is written to memory of its
    // type, for which all zeros are valid.
    let ignored = unsafe {
        libc::sigaction(signal, ptr::null(), present.as_mut_ptr()) == 0
            && present.assume_init().sa_sigaction == libc::SIG_IGN
    };
    ignored && signal != SIGINT && signal != SIGQUIT
}

/// Whether a write of this process passed `ulimit -f`. The write fails too, and its error names the
/// file.
fn is_own_write(origin: &Origin) -> bool {
    let own = i64::from(std::process::id());
    origin.signal == SIGXFSZ
        && origin.process.as_ref().is_some_and(|sender| i64::from(sender.pid) == own)
}

/// The common name of `signal`.
fn described(signal: c_int) -> String {
    let name = match signal {
        SIGINT => "Ctrl-C".to_owned(),
        #[cfg(target_os = "linux")]
        libc::SIGPWR => "SIGPWR".to_owned(),
        #[cfg(target_os = "linux")]
        libc::SIGSTKFLT => "SIGSTKFLT".to_owned(),
        _ => signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned),
    };
    let why = match signal {
        SIGHUP => " (the terminal was closed; nohup or tmux keep a run)",
        SIGXCPU => " (the limit of CPU time, ulimit -t, is used up)",
        SIGXFSZ => " (the limit of a file's size, ulimit -f, was passed)",
        _ => "",
    };
    name + why
}

/// Removes unfinished files, before an end that runs no destructor.
pub fn clear_away() {
    if let Err(error) = remove_unfinished() {
        say(&format!("error: {error}"));
    }
}

/// A command to run after a stop.
struct NextCommand {
    /// The purpose of the command, such as "go on".
    aim: &'static str,
    command: String,
}

/// The command that goes on after the one of `arguments` was stopped, or that runs it again where
/// nothing is saved; None where it has changed nothing.
fn next_command(arguments: &[String]) -> Option<NextCommand> {
    let resumes =
        |command: &clap::Command| command.get_arguments().any(|option| option.get_id() == "resume");
    let command = called(arguments).filter(resumes)?;
    let is_given = |option: &str| place_of(arguments, option).is_some();
    if is_given("--dry-run") {
        return None;
    }
    // Trainings are saved, and finished steps of a recipe are kept.
    let saves = PassInfo::named(command.get_name())
        .map_or(command.get_name() == "run", |info| info.resumes_midway);
    let aim = if saves { "go on" } else { "run it again" };
    let mut words: Vec<String> = arguments.iter().map(|text| shell_word(text)).collect();
    let mut added = Vec::new();
    match place_of(arguments, "--fresh") {
        // It would repeat the steps that are finished.
        Some(at) => words[at] = "--resume".to_owned(),
        None if !is_given("--resume") => added.push("--resume".to_owned()),
        None => {}
    }
    // The stopped run may have written these files already.
    let writes_beside = ["--junit", "--plan-out"].into_iter().any(is_given);
    if writes_beside && !is_given("--overwrite") {
        added.push("--overwrite".to_owned());
    }
    let end = end_of_options(arguments);
    words.splice(end..end, added);
    Some(NextCommand { aim, command: words.join(" ") })
}

/// The message about a stop by `signal`.
fn stopped(signal: c_int, next_command: Option<&NextCommand>) -> String {
    let by = described(signal);
    match next_command {
        Some(NextCommand { aim, command }) => {
            format!("stopped by {by}: no result was left half-written; to {aim}:\n  {command}")
        }
        None => format!("stopped by {by}: nothing was changed"),
    }
}

/// The same as an error, for readers of JSON.
fn stopped_error(signal: c_int, next_command: Option<&NextCommand>) -> Error {
    let error = Error::new(Kind::Stopped, format!("stopped by {}", described(signal)));
    match next_command {
        Some(NextCommand { aim, command }) => error.remedy(format!("to {aim}: {command}")),
        None => error.remedy("nothing was changed: run it again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_can_go_on_says_how_in_words_that_parse() {
        for (given, added) in [
            ("heal a -o b --data t", "go on: heal a -o b --data t --resume"),
            ("merge a -o b --keep 0.5", "run it again: merge a -o b --keep 0.5 --resume"),
            ("--quiet run r.toml --resume", "go on: --quiet run r.toml --resume"),
            ("heal a -o b --data t --Resume", "go on: heal a -o b --data t --Resume"),
            ("run r.toml --fresh", "go on: run r.toml --resume"),
            ("run r.toml --FRESH --quiet", "go on: run r.toml --resume --quiet"),
            ("run r.toml --junit j.xml", "go on: run r.toml --junit j.xml --resume --overwrite"),
            (
                "run --junit=j.xml --overwrite r.toml --fresh",
                "go on: run --junit=j.xml --overwrite r.toml --resume",
            ),
            (
                "prune a -o b --keep 0.5 --plan_out=p.json",
                "run it again: prune a -o b --keep 0.5 --plan_out=p.json --resume --overwrite",
            ),
            ("heal -o zz --data t -- a", "go on: heal -o zz --data t --resume -- a"),
            ("run --set a=b -- --resume", "go on: run --set a=b --resume -- --resume"),
        ] {
            let given = words(&format!("moe-convert {given}"));
            assert!(Cli::read(&given).is_ok(), "{given:?}");
            let NextCommand { aim, command } = next_command(&given).unwrap();
            assert_eq!(format!("{aim}: {command}"), added.replacen(": ", ": moe-convert ", 1));
            assert!(Cli::read(words(&command)).is_ok(), "{command}");
        }
        let odd = words(r"moe-convert prune a -o it's --keep 0.5");
        let command = next_command(&odd).unwrap().command;
        assert_eq!(command, r"moe-convert prune a -o 'it'\''s' --keep 0.5 --resume");
    }

    #[test]
    fn what_changes_nothing_says_so() {
        for line in [
            "eval a --data t",
            "heal a -o b --data t --dry-run",
            "heal a -o b --data t --dry_run",
            "observe a -o s --data t",
        ] {
            assert!(next_command(&words(&format!("moe-convert {line}"))).is_none(), "{line}");
        }
        let error = stopped_error(SIGINT, None);
        assert_eq!((error.kind(), error.what()), (Kind::Stopped, "stopped by Ctrl-C"));
        assert_eq!(stopped(SIGTERM, None), "stopped by SIGTERM: nothing was changed");
    }
}
