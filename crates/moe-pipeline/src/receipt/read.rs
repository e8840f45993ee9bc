//! Reads receipts back.

use std::path::Path;

use moe_checkpoint::json::{self, UniqueKeys};
use moe_checkpoint::{Error, Kind, Result, file_exists, shown};
use serde::Deserialize;

use super::check::Counts;
use super::{FORMAT, NAME, RECEIPT_FILE, Receipt};

/// The remedy for a receipt that can't be read.
const DAMAGED: &str = "it was changed or cut off after it was written: copy the result again, whole, or convert again";

/// The maximum number of characters of a program's name or version that messages show.
const MAX_NAME: usize = 64;

/// A receipt that was found in a result.
#[derive(Debug)]
pub enum ReceiptFile {
    /// A receipt that this build reads.
    Read(Box<Receipt>),
    /// A receipt of another format.
    Other {
        /// The format of the receipt; 0 if it has none.
        format: u64,
        /// The version of the program that wrote it.
        version: String,
    },
}

/// The part of a receipt that tells its format.
#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    format: u64,
    tool: HeaderTool,
}

#[derive(Deserialize)]
struct HeaderTool {
    name: String,
    version: String,
}

impl ReceiptFile {
    /// Reads the receipt in `dir`.
    ///
    /// # Errors
    /// [`Kind::Missing`] without one, [`Kind::Io`] where it can't be read, [`Kind::Malformed`]
    /// where it isn't a receipt.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(RECEIPT_FILE);
        if !file_exists(&path)? {
            return Err(Error::new(Kind::Missing, "there is no receipt here")
                .file(path)
                .remedy("name a directory that moe-convert has written"));
        }
        let Header { format, tool } = json::read_expecting(&path, DAMAGED)?;
        if tool.name != NAME {
            let name: String = tool.name.chars().take(MAX_NAME).collect();
            let what = format!("this is not a receipt of {NAME}, but of {}", shown(&name, ""));
            return Err(Error::new(Kind::Malformed, what)
                .file(path)
                .remedy("name a directory that moe-convert has written"));
        }
        if !is_version(&tool.version) {
            return Err(Error::new(Kind::Malformed, "tool.version is not a version")
                .file(path)
                .remedy(DAMAGED));
        }
        if format != FORMAT {
            return Ok(Self::Other { format, version: tool.version });
        }
        json::read_expecting::<UniqueKeys>(&path, DAMAGED)?;
        json::read_expecting::<Counts>(&path, DAMAGED)?;
        let receipt: Receipt = json::read_expecting(&path, DAMAGED)?;
        receipt.check().map_err(|said| {
            let what = format!("this receipt is none that a run writes: {said}");
            Error::new(Kind::Malformed, what).file(&path).remedy(DAMAGED)
        })?;
        Ok(Self::Read(Box::new(receipt)))
    }
}

/// Whether `text` can be a version of the program, which messages may show as it is.
fn is_version(text: &str) -> bool {
    let of_version = |c: char| c.is_ascii_alphanumeric() || ".+-".contains(c);
    (1..=MAX_NAME).contains(&text.len()) && text.chars().all(of_version)
}

/// The age of receipts of another `format`, for messages.
pub(crate) fn age(format: u64) -> &'static str {
    if format < FORMAT { "an earlier" } else { "a later" }
}

impl Receipt {
    /// Reads the receipt in `dir`.
    ///
    /// # Errors
    /// As for [`ReceiptFile::read`]; [`Kind::Unsupported`] for one of another format.
    pub fn read(dir: &Path) -> Result<Self> {
        let (format, version) = match ReceiptFile::read(dir)? {
            ReceiptFile::Read(receipt) => return Ok(*receipt),
            ReceiptFile::Other { format, version } => (format, version),
        };
        let age = age(format);
        let what = format!("this receipt is of {age} format ({format}, where {FORMAT} is read)");
        let remedy = format!("convert again, or use the program that wrote it: {NAME} {version}");
        Err(Error::new(Kind::Unsupported, what).file(dir.join(RECEIPT_FILE)).remedy(remedy))
    }
}

