//! The training: curves, held-out text, and load.

use moe_forward::{Comparison, DomainReport};

use super::tiles::{Tile, tile};
use crate::receipt::Receipt;
use crate::report::charts::{Line, LineChart, lines};
use crate::report::html::{Section, Table};
use crate::report::number::{decimal, grouped, percent, signed};
use crate::report::svg::Svg;
use crate::train::{LoadChange, Measurement, StepRecord, TrainingRecord};

/// The section "What was done".
pub(crate) fn summary(receipt: &Receipt, training: &TrainingRecord) -> Section {
    let result = &receipt.result;
    Section::new("done", "What was done")
        .text(&format!(
            "`{}` ({}) was trained on. {} of {} tensors are byte-identical to the source's.",
            receipt.source.name, receipt.source.model_type, result.tensors_copied, result.tensors
        ))
        .tiles(&tiles(training, result.total_parameters))
        .warnings(&receipt.warnings)
}

/// The main figures of a training of a model with `parameters` weights.
fn tiles(training: &TrainingRecord, parameters: usize) -> [Tile; 4] {
    let early = if training.stopped_early { "; stopped early" } else { "" };
    let losses = training.before.as_ref().zip(training.after.as_ref());
    let losses = losses.map(|(before, after)| [before.all.loss, after.all.loss]);
    let change = signed(losses.map(|[before, after]| after - before));
    [
        tile(
            "weights trained",
            grouped(training.parameters as u64),
            format!("of {}", grouped(parameters as u64)),
        ),
        tile(
            "steps",
            grouped(training.steps),
            format!("written: step {}{early}", training.written),
        ),
        tile("tokens", grouped(training.tokens), "counting each epoch"),
        tile(
            "held-out loss",
            decimal(losses.map(|[_, after]| after), 4),
            format!("{change} by training"),
        ),
    ]
}

const CURVES: &str = "What a batch costs differs from batch to batch; held-out text is the same each time. A long run's points are means of neighbouring steps.";

/// Losses over steps.
pub(crate) fn curves(training: &TrainingRecord) -> Section {
    let mut charts = vec![losses(training)];
    if training.curve.iter().any(|s| s.teacher != 0.0) {
        charts.push(divergences(training));
    }
    if training.curve.iter().any(|s| s.balance != 0.0) {
        charts.extend(balance(training));
    }
    let norms = of_steps(training, |s| s.gradient_norm);
    let rates = of_steps(training, |s| s.learning_rate);
    let norm_title = "Norm of all gradients, before clipping";
    charts.push(chart("train-norm", norm_title, &[("kept", "norm", norms)]));
    charts.push(chart("train-rate", "Learning rate", &[("kept", "rate", rates)]));
    Section::new("training", "Training")
        .text(CURVES)
        .legend(&[("kept", "training text"), ("control", "held-out text")])
        .charts(charts)
}

fn losses(training: &TrainingRecord) -> Svg {
    let batches = of_steps(training, |s| s.cross_entropy);
    let mut lines = vec![("kept", "next tokens of the batch", batches)];
    let held_out = measured(training, |m| Some(m.loss));
    if !held_out.is_empty() {
        lines.push(("control", "next tokens of held-out text", held_out));
    }
    chart("train-loss", "Loss, nats per token", &lines)
}

fn divergences(training: &TrainingRecord) -> Svg {
    let mut lines = vec![("kept", "KL of the batch", of_steps(training, |s| s.teacher))];
    let held_out = measured(training, |m| m.kl);
    if !held_out.is_empty() {
        lines.push(("control", "KL on held-out text", held_out));
    }
    chart("train-kl", "KL(teacher ‖ model), nats per token", &lines)
}

/// The losses that keep routers balanced.
fn balance(training: &TrainingRecord) -> [Svg; 2] {
    let balance = of_steps(training, |s| s.balance);
    let z = of_steps(training, |s| s.z);
    [
        chart("train-balance", "Load-balancing loss", &[("kept", "balance", balance)]),
        chart("train-z", "Router z-loss", &[("kept", "z-loss", z)]),
    ]
}

