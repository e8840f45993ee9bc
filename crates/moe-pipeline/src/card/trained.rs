//! The card's section on training, and the effect on held-out text.

use std::fmt::Write as _;

use moe_checkpoint::counted;
use moe_forward::EvalReport;

use super::words::millions;
use crate::file_names::REPORT_FILE;
use crate::markdown::MarkdownText;
use crate::receipt::Receipt;
use crate::train::{Settings, TrainingRecord};

/// The section on training; empty where none took place.
pub(super) fn trained(receipt: &Receipt) -> String {
    let Some(training) = &receipt.training else { return String::new() };
    let mut text = steps(training);
    if let Some((before, after)) = training.before.as_ref().zip(training.after.as_ref()) {
        text.push_str(&held_out(before, after));
    }
    text
}

/// The heading, the length of the training, and changes of its settings.
fn steps(training: &TrainingRecord) -> String {
    let mut text = format!(
        "\n## How it was trained\n\n{} of its weights, for {} on {} tokens; these are the weights of step {}. `{REPORT_FILE}` has the curves.\n",
        millions(training.parameters),
        counted(training.steps, "step"),
        training.tokens,
        training.written
    );
    for settings in &training.settings {
        let Settings { after_step, learning_rate, clip, patience } = settings;
        let _ = writeln!(
            text,
            "\nAfter step {after_step}: learning rate {learning_rate}, gradients clipped to a norm of {clip}, patience {patience}."
        );
    }
    text
}

/// A table of the losses by domain, and of the KL to a teacher if there is one.
fn held_out(before: &EvalReport, after: &EvalReport) -> String {
    // With a teacher, its KL is the training's objective.
    let compared = after.all.against.is_some();
    let (names, rule) = if compared { (" KL before | after |", "--:|--:|") } else { ("", "") };
    let mut text =
        format!("\n| held-out text | loss before | after |{names}\n|---|--:|--:|{rule}\n");
    for (before, after) in before.rows().zip(after.rows()) {
        let label = MarkdownText(&after.label);
        let _ = write!(text, "| {label} | {:.4} | {:.4} |", before.loss, after.loss);
        if let Some((before, after)) = before.kl().zip(after.kl()) {
            let _ = write!(text, " {before:.4} | {after:.4} |");
        }
        text.push('\n');
    }
    text
}