#[cfg(test)]
mod tests {
    use moe_passes::LayerTrust;
    use serde_json::{Value, json};

    use super::*;
    use crate::receipt::made_up::receipt;

    fn sound() -> Value {
        serde_json::to_value(receipt(vec![LayerTrust::default()])).unwrap()
    }

    /// The error for the receipt `text`.
    fn error_of(text: &str) -> Error {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RECEIPT_FILE), text).unwrap();
        let error = Receipt::read(dir.path()).unwrap_err();
        assert_eq!(error.named_file(), Some(dir.path().join(RECEIPT_FILE).as_path()));
        assert!(error.to_string().contains("remedy: "), "{error}");
        error
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = json::to_pretty(&sound());
        std::fs::write(dir.path().join(RECEIPT_FILE), &text).unwrap();
        assert_eq!(json::to_pretty(&Receipt::read(dir.path()).unwrap()), text);
    }

    #[test]
    fn receipts_of_other_formats_are_named() {
        let mut other = sound();
        other["format"] = json!(2);
        let later = error_of(&other.to_string());
        assert_eq!(later.kind(), Kind::Unsupported);
        assert!(later.what().contains("a later format (2,"), "{later}");
        other.as_object_mut().unwrap().remove("format");
        // Only the head must be as it is in this format.
        other["layers"] = json!("other");
        let earlier = error_of(&other.to_string());
        assert_eq!(earlier.kind(), Kind::Unsupported);
        assert!(earlier.what().contains("an earlier format (0,"), "{earlier}");
    }

    /// A version or a name from a file must not write lines of its own.
    #[test]
    fn names_of_programs_forge_no_lines() {
        let forged = format!("9\nremedy: rm -rf /{}", "v".repeat(3000));
        for (name, version) in [(NAME, forged.as_str()), (&forged, "1")] {
            let mut other = sound();
            other["format"] = json!(0);
            other["tool"] = json!({ "name": name, "version": version, "build": "" });
            let error = error_of(&other.to_string());
            assert_eq!(error.kind(), Kind::Malformed);
            let text = error.to_string();
            assert!(!text.contains("\nremedy: rm") && text.len() < 1000, "{text}");
        }
    }

    #[test]
    fn damaged_receipts_are_refused_by_name() {
        let text = sound().to_string();
        for length in [0, 1, 40, text.len() / 2, text.len() - 1] {
            assert_eq!(error_of(&text[..length]).kind(), Kind::Malformed, "{length}");
        }
        for key in sound().as_object().unwrap().keys().filter(|key| *key != "format") {
            let mut lacking = sound();
            lacking.as_object_mut().unwrap().remove(key);
            // Empty collections and unknown values are omitted.
            if serde_json::from_value::<Receipt>(lacking.clone()).is_err() {
                let error = error_of(&lacking.to_string());
                assert_eq!(error.kind(), Kind::Malformed, "{key}");
                assert!(error.what().contains(&format!("{key} is missing")), "{error}");
            }
        }
        for (key, value, said) in [
            ("pass", json!("fly"), "there is no pass \"fly\""),
            ("tool", json!({ "name": "another", "version": "1", "build": "" }), "but of another"),
            (
                "layers",
                json!([{ "layer": 3, "details": { "kind": "flown" } }]),
                "layers[0].details.kind is \"flown\", where \"reduced\" is expected",
            ),
            (
                "layers",
                json!([{ "layer": 3, "details": { "kind": "reduced" } }]),
                "layers[0].details.experts is missing",
            ),
            (
                "layers",
                json!([{ "layer": 3, "router": { "rows": "flown", "repeated": 1 } }]),
                "flown",
            ),
        ] {
            let mut wrong = sound();
            wrong[key] = value;
            let error = error_of(&wrong.to_string());
            assert!(error.what().contains(said), "{error}");
        }
    }
}
