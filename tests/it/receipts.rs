//! Tests receipts as an interface: pages rendered from them, their schema, and receipts of earlier
//! builds.

use moe_checkpoint::sha256_file;
use serde_json::Value;

use crate::common::{Sandbox, assert_none, root};

const PRUNE: &str = "prune m -o out --experts 4 --criterion aimer";

/// A sandbox with `out`, the result of pruning `m`.
fn pruned() -> Sandbox {
    let sandbox = Sandbox::with_model_and_text();
    sandbox.run(PRUNE).succeeds();
    sandbox
}

/// Applies `edit` to the receipt of `out`, and updates its hash in the list.
fn edit_receipt(sandbox: &Sandbox, edit: impl FnOnce(&mut Value)) {
    let path = sandbox.path("out/moe-convert.json");
    let before = sha256_file(&path).unwrap();
    let mut receipt = sandbox.json("out/moe-convert.json");
    edit(&mut receipt);
    sandbox.write("out/moe-convert.json", moe_checkpoint::json::to_pretty(&receipt));
    let listed = String::from_utf8(sandbox.read("out/SHA256SUMS")).unwrap();
    sandbox.write("out/SHA256SUMS", listed.replace(&before, &sha256_file(&path).unwrap()));
}

#[test]
fn reports_are_rendered_as_the_run_wrote_them() {
    let sandbox = pruned();
    let page = String::from_utf8(sandbox.read("out/report.html")).unwrap();
    let before = sandbox.read("out/SHA256SUMS");
    assert_eq!(sandbox.run("report out").succeeds().stdout, page);
    assert_eq!(sandbox.run("report out --json").succeeds().json()["html"], page);
    let written = sandbox.run("report out -o pages --json").succeeds().json();
    assert_eq!(written["pages"], serde_json::json!(["pages/report.html"]));
    assert_eq!(sandbox.read("pages/report.html"), page.as_bytes());
    sandbox.run("report out -o pages").exits(2).says(&["report.html", "--overwrite"]);
    sandbox.run("report out -o pages --overwrite").succeeds();
    for kept in ["mine".to_owned(), page.replace("<h1>", "<h1>My ")] {
        sandbox.write("pages/report.html", &kept);
        let refused = sandbox.run("report out -o pages --overwrite").exits(2);
        refused.says(&["pages/report.html", "only a report as moe-convert wrote it"]);
        assert_eq!(sandbox.read("pages/report.html"), kept.as_bytes());
    }
    // The hashes define the result, so a page can't be written into it.
    sandbox.run("report out -o out --overwrite").exits(2).says(&["folder of a model or a result"]);
    for inside in ["m", "m/new", "out/new/deep"] {
        let refused = sandbox.run(&format!("report out -o {inside}")).exits(2);
        refused.says(&["folder of a model or a result"]);
    }
    assert!(!sandbox.path("out/new").exists() && !sandbox.path("m/new").exists());
    assert_eq!(sandbox.read("out/SHA256SUMS"), before);
    sandbox.run("verify out").succeeds();
}

#[test]
fn a_receipt_that_is_not_the_listed_one_is_noted() {
    const NOTE: &str = "moe-convert.json isn't the one that SHA256SUMS lists";
    let sandbox = pruned();
    sandbox.shell("cp -r out edited; cp -r out bare; cp -r out led; rm bare/SHA256SUMS").succeeds();
    let receipt = String::from_utf8(sandbox.read("out/moe-convert.json")).unwrap();
    sandbox.write("edited/moe-convert.json", receipt.replace("\"aimer\"", "\"reap\""));
    assert!(!sandbox.run("report out").succeeds().stdout.contains(NOTE));
    for dir in ["edited", "bare"] {
        let outcome = sandbox.run(&format!("report {dir}")).succeeds();
        assert!(outcome.stdout.contains("isn&#39;t the one that SHA256SUMS lists"), "{outcome}");
        outcome.says(&[NOTE]);
    }
    sandbox.shell("mv led/moe-convert.json away.json; ln -s ../away.json led/moe-convert.json");
    sandbox.run("report led").exits(1).says(&["led/moe-convert.json"]);
}

