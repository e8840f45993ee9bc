//! The model card: README.md of an output.

mod front;
mod made;
mod measured;
mod trained;
mod words;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use moe_checkpoint::json;
use moe_passes::{Effect, Kept};

use crate::markdown::{MarkdownBlock, MarkdownCode, MarkdownText};
use crate::portable::portable_options;
use crate::receipt::{Measured, RECEIPT_FILE, RUN_FILE, Receipt};
use crate::resources::ByteSize;

pub(crate) use front::{Carried, carried};
use made::how_it_was_made;
use measured::trust;
use trained::trained;
pub use words::identity;
use words::millions;

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
    let mut card = front_matter(receipt, carried);
    let _ = writeln!(card, "# {}\n", MarkdownText(name));
    card.push_str(&summary(receipt));
    card.push_str(&notes(receipt, carried));
    card.push_str(&trust(receipt));
    card.push_str(&trained(receipt));
    for earlier in receipt.earlier() {
        card.push_str(&how_it_was_made(&earlier, &format!("What `{}` made first", earlier.pass)));
    }
    card.push_str(&how_it_was_made(receipt, "How it was made"));
    card.push_str("\n| option | keeps the function | because |\n|---|---|---|\n");
    card.extend(receipt.effects.iter().map(effect));
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

fn front_matter(receipt: &Receipt, carried: &Carried) -> String {
    let passes: String = receipt.work().map(|(pass, _)| format!("- {pass}\n")).collect();
    format!(
        "---\n{}library_name: transformers\ntags:\n- moe\n- moe-convert\n{passes}---\n",
        carried.yaml
    )
}

/// The passes and the source in a sentence, and a table of the result's main figures.
fn summary(receipt: &Receipt) -> String {
    let result = &receipt.result;
    let mut summary = format!(
        "Made by moe-convert {version} ({passes}) from {source} ({source_type}).\n\n\
         | | |\n|---|---|\n\
         | architecture | {family} |\n\
         | parameters | {total} in total, {active} active for each token |\n\
         | weights | {bytes} in {tensors} tensors, {copied} of them byte-identical to the source's |\n",
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
    let _ = writeln!(summary, "| function | {} |", MarkdownText(&identity(&receipt.identity)));
    summary.extend(receipt.measured.as_ref().map(difference));
    summary
}

/// The row of the table on the distance between the result's logits and the source's.
fn difference(measured: &Measured) -> String {
    let d = &measured.difference;
    format!(
        "| measured | max \\|Δlogit\\| {:.2e} (largest logit {:.1}), KL {:.2e} nats, top-1 agreement {:.1} %, on {} random tokens |\n",
        d.max_logit_difference,
        d.max_logit,
        d.kl,
        100.0 * d.top1_agreement,
        d.tokens,
    )
}

fn notes(receipt: &Receipt, carried: &Carried) -> String {
    let mut notes = String::new();
    for warning in &receipt.warnings {
        let _ = writeln!(notes, "\n> **Note:** {}.", MarkdownText(warning));
    }
    for key in &carried.left_out {
        let _ = writeln!(
            notes,
            "\n> **Note:** the source's card has a `{key}` that is not a line of text or a list: read it there."
        );
    }
    notes
}

/// The row of the table of options.
fn effect(effect: &Effect) -> String {
    let kept = match effect.kept {
        Kept::Exactly => "yes",
        Kept::Approximately => "approximately",
        Kept::No => "no",
    };
    format!("| {} | {kept} | {} |\n", MarkdownText(&effect.option), MarkdownText(&effect.why))
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
