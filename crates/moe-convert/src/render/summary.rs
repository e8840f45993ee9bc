//! All evaluations of a recipe as tables in Markdown, a row for each label.

use moe_pipeline::{Average, DomainSummary, Figures, MarkdownText, Spread};

use super::table::or_dash;

const HEADER: [&str; 8] = [
    "loss",
    "KL to the original",
    "rare experts",
    "agreement",
    "Gini",
    "entropy",
    "dead",
    "information",
];
const LEGEND: &str = "\nRare experts: KL by the gates of the quarter of experts that fewest tokens choose. Gini, entropy (1: even) and \
    information are means over layers, in brackets the worst one; information is that between a token's expert \
    and its domain.\n";
const LEGEND_OF_SEVERAL: &str =
    "Of several runs: mean ± standard deviation, of the load the mean alone.\n";

/// The tables of all evaluations.
pub fn summary(rows: &[Average]) -> String {
    let repeated = rows.iter().any(|row| row.runs > 1);
    let mut header = vec![""];
    header.extend(repeated.then_some("runs"));
    header.extend(HEADER);
    let mut text = head(&header);
    for row in rows {
        let mut cells = vec![MarkdownText(&row.label).to_string()];
        cells.extend(repeated.then(|| row.runs.to_string()));
        cells.extend(figures(&row.figures));
        text += &line(&cells);
    }
    text += LEGEND;
    if repeated {
        text += LEGEND_OF_SEVERAL;
    }
    text + &by_domain(rows)
}

/// The cells below [`HEADER`].
fn figures(of: &Figures<Spread>) -> [String; 8] {
    let load = of.load.as_ref();
    [
        fixed(&of.loss),
        or_dash(of.kl.as_ref().map(scientific)),
        or_dash(of.rare_kl.as_ref().map(scientific)),
        or_dash(of.top1_agreement.as_ref().map(percent)),
        or_dash(load.map(|l| format!("{:.3} ({:.3})", l.gini.mean, l.worst_gini.mean))),
        or_dash(load.map(|l| format!("{:.3} ({:.3})", l.entropy.mean, l.least_entropy.mean))),
        or_dash(load.map(|l| format!("{} of {}", rounded(l.dead.mean), l.experts))),
        or_dash(load.map(|l| format!("{:.3} bit", l.information.mean))),
    ]
}

/// The table of loss and KL by domain, where all evaluations have the same domains.
fn by_domain(rows: &[Average]) -> String {
    let labels =
        |row: &Average| row.figures.domains.iter().map(|d| d.label.clone()).collect::<Vec<_>>();
    let first = rows.first().map(labels).unwrap_or_default();
    if first.len() < 2 || rows.iter().any(|row| labels(row) != first) {
        return String::new();
    }
    let labels = first.iter().map(|label| MarkdownText(label).to_string());
    let header: Vec<String> = std::iter::once("loss (KL)".to_owned()).chain(labels).collect();
    let mut text = format!("\n{}", head(&header.iter().map(String::as_str).collect::<Vec<_>>()));
    for row in rows {
        let cell = |d: &DomainSummary<Spread>| match &d.kl {
            Some(kl) => format!("{:.3} ({})", d.loss.mean, fixed(kl)),
            None => format!("{:.3}", d.loss.mean),
        };
        let cells: Vec<_> = std::iter::once(MarkdownText(&row.label).to_string())
            .chain(row.figures.domains.iter().map(cell))
            .collect();
        text += &line(&cells);
    }
    text
}

fn head(header: &[&str]) -> String {
    format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()))
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// `mean ± deviation`, or only the mean of a single run.
fn with_deviation(mean: String, deviation: Option<String>) -> String {
    match deviation {
        Some(deviation) => format!("{mean} ± {deviation}"),
        None => mean,
    }
}

fn fixed(spread: &Spread) -> String {
    with_deviation(format!("{:.4}", spread.mean), spread.deviation.map(|d| format!("{d:.4}")))
}

fn scientific(spread: &Spread) -> String {
    with_deviation(format!("{:.2e}", spread.mean), spread.deviation.map(|d| format!("{d:.1e}")))
}

fn percent(share: &Spread) -> String {
    let deviation = share.deviation.map(|d| format!("{:.1}", 100.0 * d));
    format!("{} %", with_deviation(format!("{:.1}", 100.0 * share.mean), deviation))
}

/// A mean of counts, without decimals if it is a whole number.
fn rounded(mean: f64) -> String {
    if mean.fract() == 0.0 { format!("{mean}") } else { format!("{mean:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_deviation_where_there_is_one() {
        let spread = |mean, deviation| Spread { mean, deviation };
        assert_eq!(fixed(&spread(3.07241, Some(0.00123))), "3.0724 ± 0.0012");
        assert_eq!(scientific(&spread(0.01731, Some(0.000_48))), "1.73e-2 ± 4.8e-4");
        assert_eq!(scientific(&spread(0.01731, None)), "1.73e-2");
        assert_eq!(percent(&spread(0.9061, Some(0.0023))), "90.6 ± 0.2 %");
        assert_eq!((rounded(2.0), rounded(2.0 / 3.0)), ("2".to_owned(), "0.7".to_owned()));
    }
}
