//! The safetensors header: strict parsing and deterministic encoding.
//!
//! The format is an 8-byte little-endian length, JSON of that length, then the data. The rules
//! checked here are those of the `safetensors` crate (contiguous, non-overlapping ranges that match
//! dtype and shape), but errors name the tensor; a test compares the two parsers.

use std::collections::HashMap;
use std::fmt;

use safetensors::Dtype;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Kind, Result};

/// Maximum size of a header, as in the `safetensors` crate.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Maximum number of tensors in a file. The largest quantized models have about this many in all of
/// their files together.
pub(crate) const MAX_TENSORS: usize = 1 << 18;
/// Maximum length of a name, since names appear in messages, reports and lists.
const MAX_NAME_BYTES: usize = 1024;

/// One tensor of a file: its name, element type, shape, and byte range after the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name: at most 1024 bytes, without control characters.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte of the data, counted from the end of the header.
    pub start: u64,
    /// First byte after the data, counted from the end of the header.
    pub end: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with dtype, shape and data_offsets")]
struct RawEntry {
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Maximum number of dimensions, as in PyTorch.
const MAX_DIMENSIONS: usize = 64;

/// Reads a shape of at most [`MAX_DIMENSIONS`], so that a hostile one is neither stored nor shown
/// in a message.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(ShapeVisitor)
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_DIMENSIONS} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = list.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::invalid_length(shape.len() + 1, &self));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}

/// The entries as a list, so that duplicate names are noticed rather than overwritten.
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    format: Option<String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader { entries: Vec::new(), format: None };
        while let Some(name) = map.next_key::<String>()? {
            if header.entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if name == "__metadata__" {
                // Other readers require strings or null here, and would refuse the file.
                let said = map.next_value::<Option<HashMap<String, String>>>()?;
                header.format = said.map(|mut said| said.remove("format").unwrap_or_default());
                continue;
            }
            let entry = map.next_value();
            let entry = entry.map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
            header.entries.push((name, entry));
        }
        Ok(header)
    }
}

/// The number of bytes of `shape` elements of `dtype`; `None` if it overflows or isn't a whole
/// number.
pub(crate) fn data_bytes(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// Parses the JSON of a header that is followed by `data_len` bytes of data.
///
/// Entries come in file order.
///
/// # Errors
/// [`Kind::Malformed`], naming the tensor, if the JSON is broken, a name occurs twice, a range
/// overlaps, leaves a gap or doesn't match dtype and shape, or the data is cut short.
pub fn parse_header(json: &[u8], data_len: u64) -> Result<Vec<Entry>> {
    parse_with_metadata(json, data_len).map(|header| header.entries)
}

/// The contents of a header.
pub(crate) struct Header {
    pub entries: Vec<Entry>,
    /// The metadata's `format`, such as "pt": "" if it is missing, None without metadata.
    pub format: Option<String>,
}

/// Like [`parse_header`], but also returns the metadata.
pub(crate) fn parse_with_metadata(json: &[u8], data_len: u64) -> Result<Header> {
    let RawHeader { entries: raw, format } = serde_json::from_slice(json).map_err(|e| {
        malformed("the safetensors header is not a JSON object of tensors").source(e)
    })?;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        check_entry(&name, &raw)?;
        let (start, end) = raw.data_offsets;
        entries.push(Entry { name, dtype: raw.dtype, shape: raw.shape, start, end });
    }
    check_names_unique(&entries)?;
    entries.sort_by_key(|e| (e.start, e.end));
    check_contiguous(&entries, data_len)?;
    Ok(Header { entries, format })
}

/// Refuses a tensor with a name that no writer uses, or a range that doesn't match its shape.
fn check_entry(name: &str, raw: &RawEntry) -> Result<()> {
    let RawEntry { dtype, shape, data_offsets: (start, end) } = raw;
    if name.contains(char::is_control) || name.len() > MAX_NAME_BYTES {
        let what =
            format!("a tensor's name has control characters, or more than {MAX_NAME_BYTES} bytes");
        return Err(malformed(what).tensor(name));
    }
    let Some(expected) = data_bytes(*dtype, shape) else {
        let what = format!("shape {shape:?} of {dtype} has no size in bytes");
        return Err(malformed(what).tensor(name));
    };
    if end.checked_sub(*start) == Some(expected) {
        return Ok(());
    }
    let what = format!(
        "the header gives bytes {start}..{end}, but {shape:?} of {dtype} takes {expected} bytes"
    );
    Err(malformed(what).tensor(name))
}

fn check_names_unique(entries: &[Entry]) -> Result<()> {
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    match entries.iter().find(|e| !seen.insert(e.name.as_str())) {
        Some(twice) => Err(malformed("the header lists this tensor twice").tensor(&twice.name)),
        None => Ok(()),
    }
}

fn check_contiguous(entries: &[Entry], data_len: u64) -> Result<()> {
    let mut position = 0;
    for entry in entries {
        check_follows(entry, position, data_len)?;
        position = entry.end;
    }
    if position != data_len {
        return Err(malformed(format!("{} bytes after the last tensor", data_len - position)));
    }
    Ok(())
}

