//! The model card: README.md of an output.

mod front;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use moe_checkpoint::{counted, json};
use moe_forward::DomainReport;
use moe_passes::{Identity, Kept, LayerTrust, ReportKind};

use crate::file_names::REPORT_FILE;
use crate::markdown::{MarkdownBlock, MarkdownCode, MarkdownText};
use crate::portable::portable_options;
use crate::receipt::{RECEIPT_FILE, RUN_FILE, Receipt};
use crate::resources::ByteSize;
use crate::train::Settings;
use crate::trust::HeldOutReport;

pub(crate) use front::{Carried, carried};

/// The name of the checkpoint `output` in its card.
pub(crate) fn name_of(output: &Path) -> Cow<'_, str> {
    output.file_name().unwrap_or_default().to_string_lossy()
}

/// The card of a copy, which differs only in the name.
pub(crate) fn renamed(card: &str, from: &str, to: &str) -> String {
    let [from, to] = [from, to].map(|name| format!("\n# {}\n", MarkdownText(name)));
    card.replacen(&from, &to, 1)
}

/// The card as Markdown, with the fields `carried` over from the source's card.
pub(crate) fn render(receipt: &Receipt, name: &str, carried: &Carried) -> String {
    let result = &receipt.result;
    let tags = receipt.work().map(|(pass, _)| pass);
    let mut card = format!(
        "---\n{yaml}library_name: transformers\ntags:\n- moe\n- moe-convert\n{tags}---\n# {name}\n\n\
         Made by moe-convert {version} ({passes}) from {source} ({source_type}).\n\n\
         | | |\n|---|---|\n\
         | architecture | {family} |\n\
         | parameters | {total} in total, {active} active for each token |\n\
         | weights | {bytes} in {tensors} tensors, {copied} of them byte-identical to the source's |\n",
        tags = tags.map(|pass| format!("- {pass}\n")).collect::<String>(),
        yaml = carried.yaml,
        name = MarkdownText(name),
        passes = MarkdownCode(&receipt.passes()),
        version = receipt.tool.version,
        source = MarkdownCode(&receipt.source.name),
        source_type = MarkdownText(&receipt.source.model_type),
        family = MarkdownText(&result.model_type),
        total = millions(result.total_parameters),
        active = millions(result.active_parameters),
        bytes = ByteSize(result.bytes),
        tensors = result.tensors,
        copied = result.tensors_copied,
    );
    let _ = writeln!(card, "| function | {} |", MarkdownText(&identity(&receipt.identity)));
    if let Some(measured) = &receipt.measured {
        let d = &measured.difference;
        let _ = writeln!(
            card,
            "| measured | max \\|Δlogit\\| {:.2e} (largest logit {:.1}), KL {:.2e} nats, top-1 agreement {:.1} %, on {} random tokens |",
            d.max_logit_difference,
            d.max_logit,
            d.kl,
            100.0 * d.top1_agreement,
            d.tokens,
        );
    }
    for warning in &receipt.warnings {
        let _ = writeln!(card, "\n> **Note:** {}.", MarkdownText(warning));
    }
    for key in &carried.left_out {
        let _ = writeln!(
            card,
            "\n> **Note:** the source's card has a `{key}` that is not a line of text or a list: read it there."
        );
    }
    card.push_str(&trust(receipt));
    card.push_str(&trained(receipt));
    for earlier in receipt.earlier() {
        card.push_str(&how_it_was_made(&earlier, &format!("What `{}` made first", earlier.pass)));
    }
    card.push_str(&how_it_was_made(receipt, "How it was made"));
    card.push_str("\n| option | keeps the function | because |\n|---|---|---|\n");
    for effect in &receipt.effects {
        let kept = match effect.kept {
            Kept::Exactly => "yes",
            Kept::Approximately => "approximately",
            Kept::No => "no",
        };
        let _ = writeln!(
            card,
            "| {} | {kept} | {} |",
            MarkdownText(&effect.option),
            MarkdownText(&effect.why)
        );
    }
    for (pass, options) in receipt.work() {
        let options =
            MarkdownBlock { language: "json", text: &json::to_pretty(&portable_options(options)) };
        let _ = write!(card, "\nOptions of `{pass}`:\n\n{options}");
    }
    let _ = write!(
        card,
        "\n`{RECEIPT_FILE}` has the record of every layer and the hashes of the source, `{RUN_FILE}` times and memory.\n\
         Check this folder with `moe-convert verify .` or `sha256sum -c SHA256SUMS`.\n"
    );
    card
}

