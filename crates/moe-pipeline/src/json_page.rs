//! Generates the tables of docs/json.md from the types that are written as JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use moe_forward::EvalReport;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::bench::BenchReport;
use crate::conversion::Conversion;
use crate::convert::PlannedOutput;
use crate::inspect::Inspection;
use crate::observe::Observation;
use crate::receipt::receipt_schema;
use crate::resources::RunRecord;
use crate::selftest::Check;
use crate::statistics::About;
use crate::summary::{Average, Summary};
use crate::verify::VerifyReport;

/// The schema of `T` as it is serialized.
fn schema_of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

/// The tables of one schema.
struct Tables<'a> {
    schema: &'a Value,
    /// Types that have a table or are queued for one.
    queued: Vec<String>,
    /// Types that this page already has a table for.
    known: &'a mut BTreeSet<String>,
    text: String,
}

impl Tables<'_> {
    /// Writes a table of the keys of `object`, and of each type among their values.
    fn all(&mut self) {
        let root = self.schema.clone();
        self.table(&root);
        let mut next = 0;
        while let Some(name) = self.queued.get(next).cloned() {
            next += 1;
            if !self.known.insert(name.clone()) {
                continue;
            }
            let definition = self.schema["$defs"][&name].clone();
            let _ = write!(self.text, "\n#### {name}\n\n");
            if let Some(said) = definition["description"].as_str() {
                let _ = write!(self.text, "{}\n\n", one_line(said));
            }
            self.table(&definition);
        }
    }

    fn table(&mut self, object: &Value) {
        let mut rows = String::new();
        self.rows(object, &mut rows);
        if !rows.is_empty() {
            let _ = write!(self.text, "| key | value | |\n|---|---|---|\n{rows}");
        }
    }

    /// A row for each key of `object`, in each of its variants.
    fn rows(&mut self, object: &Value, rows: &mut String) {
        let required: Vec<&str> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // The key that tells variants of an object apart holds one of several words.
        let keys = || object["properties"].as_object().into_iter().flat_map(Map::iter);
        let form = keys().find_map(|(_, value)| value["const"].as_str());
        let form_said = description(object);
        for (key, value) in keys() {
            // The one key of a variant, such as `count` of neurons, has the variant's description.
            let said = match form {
                Some(_) if value["const"].is_string() => form_said.clone(),
                Some(form) => format!("Of `{form}`: {}", description(value)),
                None if description(value).is_empty() => form_said.clone(),
                None => description(value),
            };
            let mut kind = self.kind(value);
            if !required.contains(&key.as_str()) {
                kind = format!("{}; may be absent", kind.trim_end_matches(" or null"));
            }
            let _ = writeln!(rows, "| `{key}` | {kind} | {said} |");
        }
        for form in object["oneOf"].as_array().into_iter().flatten() {
            if form["properties"].is_object() {
                self.rows(form, rows);
            }
        }
    }

    /// The type of a value, in a few words.
    fn kind(&mut self, value: &Value) -> String {
        if let Some(name) = value["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            return self.named(name);
        }
        if let Some(word) = value["const"].as_str() {
            return format!("`{word}`");
        }
        let words = words_of(value);
        if !words.is_empty() {
            return words.join(", ");
        }
        if let Some(forms) =
            ["anyOf", "oneOf", "allOf"].iter().find_map(|key| value[key].as_array())
        {
            return self.kinds(forms).join(" or ");
        }
        if let Some(items) = value["prefixItems"].as_array() {
            return format!("[{}]", self.kinds(items).join(", "));
        }
        self.of_type(value)
    }

    /// The JSON type of a value, or several.
    fn of_type(&mut self, value: &Value) -> String {
        match &value["type"] {
            Value::String(kind) => self.plain(kind, value),
            Value::Array(kinds) => {
                let kinds = kinds.iter().filter_map(Value::as_str);
                kinds.map(|kind| self.plain(kind, value)).collect::<Vec<_>>().join(" or ")
            }
            _ => "any".to_owned(),
        }
    }

    /// The words of the type `name` if it is an enumeration, or a link to its table.
    fn named(&mut self, name: &str) -> String {
        let words = words_of(&self.schema["$defs"][name]);
        if !words.is_empty() {
            return words.join(", ");
        }
        self.queued.push(name.to_owned());
        format!("[{name}](#{})", name.to_lowercase())
    }

    fn kinds(&mut self, values: &[Value]) -> Vec<String> {
        values.iter().map(|value| self.kind(value)).collect()
    }

    fn plain(&mut self, kind: &str, value: &Value) -> String {
        match kind {
            "array" => {
                let items = self.kind(&value["items"]);
                match value["maxItems"].as_u64() {
                    Some(count) => format!("{count} of {items}"),
                    None => format!("list of {items}"),
                }
            }
            "object" if value["additionalProperties"].is_object() => {
                let items = self.kind(&value["additionalProperties"]);
                format!("object of {items} by name")
            }
            "object" => "object".to_owned(),
            kind => kind.to_owned(),
        }
    }
}

/// The words of an enumeration.
fn words_of(value: &Value) -> Vec<String> {
    let of_enum = value["enum"].as_array().into_iter().flatten();
    let of_forms = value["oneOf"].as_array().into_iter().flatten().map(|form| {
        form["enum"].as_array().and_then(|words| words.first()).unwrap_or(&form["const"])
    });
    let words: Option<Vec<String>> =
        of_enum.chain(of_forms).map(|word| Some(format!("`{}`", word.as_str()?))).collect();
    words.unwrap_or_default()
}

fn description(value: &Value) -> String {
    one_line(value["description"].as_str().unwrap_or_default())
}

/// A description as one line, for a cell.
fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    // Links of rustdoc don't resolve on this page.
    text.replace("[`", "`").replace("`]", "`")
}

fn tables(schema: &Value, known: &mut BTreeSet<String>) -> String {
    let mut tables = Tables { schema, queued: Vec::new(), known, text: String::new() };
    tables.all();
    tables.text
}

/// All tables by section. A type has its table in the first section that names it.
fn sections() -> [(&'static str, String); 13] {
    let mut known = BTreeSet::new();
    let schemas = [
        ("receipt", receipt_schema()),
        ("conversion", schema_of::<Conversion>()),
        ("plan", schema_of::<PlannedOutput>()),
        ("inspect", schema_of::<Inspection>()),
        ("observe", schema_of::<Observation>()),
        ("eval", schema_of::<EvalReport>()),
        ("verify", schema_of::<VerifyReport>()),
        ("summary", schema_of::<Summary>()),
        ("averages", schema_of::<Average>()),
        ("selftest", schema_of::<Check>()),
        ("bench", schema_of::<BenchReport>()),
        ("run", schema_of::<RunRecord>()),
        ("statistics", schema_of::<About>()),
    ];
    schemas.map(|(name, schema)| (name, tables(&schema, &mut known)))
}

/// `page` with the text of each of `sections` between that section's marks.
fn with_sections(page: &str, sections: &[(&str, String)]) -> String {
    let mut page = page.to_owned();
    for (name, tables) in sections {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let from = page.find(&start).expect("the page has its mark") + start.len();
        let to = page.find(&end).expect("the page has its end");
        page.replace_range(from..to, &format!("\n{tables}\n"));
    }
    page
}

/// `BLESS=1` rewrites the page.
#[test]
fn the_page_of_json_says_what_is_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/json.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let page = with_sections(&found, &sections());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
        return;
    }
    assert!(found == page, "{} is not what is written now: renew it with BLESS=1", path.display());
}