/// Refuses a tensor that doesn't begin at `position`, or ends after the `data_len` bytes of data.
fn check_follows(entry: &Entry, position: u64, data_len: u64) -> Result<()> {
    let Entry { name, start, end, .. } = entry;
    if *start < position {
        let what = format!("bytes {start}..{end} overlap the tensor before it");
        return Err(malformed(what).tensor(name));
    }
    if *start > position {
        let what = format!("bytes {position}..{start} belong to no tensor");
        return Err(malformed(what).tensor(name));
    }
    if *end > data_len {
        return Err(malformed(format!(
            "the file is truncated: this tensor ends at byte {end} of the data, the file has {data_len}"
        ))
        .tensor(name)
        .remedy("download or copy the file again"));
    }
    Ok(())
}

fn malformed(what: impl Into<String>) -> Error {
    Error::new(Kind::Malformed, what)
}

/// The bytes before the data of a file with these `entries` in this order: length, JSON, padding.
///
/// Unlike the `safetensors` crate's writer, it gives the same bytes for the same entries.
pub fn encode_header(entries: &[Entry]) -> Vec<u8> {
    let mut json = br#"{"__metadata__":{"format":"pt"}"#.to_vec();
    for entry in entries {
        let raw = RawEntry {
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data_offsets: (entry.start, entry.end),
        };
        json.push(b',');
        json.extend(serde_json::to_vec(&entry.name).expect("a string serializes"));
        json.push(b':');
        json.extend(serde_json::to_vec(&raw).expect("an entry serializes"));
    }
    json.push(b'}');
    // Data starts at a multiple of 8, as loaders that map the file expect.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<Vec<Entry>> {
        parse_header(json.as_bytes(), data_len)
    }

    /// Headers, how many bytes of data follow each, and whether the two are sound.
    const HEADERS: &[(&str, u64, bool)] = &[
        (ONE, 8, true),
        (ONE, 4, false),
        (ONE, 12, false),
        ("{}", 0, true),
        (r#"{"__metadata__":{"format":"pt"}}"#, 0, true),
        (r#"{"__metadata__":null}"#, 0, true),
        (r#"{"__metadata__":{"format":1}}"#, 0, false),
        ("[]", 0, false),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, false),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, false),
        (r#"{"a":{"dtype":"XX","shape":[2],"data_offsets":[0,8]}}"#, 8, false),
        (r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, 0, true),
        (r#"{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,8]}}"#, 8, false),
        (
            r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"I8","shape":[2],"data_offsets":[1,3]}}"#,
            3,
            false,
        ),
        (
            r#"{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"I8","shape":[2],"data_offsets":[3,5]}}"#,
            5,
            false,
        ),
        (
            r#"{"b":{"dtype":"I8","shape":[2],"data_offsets":[2,4]},"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}"#,
            4,
            true,
        ),
    ];

    /// A header of one tensor.
    const ONE: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

    /// Our verdict must match the crate's, for every defect that it detects.
    #[test]
    fn agrees_with_the_safetensors_crate() {
        for (json, data_len, valid) in HEADERS {
            let mut file = (json.len() as u64).to_le_bytes().to_vec();
            file.extend(json.as_bytes());
            file.resize(file.len() + *data_len as usize, 0);
            assert_eq!(
                safetensors::SafeTensors::deserialize(&file).is_ok(),
                *valid,
                "crate: {json}"
            );
            assert_eq!(parse(json, *data_len).is_ok(), *valid, "ours: {json}");
        }
    }

    #[test]
    fn names_and_shapes_that_no_writer_uses_are_refused() {
        let named = |name: &str| {
            parse(&format!(r#"{{"{name}":{{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}}}"#), 1)
        };
        assert!(named(&"n".repeat(MAX_NAME_BYTES)).is_ok());
        for name in ["n".repeat(MAX_NAME_BYTES + 1), r"a\u001b[2J".to_owned(), r"a\nb".to_owned()] {
            assert!(named(&name).unwrap_err().to_string().contains("control characters"));
        }
        let shaped = |dimensions: usize| {
            let ones = vec!["1"; dimensions].join(",");
            parse(&format!(r#"{{"a":{{"dtype":"I8","shape":[{ones}],"data_offsets":[0,1]}}}}"#), 1)
        };
        assert!(shaped(MAX_DIMENSIONS).is_ok());
        assert!(shaped(MAX_DIMENSIONS + 1).unwrap_err().to_string().contains("at most 64"));
    }

    #[test]
    fn a_name_that_occurs_twice_is_refused() {
        let json = r#"{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}}"#;
        let message = parse(json, 2).unwrap_err().to_string();
        assert!(message.contains("twice") && message.contains("tensor: a"), "{message}");
    }

    #[test]
    fn encoded_headers_parse_here_and_in_the_crate() {
        let entries = vec![
            Entry {
                name: "x \"quoted\"".into(),
                dtype: Dtype::F32,
                shape: vec![2, 1],
                start: 0,
                end: 8,
            },
            Entry { name: "y".into(), dtype: Dtype::BF16, shape: vec![3], start: 8, end: 14 },
        ];
        let header = encode_header(&entries);
        assert_eq!(header.len() % 8, 0);
        assert_eq!(parse_header(&header[8..], 14).unwrap(), entries);
        let mut file = header;
        file.extend([0; 14]);
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("y").unwrap().shape(), [3]);
    }
}
