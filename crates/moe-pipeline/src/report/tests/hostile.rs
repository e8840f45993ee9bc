//! Tests of receipts whose numbers were changed: they are refused, or make sound pages.

use moe_passes::LayerTrust;
use serde_json::{Value, json};

use super::{distilled, full, layer, pages, quantized, trained};
use crate::receipt::made_up::receipt;
use crate::receipt::{RECEIPT_FILE, Receipt};

/// Receipts of every kind of page.
fn receipts() -> [Value; 5] {
    let merged =
        LayerTrust { experts: [6, 2], clusters: vec![vec![0, 3, 5], vec![2]], ..layer(6, 0) };
    let small = Receipt { layers: receipt(vec![layer(4, 0)]).layers, ..full() };
    [small, receipt(vec![merged]), quantized::made(), distilled::distilled(), trained::trained()]
        .map(|receipt| serde_json::to_value(receipt).unwrap())
}

/// Pointers to the numbers in `value`, which lies at `path`, but to those that a user gave.
fn numbers(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(index, value)| numbers(value, format!("{path}/{index}"), found)),
        Value::Object(keys) => {
            keys.iter().for_each(|(key, value)| numbers(value, format!("{path}/{key}"), found))
        }
        _ => {}
    }
}

/// The pages of `receipt`, or why it is refused.
fn pages_of(receipt: &Value) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(RECEIPT_FILE), receipt.to_string()).unwrap();
    let receipt = Receipt::read(dir.path()).map_err(|error| error.to_string())?;
    Ok(pages(&receipt).into_iter().map(|(_, page)| page).collect())
}

#[test]
fn any_number_makes_a_sound_page_or_is_refused() {
    let hostile = [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1u64 << 31),
        json!(1u64 << 53),
        json!(1u64 << 63),
        json!(u64::MAX),
        json!(1e308),
        json!(-1e308),
        json!(1e9),
    ];
    for receipt in receipts() {
        pages_of(&receipt).unwrap();
        let mut found = Vec::new();
        numbers(&receipt, String::new(), &mut found);
        for (path, number) in found.iter().flat_map(|path| hostile.iter().map(move |n| (path, n))) {
            let mut changed = receipt.clone();
            *changed.pointer_mut(path).unwrap() = number.clone();
            let Ok(page) = pages_of(&changed) else { continue };
            let mut words = page.split(|c: char| !c.is_alphabetic());
            assert!(!words.any(|word| ["inf", "NaN"].contains(&word)), "{path}: {number}");
            assert!(page.len() < 1 << 20, "{path}: {number}");
        }
    }
}

#[test]
fn figures_that_contradict_each_other_are_refused_by_their_key() {
    let [small, _, quantized, distilled, trained] = receipts();
    for (receipt, path, number, said) in [
        (
            &small,
            "/layers/0/details/experts/0",
            json!(1_000_000_000),
            "layers[0].details.load.counts has 4",
        ),
        (
            &small,
            "/layers/0/details/experts/0",
            json!(1u64 << 63),
            "layers[0].details.experts[0]: 9223372036854775808",
        ),
        (
            &small,
            "/layers/0/details/experts/1",
            json!(3),
            "layers[0].details.clusters has 2 values",
        ),
        (&small, "/layers/0/details/clusters/0/0", json!(4), "details.clusters[0] names expert 4"),
        (&small, "/layers/0/details/saliency", json!([1.0]), "details.saliency has 1 values"),
        (&small, "/layers/0/details/lost_choices", json!(1e308), "details.lost_choices is 1e308"),
        (&small, "/layers/0/details/load/overloaded", json!([u64::MAX, 0]), "load.overloaded[0]"),
        (&small, "/layers/0/details/load/dead", json!(5), "load.dead is 5, which is more than"),
        (&small, "/layers/0/router/of", json!(5), "layers[0].router.of is 5"),
        (
            &small,
            "/held_out/result/all/against/top1_agreement",
            json!(1e308),
            "held_out.result.all.against.top1_agreement",
        ),
        (
            &small,
            "/held_out/result/all/tokens",
            json!(-1),
            "held_out.result.all.tokens is -1, where a whole number",
        ),
        (
            &small,
            "/result/tensors_copied",
            json!(183),
            "result.tensors_copied is 183, which is more than tensors",
        ),
        (
            &quantized,
            "/layers/0/details/experts/2/used",
            json!(u64::MAX),
            "layers[0].details.experts[2].used",
        ),
        (
            &quantized,
            "/layers/0/details/experts/2/used",
            json!(195),
            "layers[0].details.experts[2].used is 195",
        ),
        (
            &quantized,
            "/layers/0/details/experts/2/used",
            json!(-7),
            "layers[0].details.experts[2].used is -7",
        ),
        (&distilled, "/layers/1/details/zeros", json!(521), "layers[1].details.zeros is 521"),
        (&trained, "/training/written", json!(41), "training.written is 41"),
        (
            &trained,
            "/training/load/0/last/counts/0",
            json!(0.5),
            "training.load[0].last.counts[0] is 0.5",
        ),
    ] {
        let mut changed = receipt.clone();
        *changed.pointer_mut(path).unwrap() = number;
        let refused = pages_of(&changed).unwrap_err();
        assert!(refused.contains(said) && refused.contains(RECEIPT_FILE), "{path}: {refused}");
    }
}
