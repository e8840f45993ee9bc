//! The training: curves, held-out text, and load.

use moe_forward::DomainReport;

use crate::receipt::Receipt;
use crate::report::charts::{Line, LineChart, lines};
use crate::report::html::{Section, Table};
use crate::report::number::{decimal, grouped, percent, signed};
use crate::train::{LoadChange, Measurement, StepRecord, TrainingRecord};

/// The section "What was done".
pub(crate) fn summary(receipt: &Receipt, training: &TrainingRecord) -> Section {
    let tile = |name: &str, value: String, beside: String| [name.to_owned(), value, beside];
    let change = training.before.as_ref().zip(training.after.as_ref());
    let written = match training.stopped_early {
        true => format!("written: step {}; stopped early", training.written),
        false => format!("written: step {}", training.written),
    };
    let mut section = Section::new("done", "What was done")
        .text(&format!(
            "`{}` ({}) was trained on. {} of {} tensors are byte-identical to the source's.",
            receipt.source.name,
            receipt.source.model_type,
            receipt.result.tensors_copied,
            receipt.result.tensors
        ))
        .tiles(&[
            tile(
                "weights trained",
                grouped(training.parameters as u64),
                format!("of {}", grouped(receipt.result.total_parameters as u64)),
            ),
            tile("steps", grouped(training.steps), written),
            tile("tokens", grouped(training.tokens), "counting each epoch".to_owned()),
            tile(
                "held-out loss",
                decimal(change.map(|(_, after)| after.all.loss), 4),
                format!(
                    "{} by training",
                    signed(change.map(|(before, after)| after.all.loss - before.all.loss))
                ),
            ),
        ]);
    for warning in &receipt.warnings {
        section = section.warning(&format!("{warning}."));
    }
    section
}

/// Losses over steps.
pub(crate) fn curves(training: &TrainingRecord) -> Section {
    let of_steps = |value: fn(&StepRecord) -> f64| {
        training.curve.iter().map(|s| (s.step, value(s))).collect::<Vec<_>>()
    };
    let measured = |value: fn(&Measurement) -> Option<f64>| -> Vec<(u64, f64)> {
        training.measurements.iter().filter_map(|m| Some((m.step, value(m)?))).collect()
    };
    let chart = |id, title, points: &[Line<'_>]| lines(&LineChart { id, title, lines: points });
    let mut losses = vec![("kept", "next tokens of the batch", of_steps(|s| s.cross_entropy))];
    let held_out = measured(|m| Some(m.loss));
    losses.extend((!held_out.is_empty()).then_some((
        "control",
        "next tokens of held-out text",
        held_out,
    )));
    let mut charts = vec![chart("train-loss", "Loss, nats per token", &losses)];
    let kl = measured(|m| m.kl);
    if training.curve.iter().any(|s| s.teacher != 0.0) {
        let mut divergences = vec![("kept", "KL of the batch", of_steps(|s| s.teacher))];
        divergences.extend((!kl.is_empty()).then_some(("control", "KL on held-out text", kl)));
        charts.push(chart("train-kl", "KL(teacher ‖ model), nats per token", &divergences));
    }
    if training.curve.iter().any(|s| s.balance != 0.0) {
        charts.push(chart(
            "train-balance",
            "Load-balancing loss",
            &[("kept", "balance", of_steps(|s| s.balance))],
        ));
        charts.push(chart("train-z", "Router z-loss", &[("kept", "z-loss", of_steps(|s| s.z))]));
    }
    charts.push(chart(
        "train-norm",
        "Norm of all gradients, before clipping",
        &[("kept", "norm", of_steps(|s| s.gradient_norm))],
    ));
    charts.push(chart(
        "train-rate",
        "Learning rate",
        &[("kept", "rate", of_steps(|s| s.learning_rate))],
    ));
    Section::new("training", "Training")
        .text("What a batch costs differs from batch to batch; held-out text is the same each time. A long run's points are means of neighbouring steps.")
        .legend(&[("kept", "training text"), ("control", "held-out text")])
        .charts(charts)
}

/// Held-out text before and after training.
pub(crate) fn held_out(training: &TrainingRecord) -> Section {
    let section = Section::new("cost", "Held-out text");
    let Some((before, after)) = training.before.as_ref().zip(training.after.as_ref()) else {
        return section.warning(
            "Nothing was held out, so it isn't known what training did to other text, and the last step's weights are \
             written. Give `--held-out TEXT` with text that isn't trained on.",
        );
    };
    let compared = before.all.against.is_some();
    let mut header = vec!["domain", "tokens", "loss before", "loss after", "Δ loss"];
    if compared {
        header.extend(["KL before", "KL after", "top-1 before", "top-1 after"]);
    }
    let row = |(before, after): (&DomainReport, &DomainReport)| {
        let mut row = vec![
            after.label.clone(),
            grouped(after.tokens as u64),
            decimal(Some(before.loss), 4),
            decimal(Some(after.loss), 4),
            signed(Some(after.loss - before.loss)),
        ];
        let both = [before, after].map(|d| d.against.as_ref());
        if compared {
            row.extend(both.map(|a| decimal(a.map(|a| a.kl), 4)));
            row.extend(both.map(|a| percent(a.map(|a| a.top1_agreement))));
        }
        row
    };
    let rows: Vec<Vec<String>> = before.rows().zip(after.rows()).map(row).collect();
    section
        .text("Before training is the source; KL and top-1 agreement are against the teacher, where there is one.")
        .table(&Table::numbers("Held-out text before and after training", &header, rows))
}

/// The load of experts by the training text.
pub(crate) fn load(training: &TrainingRecord) -> Section {
    let section = Section::new("load", "Expert load");
    if training.load.is_empty() {
        return section.text("No layer has experts, or no step was taken.");
    }
    if training.load_is_of_one_measurement() {
        let row = |change: &LoadChange| {
            let LoadChange { layer, last, dropped, .. } = change;
            let [layer, experts] = [*layer, last.counts.len()].map(|count| count.to_string());
            vec![
                layer,
                experts,
                decimal(Some(last.entropy), 3),
                last.dead.to_string(),
                percent(Some(*dropped)),
            ]
        };
        let header = ["layer", "experts", "entropy", "without tokens", "dropped"];
        return section
            .text("Entropy of the experts' shares of the training text: 1 where all are equal. It was measured once, after the last step.")
            .table(&Table::numbers("Load of each layer's experts", &header, training.load.iter().map(row)));
    }
    let row = |change: &LoadChange| {
        let [first, last] = [&change.first, &change.last];
        vec![
            change.layer.to_string(),
            last.counts.len().to_string(),
            decimal(Some(first.entropy), 3),
            decimal(Some(last.entropy), 3),
            first.dead.to_string(),
            last.dead.to_string(),
            percent(Some(change.dropped)),
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
    section
        .text("Entropy of the experts' shares of the training text: 1 where all are equal. At first is up to the first measurement, at last from the last but one.")
        .table(&Table::numbers("Load of each layer's experts", &header, training.load.iter().map(row)))
}
