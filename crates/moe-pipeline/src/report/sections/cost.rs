//! The cost on held-out text, compared with the baseline.

use moe_forward::DomainReport;

use crate::receipt::Receipt;
use crate::report::charts::{Bar, bars};
use crate::report::html::{Section, Table};
use crate::report::number::{decimal, grouped, percent, signed};
use crate::trust::{HeldOutReport, StageReport};

/// Anchor of the section.
pub(crate) const ID: &str = "cost";

pub(crate) fn section(receipt: &Receipt) -> Section {
    let section = Section::new(ID, "What it costs");
    let Some(held_out) = &receipt.held_out else {
        return section.warning(
            "Nothing was held out, so Δ loss, KL and top-1 agreement are not known. Give \
             `--held-out TEXT` with text that was not used for calibration.",
        );
    };
    let beside = receipt.pass.baseline.map_or("", |baseline| match held_out.baseline {
        Some(_) => baseline.measured,
        None => baseline.unmeasured,
    });
    let rows: Vec<Row<'_>> = held_out.rows().map(row).collect();
    let chart = |id, title, format: fn(Option<f64>) -> String, value: fn(&Figures) -> f64| {
        let bar = |(d, figures): &Row| Bar {
            label: d.label.clone(),
            values: figures.each_ref().map(|f| f.as_ref().map(value)),
        };
        bars(id, title, &rows.iter().map(bar).collect::<Vec<_>>(), receipt.baseline_name(), format)
    };
    let mut header =
        vec!["domain", "tokens", "original loss", "loss", "Δ loss", "KL", "top-1 agreement"];
    let of_control = format!("{}: Δ loss", receipt.baseline_name());
    if held_out.baseline.is_some() {
        header.extend([of_control.as_str(), "KL", "top-1 agreement"]);
    }
    let mut legend = vec![("kept", "this result")];
    legend.extend(held_out.baseline.is_some().then_some(("control", receipt.baseline_name())));
    let section =
        if held_out.stages.is_empty() { section } else { section.table(&stages(held_out)) };
    section
        .text(&format!(
            "Losses are nats per predicted token of text that was held out; Δ loss is against the original model, KL the \
             divergence of the next token's distribution from the original's, top-1 agreement the share of tokens whose most \
             probable next token stays. {beside}"
        ))
        .legend(&legend)
        .charts([
            chart("cost-loss", "Δ loss by domain, nats per token", signed, |f| f.loss),
            chart("cost-kl", "KL to the original by domain, nats per token", |v| decimal(v, 4), |f| f.kl),
            chart("cost-top1", "Top-1 agreement by domain", percent, |f| f.top1),
        ])
        .table(&Table::numbers("Held-out text, by domain", &header, rows.iter().map(|row| cells(row, header.len()))))
}

/// The outcome of each stage, over all domains; the change of loss also by domain.
fn stages(held_out: &HeldOutReport) -> Table {
    let of_domain = |d: &DomainReport| format!("{}: Δ loss", d.label);
    let mut header: Vec<String> =
        ["stage", "KL", "top-1 agreement", "Δ loss"].map(str::to_owned).into();
    header.extend(held_out.result.domains.iter().map(of_domain));
    let row = |stage: &StageReport| {
        let all = &stage.report.all;
        let top1 = all.against.as_ref().map(|against| against.top1_agreement);
        let mut row =
            vec![stage.name(), decimal(all.kl(), 4), percent(top1), signed(all.loss_change())];
        row.extend(stage.report.domains.iter().map(|d| signed(d.loss_change())));
        row
    };
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    Table::numbers("Behind each stage", &header, held_out.stages.iter().map(row))
}

/// A result compared with the original.
struct Figures {
    loss: f64,
    kl: f64,
    top1: f64,
}

impl Figures {
    fn of(domain: &DomainReport) -> Option<Self> {
        let against = domain.against.as_ref()?;
        Some(Self { loss: domain.loss_change()?, kl: against.kl, top1: against.top1_agreement })
    }
}

/// A domain of the result, its figures, and those of the baseline.
type Row<'a> = (&'a DomainReport, [Option<Figures>; 2]);

fn row<'a>((domain, control): (&'a DomainReport, Option<&DomainReport>)) -> Row<'a> {
    (domain, [Figures::of(domain), control.and_then(Figures::of)])
}

fn cells((domain, [result, control]): &Row<'_>, columns: usize) -> Vec<String> {
    let figures = |figures: &Option<Figures>| {
        let of = |value: fn(&Figures) -> f64| figures.as_ref().map(value);
        [signed(of(|f| f.loss)), decimal(of(|f| f.kl), 4), percent(of(|f| f.top1))]
    };
    let mut cells = vec![
        domain.label.clone(),
        grouped(domain.tokens as u64),
        decimal(domain.against.as_ref().map(|a| a.original_loss), 4),
        decimal(Some(domain.loss), 4),
    ];
    cells.extend(figures(result).into_iter().chain(figures(control)));
    cells.truncate(columns);
    cells
}
