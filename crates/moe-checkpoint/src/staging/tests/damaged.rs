//! Tests that what a crash has left of a result is replaced, and what somebody has written is not.

use super::*;

const WEIGHTS: &str = "model.safetensors";

/// A file of weights with one tensor of 40 bytes.
fn weights(name: &str) -> Vec<u8> {
    let header =
        format!("{{\"{name}\":{{\"dtype\":\"U8\",\"shape\":[40],\"data_offsets\":[0,40]}}}}");
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 40]].concat()
}

/// A receipt of a result with one tensor of `bytes`.
fn receipt(bytes: u64) -> String {
    format!(
        "{{\n  \"format\": 1,\n  \"tool\": {{\n    \"name\": \"moe-convert\",\n    \"version\": \"0\"\n  }},\n  \
         \"result\": {{\"tensors\": 1, \"bytes\": {bytes}}}\n}}\n"
    )
}

/// Writes a result of `files`, besides its card, to `target`.
fn write(target: &Path, files: &[(&str, &[u8])]) {
    let mut output = OutputDir::create(target, OPTIONS).unwrap();
    for (name, bytes) in files {
        output.write(name, bytes).unwrap();
    }
    output.write(CARD_FILE, b"words").unwrap();
    output.commit().unwrap();
}

#[test]
fn only_what_is_left_of_a_result_is_damage() {
    let ours = weights("a");
    let longer = [weights("other"), vec![7; 10]].concat();
    let index = "{\"weight_map\": {\"a\": \"model.safetensors\", \"b\": \"model2.safetensors\"}}";
    let cut = |name: &str| weights(name)[..ours.len() - 5].to_vec();
    let (whole, of_other_bytes) = (receipt(40), receipt(50));
    type Case<'a> = (&'a str, &'a str, Option<&'a str>, Vec<u8>, bool);
    let cases: [Case<'_>; 10] = [
        ("cut weights", &whole, None, cut("a"), true),
        ("nothing", &whole, None, vec![], true),
        ("as many tensors, of other bytes", &of_other_bytes, None, cut("a"), false),
        ("other weights, whole", &whole, None, longer, false),
        ("cut weights of several files", &whole, Some(index), cut("a"), true),
        ("cut weights of other names", &whole, Some(index), cut("c"), false),
        ("cut weights of another file", &whole, Some(index), cut("b"), false),
        ("other bytes", &whole, None, b"words".to_vec(), false),
        ("a receipt that says nothing", "{\"a\": 1}", None, cut("a"), false),
        ("a receipt that is cut, too", &whole[..50], None, cut("a"), true),
    ];
    for (what, receipt, index, left, is_damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let index = index.map(|index| (crate::INDEX_FILE, index.as_bytes()));
        let mut files = vec![(WEIGHTS, &ours[..]), (RECEIPT_FILE, receipt.as_bytes())];
        files.extend(index);
        write(&target, &files);
        fs::write(target.join(WEIGHTS), left).unwrap();
        let checked = OutputDir::check(&target, OVERWRITE);
        assert_eq!(checked.is_ok(), is_damage, "{what}: {checked:?}");
    }
}

/// The same bytes in another file count as someone's.
#[test]
fn weights_cut_anywhere_are_damage() {
    let ours = weights("a");
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let receipt = receipt(40);
    write(&target, &[(WEIGHTS, &ours), ("vocab.bin", &ours), (RECEIPT_FILE, receipt.as_bytes())]);
    for bytes in 0..ours.len() {
        fs::write(target.join(WEIGHTS), &ours[..bytes]).unwrap();
        OutputDir::check(&target, OVERWRITE).unwrap_or_else(|e| panic!("{bytes}: {e}"));
    }
    for mine in ["mine", "mine\n", "I", "hello"] {
        fs::write(target.join(WEIGHTS), mine).unwrap();
        assert!(OutputDir::check(&target, OVERWRITE).is_err(), "{mine}");
    }
    fs::write(target.join(WEIGHTS), &ours).unwrap();
    fs::write(target.join("vocab.bin"), &ours[..4]).unwrap();
    assert!(OutputDir::check(&target, OVERWRITE).is_err());
}

#[test]
fn a_receipt_that_was_cut_is_damage_and_one_of_someones_own_is_not() {
    let whole = receipt(40);
    // Earlier builds wrote no format.
    let earlier = whole.replace("  \"format\": 1,\n", "");
    for (left, is_damage) in [
        (&whole[..10], true),
        (&whole[..60], true),
        (&earlier[..10], true),
        (&earlier[..60], true),
        ("{\"mine\": [1,", false),
        ("words", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        finish_saying(&target, OPTIONS, &whole).unwrap();
        fs::write(target.join(RECEIPT_FILE), left).unwrap();
        let checked = OutputDir::check(&target, OVERWRITE);
        assert_eq!(checked.is_ok(), is_damage, "{left}: {checked:?}");
    }
}
