//! Ctrl-C, and the same from a job's scheduler: what is unfinished goes, and how to go on is said.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use moe_checkpoint::remove_unfinished;
use moe_passes::{DistillOptions, HealOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::bar::say;
use crate::cli::called;
use crate::render::word;

/// Whether a signal is ending the program.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Waits for the end where a signal is bringing it about: what fails meanwhile fails because of that.
pub fn give_way() {
    while STOPPING.load(Relaxed) {
        std::thread::park();
    }
}

/// Ends the program at the first signal. Where nobody can be told of signals, they end it as they would without this.
pub fn listen() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        STOPPING.store(true, Relaxed);
        let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let name = if signal == SIGINT { "Ctrl-C" } else { "SIGTERM" };
        // A bar may stand in this line.
        say(&format!("\nstopped by {name}: {}", how_to_go_on(&arguments)));
        clear_away();
        // As shells count.
        exit(128 + signal);
    });
}

/// Removes what is unfinished, before an end that runs no destructor.
pub fn clear_away() {
    if let Err(error) = remove_unfinished() {
        say(&format!("error: {error}"));
    }
}

/// What was called, so that it goes on; or runs again, where nothing is kept.
fn how_to_go_on(arguments: &[String]) -> String {
    let resumes = |command: &clap::Command| command.get_arguments().any(|option| option.get_id() == "resume");
    let Some(command) = called(arguments).filter(resumes) else { return "nothing was changed".to_owned() };
    // Trainings are saved, and a recipe's steps are kept.
    let saves = [HealOptions::NAME, DistillOptions::NAME, "run"].contains(&command.get_name());
    let aim = if saves { "go on" } else { "run it again" };
    let given = arguments.iter().any(|word| word == "--resume");
    let words = arguments.iter().map(|text| word(text)).chain((!given).then(|| "--resume".to_owned()));
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
        assert!(training.ends_with("to go on:\n  moe-convert heal a -o b --data t --resume"), "{training}");
        assert!(said("moe-convert merge a -o b --keep 0.5").contains("to run it again:\n"));
        assert!(
            said("moe-convert prune a -o it's --keep 0.5")
                .ends_with(r"moe-convert prune a -o 'it'\''s' --keep 0.5 --resume")
        );
        assert!(said("moe-convert --quiet run r.toml --resume").ends_with("  moe-convert --quiet run r.toml --resume"));
        assert_eq!(said("moe-convert eval a --data t"), "nothing was changed");
    }
}
