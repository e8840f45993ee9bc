//! Provenance: sources, hashes and options.

use std::collections::BTreeMap;
use std::path::Path;

use crate::card::identity;
use crate::portable::{portable, portable_options};
use crate::receipt::{RECEIPT_FILE, RUN_FILE, Receipt};
use crate::report::html::{Section, Table};
use crate::report::number::significant;

pub(crate) fn section(receipt: &Receipt) -> Section {
    let of = |kind: &str, hashes: &BTreeMap<String, String>| -> Vec<Vec<String>> {
        hashes
            .iter()
            .map(|(file, hash)| vec![portable(Path::new(file)), kind.to_owned(), hash.clone()])
            .collect()
    };
    let mut hashes = of(&format!("source {}", receipt.source.name), &receipt.source.sha256);
    hashes.extend(
        receipt
            .others
            .iter()
            .flat_map(|other| of(&format!("source {}", other.name), &other.sha256)),
    );
    hashes.extend(of("text, statistics, plan", &receipt.texts));
    let options =
        serde_json::to_string_pretty(&portable_options(&receipt.options)).unwrap_or_default();
    let mut section = Section::new("provenance", "Provenance").text(&format!(
        "Made by {} {}, build {} (`{}`). The function is {}. `{RECEIPT_FILE}` has every number of this page, `{RUN_FILE}` times and \
         memory; `SHA256SUMS` lists this folder's files, and `moe-convert verify` checks them.",
        receipt.tool.name,
        receipt.tool.version,
        receipt.tool.build,
        receipt.passes(),
        identity(&receipt.identity)
    ));
    if let Some(measured) = &receipt.measured {
        let d = &measured.difference;
        section = section.text(&format!(
            "On {} random tokens (seed {}) the largest difference of a logit is {}, where the largest logit is {:.1}.",
            d.tokens,
            measured.seed,
            significant(Some(d.max_logit_difference)),
            d.max_logit
        ));
    }
    for (index, earlier) in receipt.before.iter().enumerate() {
        let options =
            serde_json::to_string_pretty(&portable_options(&earlier.options)).unwrap_or_default();
        let (number, pass) = (index + 1, earlier.pass);
        section = section
            .text(&format!("Pass {number} was `{pass}`, with these options:"))
            .verbatim(&options);
    }
    section
        .table(&Table::words("SHA-256 of what was read", &["file", "of", "SHA-256"], hashes))
        .text(&format!("Options of `{}`, defaults included:", receipt.pass))
        .verbatim(&options)
}