#[test]
fn each_pass_of_a_run_has_a_page() {
    let sandbox = Sandbox::with_model_and_text();
    let step = "[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"out\"\n";
    let passes = "[[step.pass]]\nrun = \"prune\"\nexperts = 4\ncriterion = \"aimer\"\n\
                  [[step.pass]]\nrun = \"quantize\"\nscheme = \"fp8-block\"\n";
    sandbox.write("r.toml", format!("{step}{passes}"));
    sandbox.run("run r.toml").succeeds();
    let one = sandbox.run("report out").succeeds().says(&["1 page of the earlier passes"]);
    assert_eq!(one.stdout.as_bytes(), sandbox.read("out/report.html"));
    sandbox.run("report out -o pages").succeeds();
    for name in ["report.html", "report-1-prune.html"] {
        let [ours, theirs] = ["pages", "out"].map(|dir| sandbox.read(&format!("{dir}/{name}")));
        assert!(ours == theirs, "{name}");
    }
}

#[test]
fn what_has_no_report_says_why() {
    let sandbox = pruned();
    sandbox.run("upcycle golden/models/dense -o moe --experts 2 --top-k 1").succeeds();
    let receipt = sandbox.read("out/moe-convert.json");
    sandbox.write("cut/moe-convert.json", &receipt[..receipt.len() / 2]);
    sandbox.write("another/moe-convert.json", "{\"tool\": {\"name\": \"x\", \"version\": \"1\"}}");
    sandbox.write("words/moe-convert.json", "words");
    let receipt = String::from_utf8(receipt).unwrap();
    let doubled = receipt.replacen("\"experts\": 4,", "\"experts\": 4, \"experts\": 6,", 1);
    sandbox.write("doubled/moe-convert.json", doubled);
    let cases = [
        ("report moe", 2, ["has no report", "moe/moe-convert.json"]),
        ("report m", 1, ["there is no receipt", "m/moe-convert.json"]),
        ("report cut", 1, ["cut/moe-convert.json", "cut off"]),
        ("report another", 1, ["not a receipt of moe-convert", "another/moe-convert.json"]),
        ("report words", 1, ["words/moe-convert.json", "not the JSON"]),
        ("report doubled", 1, ["doubled/moe-convert.json", "options.experts is given twice"]),
        ("report out --overwrite", 2, ["--output", "required"]),
    ];
    let refused =
        cases.into_iter().filter_map(|(line, code, said)| sandbox.refuses(line, code, &said));
    assert_none(&refused.collect::<Vec<_>>());
}

#[test]
fn receipts_of_earlier_formats_are_known_and_not_compared() {
    let sandbox = pruned();
    edit_receipt(&sandbox, |receipt| {
        receipt.as_object_mut().unwrap().remove("format");
        receipt["layers"][0]["router"] = "4 of 8 rows".into();
    });
    let format = ["of an earlier format"];
    sandbox.run("verify out").succeeds();
    sandbox.run("report out").exits(1).says(&["an earlier format (0", "out/moe-convert.json"]);
    sandbox.run(&format!("{PRUNE} --resume")).exits(2).says(&["has a receipt"]).says(&format);
    let on_text = "eval out --data ids.jsonl";
    sandbox.run(on_text).succeeds().says(&["its receipt is of another format"]);
    sandbox.run(&format!("{PRUNE} --overwrite")).succeeds();
    assert_eq!(sandbox.json("out/moe-convert.json")["format"], 1);
}

#[test]
fn the_schema_that_is_printed_is_the_one_that_is_shipped() {
    let printed = Sandbox::new().run("schema receipt").succeeds().stdout;
    assert!(std::fs::read_to_string(root().join("docs/receipt.schema.json")).unwrap() == printed);
}
