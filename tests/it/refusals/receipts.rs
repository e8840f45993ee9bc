//! Tests that receipts, manifests, plans and statistics that no run has written are refused.

use serde_json::{Map, Value, json};

use super::headers::shard;
use super::{accepted, contents_refused};
use crate::common::{Sandbox, assert_none};

const MODEL: &str = "golden/families/qwen3_moe/base/model";

#[test]
fn hostile_receipts_are_refused_in_bounds() {
    let deep = "[".repeat(1_000_000);
    let resume = "upcycle model -o out --experts 2 --top-k 1 --resume";
    contents_refused("out/moe-convert.json", resume, &[(deep.as_bytes(), &[]), (b"\0", &[])]);
}

#[test]
fn hostile_manifests_are_refused_in_bounds() {
    let zeros = "0".repeat(64);
    let upwards = format!("{zeros}  ../outside\n");
    let absolute = format!("{zeros}  /etc/passwd\n");
    let twice = format!("{zeros}  a\n{zeros}  a\n");
    let large = "\0".repeat(20_000_000);
    let cases: &[(&[u8], &[&str])] = &[
        (upwards.as_bytes(), &["line 1"]),
        (absolute.as_bytes(), &["line 1"]),
        (twice.as_bytes(), &["line 2"]),
        (large.as_bytes(), &["more than"]),
    ];
    contents_refused("model/SHA256SUMS", "verify model", cases);
}

#[test]
fn hostile_plans_are_refused_in_bounds() {
    let deep = "[".repeat(1_000_000);
    let cases: &[(&[u8], &[&str])] = &[
        (deep.as_bytes(), &[]),
        (br#"{"layers": {"0": {"experts": 4, "keep": [0, 18446744073709551615]}}}"#, &[]),
        (
            br#"{"layers": {"0": {"experts": 4, "keep": [0, -1]}}}"#,
            &["layers.0.keep[1] is -1, where"],
        ),
        (
            br#"{"layers": {"0": {"experts": 7, "keep": [0, 1, 2], "saliency": [1.0]}}}"#,
            &["1 saliencies of layer 0"],
        ),
        (
            br#"{"layers": {"0": {"experts": 4, "keep": [0, 1], "keep": [0, 1, 2]}}}"#,
            &["layers.0.keep is given twice", "correct it"],
        ),
        (br#"{"layers": {"0": {}, "0": {}}}"#, &["layers.0 is given twice"]),
        (br#"{"method": "mine"}"#, &["layers is missing"]),
        (br#"{"layers": {"0": {"experts": 4}}}"#, &["layers.0.keep is missing"]),
        (b"[]", &[]),
    ];
    contents_refused("plan.json", &format!("prune {MODEL} -o out --plan plan.json"), cases);
}

/// Statistics of [`MODEL`] as `observe` wrote them: a file of tensors, one of which is a text that
/// says what they are about.
struct Statistics {
    bytes: Vec<u8>,
    header: Map<String, Value>,
    /// Where the data begin.
    data: usize,
}

impl Statistics {
    /// Observes the model, and leaves the file `stats` in the sandbox.
    fn observed(sandbox: &Sandbox) -> Self {
        sandbox.write("ids.jsonl", r#"{"input_ids": [5, 6, 7, 8]}"#);
        sandbox.run(&format!("observe {MODEL} -o stats --data ids.jsonl")).succeeds();
        let bytes = sandbox.read("stats");
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..data]).unwrap();
        Self { bytes, header, data }
    }

    fn about(&self) -> Value {
        let length = self.header["about"]["shape"][0].as_u64().unwrap() as usize;
        serde_json::from_slice(&self.bytes[self.data..self.data + length]).unwrap()
    }

    /// Statistics about `about`, whose tensors are zeros, and have as many rows as `rows` makes of
    /// theirs.
    fn forged(&self, about: &Value, rows: fn(u64) -> u64) -> Vec<u8> {
        let text = about.to_string();
        let mut end = text.len() as u64;
        let mut forged = Map::new();
        let text_entry = json!({"dtype": "U8", "shape": [end], "data_offsets": [0, end]});
        forged.insert("about".to_owned(), text_entry);
        let tensors = self.header.iter().filter(|(name, _)| name.starts_with("layers."));
        for (name, entry) in tensors {
            let mut shape: Vec<u64> = serde_json::from_value(entry["shape"].clone()).unwrap();
            shape.iter_mut().take(1).for_each(|first| *first = rows(*first));
            let start = end;
            end += shape.iter().product::<u64>() * 8;
            let entry = json!({"dtype": "F64", "shape": shape, "data_offsets": [start, end]});
            forged.insert(name.clone(), entry);
        }
        let header = serde_json::to_string(&forged).unwrap();
        let mut file = shard(&header, end as usize);
        file[8 + header.len()..][..text.len()].copy_from_slice(text.as_bytes());
        file
    }

    /// These statistics with `value` as the first value of `tensor`.
    fn with_first(&self, tensor: &str, value: f64) -> Vec<u8> {
        let start = self.header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        let mut file = self.bytes.clone();
        file[self.data + start..][..8].copy_from_slice(&value.to_le_bytes());
        file
    }
}

/// Commands that read the statistics `stats`.
const READ_STATISTICS: [&str; 2] = [
    "prune golden/families/qwen3_moe/base/model -o out --experts 4 --stats stats",
    "observe golden/families/qwen3_moe/base/model -o sum --add stats",
];

/// Tests statistics with this model's fingerprint but other shapes.
#[test]
fn forged_statistics_are_refused_in_bounds() {
    let sandbox = Sandbox::new();
    let stats = Statistics::observed(&sandbox);
    let [mut no_group, mut many, mut negative] = [(); 3].map(|()| stats.about());
    no_group["groups"] = json!([]);
    many["groups"][0]["tokens"] = json!(u64::MAX);
    negative["groups"][0]["weight"] = json!(-1);
    let mut problems = Vec::new();
    for (name, file, words) in [
        // Statistics of no tokens and no experts need no bytes, since every tensor is empty.
        ("no group", stats.forged(&no_group, |_| 0), "no group"),
        ("tokens past 2^53", stats.forged(&many, |rows| rows), "2^53"),
        ("a negative weight", stats.forged(&negative, |rows| rows), "weight"),
    ] {
        sandbox.write("stats", file);
        for line in READ_STATISTICS {
            let accepted = accepted(&sandbox, line, &["stats", words]);
            problems.extend(accepted.map(|problem| format!("{name}: {problem}")));
        }
    }
    assert_none(&problems);
}

#[test]
fn negative_sums_in_statistics_are_refused_in_bounds() {
    let sandbox = Sandbox::new();
    let stats = Statistics::observed(&sandbox);
    sandbox.write("stats", stats.with_first("layers.0.tokens", -1e30));
    let words = ["stats", "layers.0.tokens", "is negative"];
    let problem = accepted(&sandbox, READ_STATISTICS[0], &words);
    assert_none(problem.as_slice());
}
