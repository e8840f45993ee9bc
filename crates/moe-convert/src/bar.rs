//! Progress on stderr, without colors: a bar on a terminal whose cursor can move, and lines now
//! and then elsewhere.

mod stage;

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use moe_checkpoint::shown;
use moe_math::meter::Meter;
use moe_pipeline::{Progress, Quiet, Unit};

use stage::BarStage;

/// A bar is redrawn at this interval, even without news: a layer can take minutes.
const REDRAWN: Duration = Duration::from_millis(250);
/// The minimum time between two lines of a log about one stage.
const LOGGED: Duration = Duration::from_secs(10);

/// Writes `text` to stderr, without control characters. Errors are ignored: where stderr is closed
/// or full, work goes on.
pub fn say(text: &str) {
    write(text, false);
}

/// [`say`] for the last time. Later messages of work that hasn't noticed the end are dropped, since
/// they would follow the message that says how to go on.
pub fn say_last(text: &str) {
    write(text, true);
}

fn write(text: &str, is_last: bool) {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    // The lock is held until the flag is set.
    let mut stderr = std::io::stderr().lock();
    if !IS_OVER.load(Relaxed) {
        let _ = writeln!(stderr, "{}", shown(text, "\n\t"));
        IS_OVER.store(is_last, Relaxed);
    }
}

/// Writes a note as one line, whatever names it holds.
pub fn say_note(text: &str) {
    say(&format!("note: {}", shown(text, "")));
}

/// Progress that remembers its notes, so that a summary needn't repeat them.
pub struct Stderr {
    shown: Box<dyn Progress>,
    notes: Mutex<BTreeSet<String>>,
}

impl Stderr {
    /// The progress that suits stderr. `meter` knows which expert is at work.
    pub fn new(is_quiet: bool, meter: &Meter) -> Self {
        Self { shown: progress(is_quiet, meter), notes: Mutex::default() }
    }

    /// Whether `text` was a note. With --quiet no note is shown, but results on stdout are the
    /// same.
    pub fn has_noted(&self, text: &str) -> bool {
        lock(&self.notes).contains(text)
    }
}

impl Progress for Stderr {
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        self.shown.stage(name, total, unit);
    }

    fn advance(&self, units: u64) {
        self.shown.advance(units);
    }

    fn status(&self, text: &str) {
        self.shown.status(text);
    }

    fn note(&self, text: &str) {
        self.shown.note(text);
        lock(&self.notes).insert(text.to_owned());
    }
}

fn progress(is_quiet: bool, meter: &Meter) -> Box<dyn Progress> {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if is_quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() && !dumb {
        Box::new(Bar(Mutex::new(ProgressBar::hidden()), Arc::default(), meter.clone()))
    } else {
        Box::new(LineProgress(Mutex::default(), meter.clone()))
    }
}

/// A bar for the running stage, and that stage.
struct Bar(Mutex<ProgressBar>, Arc<Mutex<Option<BarStage>>>, Meter);

impl Progress for Bar {
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        let mut bar = lock(&self.0);
        bar.finish_and_clear();
        *lock(&self.1) = Some(BarStage::new(name, total, unit));
        let (stage, meter) = (self.1.clone(), self.2.clone());
        let line = move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
            let columns = console::Term::stderr().size().1;
            let _ = lock(&stage)
                .iter()
                .try_for_each(|stage| out.write_str(&stage.bar(columns.into(), meter.expert())));
        };
        *bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("line", line));
        bar.enable_steady_tick(REDRAWN);
    }

    fn advance(&self, units: u64) {
        lock(&self.1).iter_mut().for_each(|stage| stage.done += units);
    }

    fn status(&self, text: &str) {
        lock(&self.1).iter_mut().for_each(|stage| stage.status = shown(text, "").into_owned());
    }

    fn note(&self, text: &str) {
        lock(&self.0).suspend(|| say_note(text));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        lock(&self.0).finish_and_clear();
    }
}

/// A line for each stage, and further lines while it takes long. Holds the stage, and the time of
/// the last line.
struct LineProgress(Mutex<Option<(BarStage, Instant)>>, Meter);

impl Progress for LineProgress {
    fn stage(&self, name: &str, total: u64, unit: Unit) {
        let stage = BarStage::new(name, total, unit);
        say(&stage.announcement());
        *lock(&self.0) = Some((stage, Instant::now()));
    }

    fn advance(&self, units: u64) {
        for (stage, logged) in lock(&self.0).iter_mut() {
            stage.done += units;
            if logged.elapsed() >= LOGGED {
                say(&stage.line(self.1.expert()));
                *logged = Instant::now();
            }
        }
    }

    fn status(&self, text: &str) {
        lock(&self.0).iter_mut().for_each(|(stage, _)| stage.status = shown(text, "").into_owned());
    }

    fn note(&self, text: &str) {
        say_note(text);
    }
}

/// Locks `mutex`, even if it is poisoned. Then another thread panicked while it drew, but the data
/// is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
