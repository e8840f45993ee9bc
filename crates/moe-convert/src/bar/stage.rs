//! The running stage, and its progress in a given number of columns.

use std::time::{Duration, Instant};

use moe_checkpoint::shown;
use moe_pipeline::{ByteSize, Unit, memory_bytes};

/// Minimum number of columns of a bar; a shorter one is left out.
const MIN_BAR: usize = 5;
/// Maximum number of columns of a bar; a longer one would show nothing more.
const MAX_BAR: usize = 40;

/// A stage of a run.
pub struct BarStage {
    name: String,
    total: u64,
    unit: Unit,
    began: Instant,
    /// The number of units that are done.
    pub done: u64,
    /// The stage's status, in a few words.
    pub status: String,
}

impl BarStage {
    pub fn new(name: &str, total: u64, unit: Unit) -> Self {
        Self {
            name: shown(name, "").into_owned(),
            total,
            unit,
            began: Instant::now(),
            done: 0,
            status: String::new(),
        }
    }

    /// The line of a log when it begins.
    pub fn announcement(&self) -> String {
        match self.unit {
            Unit::Bytes => format!("{}: {}", self.name, ByteSize(self.total)),
            _ => format!("{}: {}", self.name, moe_checkpoint::counted(self.total, self.noun())),
        }
    }

    /// The line of a log while it runs. `expert` is the index of the running expert and their
    /// number.
    pub fn line(&self, expert: Option<(usize, usize)>) -> String {
        let figures = self.figures(self.began.elapsed(), memory_bytes(), expert);
        // Figures are aligned in a bar only.
        let words =
            figures.iter().map(|figure| figure.split_whitespace().collect::<Vec<_>>().join(" "));
        format!("{}: {}", self.name, words.collect::<Vec<_>>().join(", "))
    }

    /// A bar with figures in at most `columns`.
    pub fn bar(&self, columns: usize, expert: Option<(usize, usize)>) -> String {
        self.drawn(columns, self.began.elapsed(), memory_bytes(), expert)
    }

    /// A bar with its figures. The last figures are left out if there is no room for all. The width
    /// of the bar doesn't depend on the text after it.
    fn drawn(
        &self,
        columns: usize,
        elapsed: Duration,
        memory: Option<u64>,
        expert: Option<(usize, usize)>,
    ) -> String {
        let width = |text: &str| text.chars().count();
        let mut line = self.name.clone();
        let bar = (columns / 8).min(MAX_BAR);
        if bar >= MIN_BAR {
            line += &format!("  {}", self.blocks(bar));
        }
        for figure in self.figures(elapsed, memory, expert) {
            if width(&line) + 2 + width(&figure) > columns {
                break;
            }
            line += &format!("  {figure}");
        }
        line.chars().take(columns).collect()
    }

    fn blocks(&self, columns: usize) -> String {
        let full = (self.share() * columns as f64) as usize;
        "█".repeat(full) + &"░".repeat(columns - full)
    }

    fn share(&self) -> f64 {
        if self.total == 0 { 1.0 } else { (self.done as f64 / self.total as f64).min(1.0) }
    }

    /// The figures of the bar, the most important first.
    fn figures(
        &self,
        elapsed: Duration,
        memory: Option<u64>,
        expert: Option<(usize, usize)>,
    ) -> Vec<String> {
        let Self { done, total, .. } = *self;
        let at_work = (done + 1).min(total);
        let mut figures = vec![match self.unit {
            Unit::Bytes => format!("{}/{}", ByteSize(done), ByteSize(total)),
            _ => format!("{} {}", self.noun(), counted(at_work, total)),
        }];
        let (share, seconds) = (self.share(), elapsed.as_secs_f64());
        if done > 0 && done < total {
            figures.push(format!("{:>5} left", clock(seconds * (1.0 - share) / share)));
        }
        figures.extend((!self.status.is_empty()).then(|| self.status.clone()));
        if let (Unit::Layers { .. }, Some((index, count))) = (&self.unit, expert) {
            figures.push(format!("expert {}", counted(index as u64 + 1, count as u64)));
        }
        figures.extend(self.rate(seconds));
        figures.extend(memory.map(|bytes| format!("{} RAM", ByteSize(bytes))));
        figures
    }

    /// The number of units in a second, where that is a useful figure.
    fn rate(&self, seconds: f64) -> Option<String> {
        if self.done == 0 || seconds <= 0.0 {
            return None;
        }
        match self.unit {
            Unit::Bytes => Some(format!("{}/s", ByteSize((self.done as f64 / seconds) as u64))),
            // A token is done when it has left the last layer.
            Unit::Layers { tokens } => {
                Some(format!("{:.0} tok/s", tokens as f64 * self.share() / seconds))
            }
            Unit::Files | Unit::Parts | Unit::Steps => None,
        }
    }

    fn noun(&self) -> &'static str {
        match self.unit {
            Unit::Bytes => "byte",
            Unit::Layers { .. } => "layer",
            Unit::Files => "file",
            Unit::Parts => "part",
            Unit::Steps => "step",
        }
    }
}

/// ` 7/48`, with a constant width, so that the text after it doesn't move.
fn counted(number: u64, of: u64) -> String {
    let of = of.to_string();
    format!("{number:>width$}/{of}", width = of.len())
}

/// 3725 seconds as `1:02:05`.
fn clock(seconds: f64) -> String {
    let seconds = seconds.ceil() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(done: u64) -> BarStage {
        BarStage { done, ..BarStage::new("decide", 48, Unit::Layers { tokens: 8192 }) }
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let draw = |columns| {
            sweep(12).drawn(columns, Duration::from_secs(60), Some(3_200_000_000), Some((56, 128)))
        };
        let figures = "layer 13/48   3:00 left  expert  57/128  34 tok/s  3.20 GB RAM";
        assert_eq!(draw(120), format!("decide  {}{}  {figures}", "█".repeat(3), "░".repeat(12)));
        assert_eq!(
            draw(80),
            "decide  ██░░░░░░░░  layer 13/48   3:00 left  expert  57/128  34 tok/s"
        );
        assert_eq!(draw(49), "decide  █░░░░░  layer 13/48   3:00 left");
        assert_eq!(draw(39), "decide  layer 13/48   3:00 left");
        assert_eq!(draw(20), "decide  layer 13/48");
        assert_eq!(draw(4), "deci");
    }

    #[test]
    fn nothing_is_extrapolated_from_nothing() {
        assert_eq!(sweep(0).figures(Duration::from_secs(9), None, None), ["layer  1/48"]);
        assert_eq!(
            sweep(48).figures(Duration::from_secs(8), None, None),
            ["layer 48/48", "1024 tok/s"]
        );
        assert_eq!(BarStage::new("write", 0, Unit::Bytes).blocks(3), "███");
    }

    #[test]
    fn written_bytes_have_their_place() {
        let mut stage =
            BarStage { done: 250_000_000, ..BarStage::new("write", 1_000_000_000, Unit::Bytes) };
        stage.status = "layer 3, expert 17".to_owned();
        let figures = stage.figures(Duration::from_secs(2), None, Some((1, 2)));
        assert_eq!(
            figures,
            ["250.00 MB/1.00 GB", " 0:06 left", "layer 3, expert 17", "125.00 MB/s"]
        );
        assert_eq!(stage.announcement(), "write: 1.00 GB");
        assert_eq!((clock(59.2).as_str(), clock(3725.0).as_str()), ("1:00", "1:02:05"));
    }
}
