//! The JSON Schema of receipts, generated from the types that write them.

use std::collections::BTreeMap;

use moe_passes::PASSES;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::{FORMAT, Receipt};

/// The schema (draft 2020-12) of the receipts that this build writes.
pub fn receipt_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut details = BTreeMap::new();
    for kind in PASSES.iter().filter_map(|pass| pass.details) {
        let mut fields = kind.schema(&mut generator).to_value();
        fields["properties"] = json!({ "kind": { "const": kind.kind } });
        fields["required"] = json!(["kind"]);
        details.insert(kind.kind, fields);
    }
    let details: Vec<Value> = details.into_values().collect();
    let mut schema = generator.into_root_schema_for::<Receipt>().to_value();
    schema["title"] = json!("A receipt of moe-convert (moe-convert.json)");
    schema["properties"]["format"] =
        json!({ "const": FORMAT, "description": "The version of this form." });
    let passes: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
    schema["properties"]["pass"]["enum"] = json!(passes);
    schema["$defs"]["EarlierPass"]["properties"]["pass"]["enum"] = json!(passes);
    schema["$defs"]["LayerRecord"]["properties"]["details"] = json!({
        "description": "What the pass alone knows of the layer: `kind` says whose it is.",
        "oneOf": details,
    });
    schema
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::receipt::made_up::receipt;

    fn refused(receipt: &Value) -> usize {
        let validator = jsonschema::draft202012::new(&receipt_schema()).unwrap();
        validator.iter_errors(receipt).count()
    }

    /// The program's tests validate the receipts of their runs wherever they make some.
    #[test]
    fn what_is_not_a_receipt_is_refused() {
        let sound = serde_json::to_value(receipt(vec![moe_passes::LayerTrust::default()])).unwrap();
        assert_eq!(refused(&sound), 0);
        for (key, value) in [
            ("format", json!(2)),
            ("pass", json!("fly")),
            ("dtype", json!(32)),
            ("identity", json!({ "kind": "hardly" })),
            ("layers", json!([{ "layer": 0, "router": { "rows": "kept", "repeated": 1 } }])),
            ("layers", json!([{ "layer": 0, "details": { "kind": "reduced" } }])),
            ("layers", json!([{ "layer": 0, "details": { "kind": "flown" } }])),
        ] {
            let mut wrong = sound.clone();
            wrong[key] = value;
            assert!(refused(&wrong) > 0, "{key}");
        }
        for key in ["format", "tool", "source", "result", "layers"] {
            let mut lacking = sound.clone();
            lacking.as_object_mut().unwrap().remove(key);
            assert!(refused(&lacking) > 0, "{key}");
        }
    }

    /// `BLESS=1` rewrites the file.
    #[test]
    fn the_file_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/receipt.schema.json");
        let schema = moe_checkpoint::json::to_pretty(&receipt_schema());
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &schema).unwrap();
        }
        let same = std::fs::read_to_string(&path).is_ok_and(|text| text == schema);
        assert!(same, "{} is not what receipts are now: renew it with BLESS=1", path.display());
    }
}