fn how_it_was_made(receipt: &Receipt, heading: &str) -> String {
    if let Some(made) = receipt.distilled() {
        return format!(
            "\n## {heading}\n\n{}; `{RECEIPT_FILE}` says of what.\n",
            MarkdownText(&made)
        );
    }
    let Some((layer, router)) = receipt.first_converted() else { return String::new() };
    let router = router.to_string();
    if receipt.decided.is_some() {
        let experts: Vec<_> =
            receipt.experts().iter().map(|line| MarkdownText(line).to_string()).collect();
        let (experts, router) = (experts.join("\n"), MarkdownText(&router));
        return format!("\n## {heading}\n\nExperts: {experts}.\n\nRouter: {router}.\n");
    }
    let mut text = format!("\n## {heading}\n\n");
    let converted: Vec<usize> =
        receipt.layers.iter().filter(|l| l.router.is_some()).map(|l| l.layer).collect();
    if converted.len() < receipt.layers.len() {
        let _ = writeln!(
            text,
            "Layers with experts: {converted:?}; the others are the source's dense ones.\n"
        );
    }
    let _ =
        writeln!(text, "Each of {} layers has {} experts:\n", converted.len(), layer.experts.len());
    for kind in layer.experts_by_kind() {
        let _ = writeln!(text, "- {}", MarkdownText(&kind));
    }
    if let Some(shared) = layer.shared_sentence() {
        let _ = writeln!(text, "- shared expert: {}", MarkdownText(&shared));
    }
    let _ = writeln!(text, "\nRouter: {}.", MarkdownText(&router));
    if !receipt.others.is_empty() {
        let names: Vec<_> =
            receipt.others.iter().map(|source| MarkdownCode(&source.name).to_string()).collect();
        let _ = writeln!(text, "\nExperts come from {}.", names.join(", "));
    }
    text
}

/// How the model was trained, and the effect on held-out text.
fn trained(receipt: &Receipt) -> String {
    let Some(training) = &receipt.training else { return String::new() };
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
    let Some((before, after)) = training.before.as_ref().zip(training.after.as_ref()) else {
        return text;
    };
    // With a teacher, its KL is the training's objective.
    let compared = after.all.against.is_some();
    let (names, rule) = if compared { (" KL before | after |", "--:|--:|") } else { ("", "") };
    let _ = writeln!(text, "\n| held-out text | loss before | after |{names}\n|---|--:|--:|{rule}");
    for (before, after) in before.rows().zip(after.rows()) {
        let _ = write!(
            text,
            "| {} | {:.4} | {:.4} |",
            MarkdownText(&after.label),
            before.loss,
            after.loss
        );
        if let Some((before, after)) = before.kl().zip(after.kl()) {
            let _ = write!(text, " {before:.4} | {after:.4} |");
        }
        text.push('\n');
    }
    text
}

/// The cost on held-out text, and how far decisions can be trusted, in short.
fn trust(receipt: &Receipt) -> String {
    if receipt.decided.is_none() && receipt.held_out.is_none() {
        return String::new();
    }
    let mut text = String::from("\n## How far it can be trusted\n\n");
    if let Some(held_out) = &receipt.held_out {
        text.push_str(&held_out_table(held_out, receipt.baseline_name()));
    } else {
        text.push_str("Nothing was measured on held-out text (`--held-out`).\n");
    }
    if let Some(why) = receipt.no_figures() {
        let _ = writeln!(text, "\nThere are {}.", MarkdownText(why));
    }
    let decided = receipt.details::<LayerTrust>().into_iter();
    if let Some((layer, worst)) =
        decided.min_by(|a, b| a.1.retained_mass.total_cmp(&b.1.retained_mass))
    {
        let domain = worst.worst_domain.as_ref().map_or(String::new(), |(label, share)| {
            format!(", {:.1} % of the domain {}", 100.0 * share, MarkdownCode(label))
        });
        let keeps = match (worst.retained_mass, receipt.pass.report) {
            (1.0.., ReportKind::Experts { none_lost }) => {
                format!("No layer loses saliency mass: {none_lost}.")
            }
            (share, _) => format!(
                "The layer that keeps least, {layer}, keeps {:.1} % of its saliency mass{domain}.",
                100.0 * share
            ),
        };
        let _ = writeln!(
            text,
            "\n{keeps} `{REPORT_FILE}` shows every layer: loads, saliencies, errors, what became of each expert, and how \
             stable the choice is."
        );
    }
    text
}

fn held_out_table(held_out: &HeldOutReport, baseline: &str) -> String {
    let figures = |domain: Option<&DomainReport>| {
        let both = domain.and_then(|d| Some((d.loss_change()?, d.against.as_ref()?)));
        match both.filter(|(change, _)| change.is_finite()) {
            Some((change, a)) => {
                format!("{change:+.4} | {:.4} | {:.1} %", a.kl, 100.0 * a.top1_agreement)
            }
            None => "– | – | –".to_owned(),
        }
    };
    let mut text = format!(
        "| held-out text | Δ loss | KL | top-1 agreement | {}: Δ loss | KL | top-1 agreement |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
        MarkdownText(baseline)
    );
    for (domain, beside) in held_out.rows() {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            MarkdownText(&domain.label),
            figures(Some(domain)),
            figures(beside)
        );
    }
    text
}

/// The promise that `identity` makes, in words.
pub fn identity(identity: &Identity) -> String {
    match identity {
        Identity::Exact => "the same as the source's, exactly".to_owned(),
        Identity::Approximate { reason } => format!("the source's, approximately: {reason}"),
        Identity::Changed { reason } => format!("changed: {reason}"),
    }
}

fn millions(count: usize) -> String {
    match count {
        0..1_000_000 => format!("{:.1} K", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_its_own_name() {
        let card = "---\ntags:\n- moe\n---\n# first\n\nMade of `first`.\n\n# first\n";
        assert_eq!(
            renamed(card, "first", "second"),
            "---\ntags:\n- moe\n---\n# second\n\nMade of `first`.\n\n# first\n"
        );
    }
}
