//! The cost on held-out text, compared with the baseline.

use moe_forward::DomainReport;

use crate::receipt::Receipt;
use crate::report::charts::{Bar, Bars, bars};
use crate::report::html::{Section, Table};
use crate::report::number::{decimal, grouped, percent, signed};
use crate::report::svg::Svg;
use crate::trust::{HeldOutReport, StageReport};

/// Anchor of the section.
pub(crate) const ID: &str = "cost";

const UNKNOWN: &str = "Nothing was held out, so Δ loss, KL and top-1 agreement are not known. Give \
     `--held-out TEXT` with text that was not used for calibration.";

const UNITS: &str = "Losses are nats per predicted token of text that was held out; Δ loss is against the original model, KL the \
     divergence of the next token's distribution from the original's, top-1 agreement the share of tokens whose most \
     probable next token stays.";

pub(crate) fn section(receipt: &Receipt) -> Section {
    let mut section = Section::new(ID, "What it costs");
    let Some(held_out) = &receipt.held_out else { return section.warning(UNKNOWN) };
    if !held_out.stages.is_empty() {
        section = section.table(&stages(held_out));
    }
    let has_baseline = held_out.baseline.is_some();
    let baseline = receipt.pass.baseline;
    let beside = baseline
        .map_or("", |baseline| if has_baseline { baseline.measured } else { baseline.unmeasured });
    let mut legend = vec![("kept", "this result")];
    legend.extend(has_baseline.then_some(("control", receipt.baseline_name())));
    section
        .text(&format!("{UNITS} {beside}"))
        .legend(&legend)
        .charts(charts(held_out, receipt.baseline_name()))
        .table(&by_domain(held_out, receipt.baseline_name()))
}

/// Bars of each figure by domain, with those of the baseline.
fn charts(held_out: &HeldOutReport, baseline: &str) -> [Svg; 3] {
    let rows: Vec<Row<'_>> = held_out.rows().map(row).collect();
    let losses = Bars {
        id: "cost-loss",
        title: "Δ loss by domain, nats per token",
        rows: &bars_of(&rows, |figures| figures.loss),
        baseline,
        format: signed,
    };
    let divergences = Bars {
        id: "cost-kl",
        title: "KL to the original by domain, nats per token",
        rows: &bars_of(&rows, |figures| figures.kl),
        format: |value| decimal(value, 4),
        ..losses
    };
    let agreements = Bars {
        id: "cost-top1",
        title: "Top-1 agreement by domain",
        rows: &bars_of(&rows, |figures| figures.top1),
        format: percent,
        ..losses
    };
    [losses, divergences, agreements].map(|chart| bars(&chart))
}

fn bars_of(rows: &[Row<'_>], value: fn(&Figures) -> f64) -> Vec<Bar> {
    let bar = |(domain, figures): &Row<'_>| Bar {
        label: domain.label.clone(),
        values: figures.each_ref().map(|figures| figures.as_ref().map(value)),
    };
    rows.iter().map(bar).collect()
}

/// All figures by domain, with those of the baseline if it was measured.
fn by_domain(held_out: &HeldOutReport, baseline: &str) -> Table {
    let mut header =
        vec!["domain", "tokens", "original loss", "loss", "Δ loss", "KL", "top-1 agreement"];
    let of_baseline = format!("{baseline}: Δ loss");
    if held_out.baseline.is_some() {
        header.extend([of_baseline.as_str(), "KL", "top-1 agreement"]);
    }
    let rows = held_out.rows().map(|domain| cells(&row(domain), header.len()));
    Table::numbers("Held-out text, by domain", &header, rows)
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
