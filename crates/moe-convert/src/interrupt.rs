//! Signals that end the program: unfinished files are removed, and a message says how to go on.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use libc::c_int;
use moe_checkpoint::{remove_unfinished, shell_word};
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
use crate::cli::{as_text, called, has_option};

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
        // A bar may stand in this line.
        let mut said =
            format!("\nstopped by {}: {}", described(origin.signal), how_to_go_on(&arguments));
        said.extend(cleared.err().map(|error| format!("\nerror: {error}")));
        say_soon(said);
        // Threads that hadn't noticed may have written something again. An error was reported
        // before.
        let _ = remove_unfinished();
        // The exit code is the one that shells use. It exits at once: an orderly end would wait for
        // output that nobody reads.
        exit(128 + origin.signal);
    });
}

/// Writes `text` if it is read: a terminal stopped by Ctrl-S or a full pipe would block forever.
fn say_soon(text: String) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (done, is_done) = mpsc::channel();
    let speaker = std::thread::Builder::new().spawn(move || {
        say_last(&text);
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

/// The message that says how to go on, or how to run again where nothing is saved.
fn how_to_go_on(arguments: &[String]) -> String {
    let resumes =
        |command: &clap::Command| command.get_arguments().any(|option| option.get_id() == "resume");
    let Some(command) = called(arguments).filter(resumes) else {
        return "nothing was changed".to_owned();
    };
    if has_option(arguments, "--dry-run") {
        return "nothing was changed".to_owned();
    }
    // Trainings are saved, and finished steps of a recipe are kept.
    let saves = PassInfo::named(command.get_name())
        .map_or(command.get_name() == "run", |info| info.resumes_midway);
    let aim = if saves { "go on" } else { "run it again" };
    let given = has_option(arguments, "--resume");
    let resume = (!given).then(|| "--resume".to_owned());
    let words = arguments.iter().map(|text| shell_word(text)).chain(resume);
    format!("no result was left half-written; to {aim}:\n  {}", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        how_to_go_on(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_can_go_on_says_how() {
        let training = said("moe-convert heal a -o b --data t");
        assert!(
            training.ends_with("to go on:\n  moe-convert heal a -o b --data t --resume"),
            "{training}"
        );
        assert!(said("moe-convert merge a -o b --keep 0.5").contains("to run it again:\n"));
        assert!(
            said("moe-convert prune a -o it's --keep 0.5")
                .ends_with(r"moe-convert prune a -o 'it'\''s' --keep 0.5 --resume")
        );
        assert!(
            said("moe-convert --quiet run r.toml --resume")
                .ends_with("  moe-convert --quiet run r.toml --resume")
        );
        assert_eq!(said("moe-convert eval a --data t"), "nothing was changed");
        assert_eq!(said("moe-convert heal a -o b --data t --dry-run"), "nothing was changed");
        assert_eq!(said("moe-convert heal a -o b --data t --dry_run"), "nothing was changed");
        assert!(said("moe-convert heal a -o b --data t --Resume").ends_with(" --data t --Resume"));
    }
}
