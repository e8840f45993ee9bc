//! The outcome of each step of a recipe, for readers of a CI job's page: JUnit XML and Markdown.

use std::fmt::Write as _;

use moe_checkpoint::{Kind, Seal, shown};

use super::parsed::Recipe;
use crate::markdown::{MarkdownBlock, MarkdownText};
use crate::portable::{portable, portable_text};
use crate::report::Escaped;
use crate::summary::Average;

/// Whether a step has run, and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum StepStatus {
    /// It succeeded.
    Done,
    /// The result existed already.
    Reused,
    /// It failed, or a gate wasn't met.
    Failed {
        /// Whether it failed at a gate.
        gate: bool,
        /// The whole error message.
        message: String,
    },
    /// A step before it failed.
    NotRun,
}

impl StepStatus {
    /// The status of a running step until another one is known.
    pub fn unfinished() -> Self {
        Self::Failed { gate: false, message: "stopped before its end".to_owned() }
    }

    /// The status for an error whose first cause has `kind`. Paths of this machine are left out of
    /// the message, since it is published.
    pub fn failed(kind: Option<Kind>, message: String) -> Self {
        Self::Failed { gate: kind == Some(Kind::Gate), message: portable_text(&message) }
    }

    /// The cell of the status in the table of steps.
    fn word(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Reused => "there already",
            Self::Failed { gate: true, .. } => "**gate not met**",
            Self::Failed { .. } => "**failed**",
            Self::NotRun => "not run",
        }
    }

    /// Ends the element `case` of JUnit, which lacks the end of its start tag.
    fn close_case(&self, case: &str) -> String {
        match self {
            Self::Done | Self::Reused => format!("{case}/>\n"),
            Self::NotRun => format!("{case}><skipped message=\"not run\"/></testcase>\n"),
            Self::Failed { gate, message } => {
                let tag = if *gate { "failure" } else { "error" };
                let first = Escaped(message.lines().next().unwrap_or_default());
                let all = Escaped(message);
                format!("{case}><{tag} message=\"{first}\">{all}</{tag}></testcase>\n")
            }
        }
    }
}

/// A step, whether it was run or not.
#[derive(Debug, Clone)]
pub struct StepOutcome {
    /// The number and command of the step, and the values chosen for it.
    pub name: String,
    /// Wall time in seconds.
    pub seconds: f64,
    /// The status of the step.
    pub status: StepStatus,
}

impl Recipe {
    /// The name of the step in outcomes. It is the same on every machine, so that a page can follow
    /// a step from run to run.
    pub fn step_name(&self, index: usize) -> String {
        format!(
            "{}. {}: {}",
            index + 1,
            self.steps[index].name(),
            portable(self.steps[index].subject())
        )
    }
}

/// JUnit XML with a test case for each step. A gate that isn't met is a failure; anything else that
/// goes wrong is an error.
pub fn junit(recipe: &str, steps: &[StepOutcome]) -> String {
    // Names become attributes, which are one line.
    let name = shown(recipe, "");
    let name = Escaped(&name);
    let counts = counts(steps);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n<testsuite name=\"{name}\" {counts}>\n"
    );
    for step in steps {
        let seconds = step.seconds;
        let case = format!(
            "<testcase classname=\"{name}\" name=\"{}\" time=\"{seconds:.3}\"",
            Escaped(&shown(&step.name, ""))
        );
        text += &step.status.close_case(&case);
    }
    Seal::XML.close(&(text + "</testsuite>\n</testsuites>\n"))
}

/// The attributes of a suite that count its cases.
fn counts(steps: &[StepOutcome]) -> String {
    let count =
        |wanted: fn(&StepStatus) -> bool| steps.iter().filter(|step| wanted(&step.status)).count();
    let failures = count(|status| matches!(status, StepStatus::Failed { gate: true, .. }));
    let errors = count(|status| matches!(status, StepStatus::Failed { gate: false, .. }));
    let skipped = count(|status| *status == StepStatus::NotRun);
    let seconds = steps.iter().map(|step| step.seconds).sum::<f64>();
    format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds:.3}\"",
        steps.len()
    )
}

/// The header of the table of steps, by which a summary is recognized.
pub(super) const STEPS_HEADER: &str = "| step | time | |";

/// A Markdown page: steps, errors, and the measurements of evaluations.
pub fn markdown(recipe: &str, steps: &[StepOutcome], averages: &[Average]) -> String {
    let mut text = format!("## {}\n\n{STEPS_HEADER}\n|---|---:|---|\n", MarkdownText(recipe));
    for StepOutcome { name, seconds, status } in steps {
        let word = status.word();
        // Writing to a String can't fail.
        let _ = writeln!(text, "| {} | {seconds:.1} s | {word} |", MarkdownText(name));
    }
    for step in steps {
        if let StepStatus::Failed { message, .. } = &step.status {
            let _ = write!(text, "\n{}", MarkdownBlock { language: "text", text: message });
        }
    }
    if !averages.is_empty() {
        let _ = write!(text, "\n| evaluated | loss | KL | top-1 |\n|---|---:|---:|---:|\n");
        averages.iter().for_each(|average| text += &row(average));
    }
    text
}

/// The row of an evaluation.
fn row(Average { label, figures, .. }: &Average) -> String {
    let kl = or_dash(figures.kl.map(|kl| kl.mean));
    let top1 = or_dash(figures.top1_agreement.map(|agreement| agreement.mean));
    let loss = figures.loss.mean;
    format!("| {} | {loss:.4} | {kl} | {top1} |\n", MarkdownText(label))
}

fn or_dash(figure: Option<f64>) -> String {
    figure.map_or("–".to_owned(), |figure| format!("{figure:.4}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn steps() -> Vec<StepOutcome> {
        let step = |name: &str, status| StepOutcome { name: name.to_owned(), seconds: 1.5, status };
        let failed = |gate, message: &str| StepStatus::Failed { gate, message: message.to_owned() };
        vec![
            step("1. prune: a|b", StepStatus::Done),
            step("2. eval: <x>", failed(true, "max-kl is 1 & more\n```")),
            step("3. verify: y", failed(false, "broken\u{1b}")),
            step("4. eval: z", StepStatus::NotRun),
        ]
    }

    #[test]
    fn junit_counts_and_escapes() {
        let xml = junit("a \"recipe\"", &steps());
        for part in [
            "tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\" time=\"6.000\"",
            "name=\"a &quot;recipe&quot;\"",
            "name=\"2. eval: &lt;x&gt;\" time=\"1.500\"><failure message=\"max-kl is 1 &amp; more\">",
            "<error message=\"broken\u{fffd}\">",
            "classname=\"a &quot;recipe&quot;\"",
            "<skipped ",
        ] {
            assert!(xml.contains(part), "{part}: {xml}");
        }
    }

    #[test]
    fn names_of_steps_are_the_same_everywhere() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(portable(&here.join("target/x/moe")), "target/x/moe");
        assert_eq!(portable(Path::new("target/x/moe")), "target/x/moe");
        assert_eq!(portable(Path::new("/tmp/run-4711/moe")), "moe");
        assert_eq!(portable(Path::new("../moe")), "../moe");
    }

    #[test]
    fn markdown_is_not_html_and_keeps_its_tables() {
        let page = markdown("nightly", &steps(), &[]);
        assert!(page.contains("| 1. prune: a\\|b | 1.5 s | done |"), "{page}");
        assert!(page.contains("| 2. eval: &lt;x> | 1.5 s | **gate not met** |"), "{page}");
        assert!(page.contains("\n````text\nmax-kl is 1 & more\n```\n````\n"), "{page}");
    }
}
