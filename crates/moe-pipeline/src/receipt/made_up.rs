//! Made-up receipts for tests.

use std::collections::BTreeMap;

use moe_passes::{
    DecidedBy, Details, Identity, LayerRecord, LayerTrust, PassInfo, RouterEdit, RouterRows,
};

use super::{FORMAT, Receipt, ResultRecord, SourceRecord, Tool};
use crate::writing::WritingOptions;

/// A router that keeps `kept` of the source's `of` rows.
pub(crate) fn rows(kept: usize, of: usize) -> RouterEdit {
    RouterEdit { rows: RouterRows::Kept { kept, of, never_selected: 0 }, repeated: 1 }
}

/// A checkpoint called `name`.
pub(crate) fn source(name: &str) -> SourceRecord {
    SourceRecord {
        name: name.to_owned(),
        model_type: "a_family".to_owned(),
        total_parameters: 4_000_000,
        active_parameters: 1_000_000,
        bytes: 8_000_000,
        sha256: BTreeMap::from([("config.json".to_owned(), "0123abcd".to_owned())]),
    }
}

/// A receipt of pruning, with these details for its layers.
pub(crate) fn receipt(layers: Vec<LayerTrust>) -> Receipt {
    let record = |(layer, trust): (usize, LayerTrust)| LayerRecord {
        layer,
        router: Some(rows(trust.experts[1], trust.experts[0])),
        details: Some(Details::of(trust)),
        ..LayerRecord::default()
    };
    Receipt {
        format: FORMAT,
        tool: Tool::this(),
        before: Vec::new(),
        pass: PassInfo::named("prune").unwrap(),
        options: serde_json::json!({ "criterion": "reap", "data": [] }),
        source: source("source"),
        others: Vec::new(),
        texts: BTreeMap::from([("text.txt".to_owned(), "4567".to_owned())]),
        observed: BTreeMap::new(),
        written: BTreeMap::new(),
        dtype: "f32".to_owned(),
        device: "cpu".to_owned(),
        writing: WritingOptions::default(),
        router_dtype: None,
        result: ResultRecord {
            model_type: "a_family".to_owned(),
            parameters: moe_model::Parameters::default(),
            total_parameters: 2_000_000,
            active_parameters: 1_000_000,
            tensors: 182,
            tensors_copied: 178,
            bytes: 4_000_000,
        },
        identity: Identity::Changed { reason: "experts go".to_owned() },
        effects: Vec::new(),
        measured: None,
        held_out: None,
        training: None,
        decided: Some(DecidedBy::Sequence),
        pool: None,
        layers: layers.into_iter().enumerate().map(record).collect(),
        warnings: Vec::new(),
        caveats: Vec::new(),
        engines: Vec::new(),
        left_out: BTreeMap::new(),
        files: BTreeMap::new(),
    }
}
