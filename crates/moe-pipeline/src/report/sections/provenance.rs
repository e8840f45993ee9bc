//! Provenance: sources, hashes and options.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::card::identity;
use crate::portable::{portable, portable_options};
use crate::receipt::{EarlierPass, Measured, RECEIPT_FILE, RUN_FILE, Receipt};
use crate::report::html::{Section, Table};
use crate::report::number::significant;

pub(crate) fn section(receipt: &Receipt) -> Section {
    let mut section = Section::new("provenance", "Provenance").text(&made_by(receipt));
    if let Some(measured) = &receipt.measured {
        section = section.text(&difference(measured));
    }
    for (index, EarlierPass { pass, options, .. }) in receipt.before.iter().enumerate() {
        let number = index + 1;
        section = section
            .text(&format!("Pass {number} was `{pass}`, with these options:"))
            .verbatim(&written(options));
    }
    section
        .table(&hashes(receipt))
        .text(&format!("Options of `{}`, defaults included:", receipt.pass))
        .verbatim(&written(&receipt.options))
}

fn made_by(receipt: &Receipt) -> String {
    format!(
        "Made by {} {}, build {} (`{}`). The function is {}. `{RECEIPT_FILE}` has every number of this page, `{RUN_FILE}` times and \
         memory; `SHA256SUMS` lists this folder's files, and `moe-convert verify` checks them.",
        receipt.tool.name,
        receipt.tool.version,
        receipt.tool.build,
        receipt.passes(),
        identity(&receipt.identity)
    )
}

fn difference(measured: &Measured) -> String {
    let difference = &measured.difference;
    format!(
        "On {} random tokens (seed {}) the largest difference of a logit is {}, where the largest logit is {:.1}.",
        difference.tokens,
        measured.seed,
        significant(Some(difference.max_logit_difference)),
        difference.max_logit
    )
}

/// Options of a pass as JSON.
fn written(options: &Value) -> String {
    serde_json::to_string_pretty(&portable_options(options)).unwrap_or_default()
}

/// The files of the sources, then all others that were read.
fn hashes(receipt: &Receipt) -> Table {
    let mut rows = Vec::new();
    for source in std::iter::once(&receipt.source).chain(&receipt.others) {
        rows.extend(rows_of(&format!("source {}", source.name), &source.sha256));
    }
    rows.extend(rows_of("text, statistics, plan", &receipt.texts));
    Table::words("SHA-256 of what was read", &["file", "of", "SHA-256"], rows)
}

/// A row for each of `hashes`, which are of files of this kind.
fn rows_of(kind: &str, hashes: &BTreeMap<String, String>) -> impl Iterator<Item = Vec<String>> {
    let row = |(file, hash): (&String, &String)| {
        vec![portable(Path::new(file)), kind.to_owned(), hash.clone()]
    };
    hashes.iter().map(row)
}