fn chart(id: &str, title: &str, points: &[Line<'_>]) -> Svg {
    lines(&LineChart { id, title, lines: points })
}

/// A value of each step.
fn of_steps(training: &TrainingRecord, value: fn(&StepRecord) -> f64) -> Vec<(u64, f64)> {
    training.curve.iter().map(|step| (step.step, value(step))).collect()
}

/// A value of each measurement that has it.
fn measured(training: &TrainingRecord, value: fn(&Measurement) -> Option<f64>) -> Vec<(u64, f64)> {
    let measurements = training.measurements.iter();
    measurements.filter_map(|measurement| Some((measurement.step, value(measurement)?))).collect()
}

const NOT_HELD_OUT: &str = "Nothing was held out, so it isn't known what training did to other text, and the last step's weights are \
     written. Give `--held-out TEXT` with text that isn't trained on.";

/// Held-out text before and after training.
pub(crate) fn held_out(training: &TrainingRecord) -> Section {
    let section = Section::new("cost", "Held-out text");
    let Some((before, after)) = training.before.as_ref().zip(training.after.as_ref()) else {
        return section.warning(NOT_HELD_OUT);
    };
    let mut header = vec!["domain", "tokens", "loss before", "loss after", "Δ loss"];
    let is_compared = before.all.against.is_some();
    if is_compared {
        header.extend(["KL before", "KL after", "top-1 before", "top-1 after"]);
    }
    let rows = before.rows().zip(after.rows()).map(|(before, after)| {
        let mut row = loss_cells(before, after);
        row.extend(is_compared.then(|| comparison_cells(before, after)).into_iter().flatten());
        row
    });
    section
        .text("Before training is the source; KL and top-1 agreement are against the teacher, where there is one.")
        .table(&Table::numbers("Held-out text before and after training", &header, rows))
}

fn loss_cells(before: &DomainReport, after: &DomainReport) -> Vec<String> {
    vec![
        after.label.clone(),
        grouped(after.tokens as u64),
        decimal(Some(before.loss), 4),
        decimal(Some(after.loss), 4),
        signed(Some(after.loss - before.loss)),
    ]
}

fn comparison_cells(before: &DomainReport, after: &DomainReport) -> [String; 4] {
    let [before, after] = [before, after].map(|domain| domain.against.as_ref());
    let kl = |against: Option<&Comparison>| decimal(against.map(|a| a.kl), 4);
    let top1 = |against: Option<&Comparison>| percent(against.map(|a| a.top1_agreement));
    [kl(before), kl(after), top1(before), top1(after)]
}

/// The load of experts by the training text.
pub(crate) fn load(training: &TrainingRecord) -> Section {
    let section = Section::new("load", "Expert load");
    if training.load.is_empty() {
        return section.text("No layer has experts, or no step was taken.");
    }
    if training.load_is_of_one_measurement() {
        return section.text(LOAD_ONCE).table(&load_once(&training.load));
    }
    section.text(LOAD_TWICE).table(&load_twice(&training.load))
}

const LOAD_ONCE: &str = "Entropy of the experts' shares of the training text: 1 where all are equal. It was measured once, after the last step.";
const LOAD_TWICE: &str = "Entropy of the experts' shares of the training text: 1 where all are equal. At first is up to the first measurement, at last from the last but one.";

/// The caption of either table of loads.
const LOADS: &str = "Load of each layer's experts";

fn load_once(load: &[LoadChange]) -> Table {
    let row = |LoadChange { layer, last, dropped, .. }: &LoadChange| {
        vec![
            layer.to_string(),
            last.counts.len().to_string(),
            decimal(Some(last.entropy), 3),
            last.dead.to_string(),
            percent(Some(*dropped)),
        ]
    };
    let header = ["layer", "experts", "entropy", "without tokens", "dropped"];
    Table::numbers(LOADS, &header, load.iter().map(row))
}

fn load_twice(load: &[LoadChange]) -> Table {
    let row = |LoadChange { layer, first, last, dropped }: &LoadChange| {
        vec![
            layer.to_string(),
            last.counts.len().to_string(),
            decimal(Some(first.entropy), 3),
            decimal(Some(last.entropy), 3),
            first.dead.to_string(),
            last.dead.to_string(),
            percent(Some(*dropped)),
        ]
    };
    let header = [
        "layer",
        "experts",
        "entropy at first",
        "at last",
        "without tokens at first",
        "at last",
        "dropped",
    ];
    Table::numbers(LOADS, &header, load.iter().map(row))
}
