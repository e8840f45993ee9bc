//! The header of a safetensors file. Whatever we take, the `safetensors` crate takes, too, and it
//! comes back as it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moe_checkpoint::{SourceFile, encode_header, parse_header};
use moe_fuzz::{accepted, write};
use safetensors::SafeTensors;

/// Bytes behind a header.
const DATA: usize = 64;

fuzz_target!(|input: &[u8]| {
    accepted(SourceFile::open(&write("raw.safetensors", input)));
    // The same bytes with the right length in front: no mutation finds that.
    let file = [&(input.len() as u64).to_le_bytes(), input, &[0; DATA]].concat();
    let Some((_, entries)) = accepted(SourceFile::open(&write("model.safetensors", &file))) else { return };
    let theirs = SafeTensors::deserialize(&file).expect("the crate reads what we read");
    assert_eq!(theirs.len(), entries.len());
    let header = encode_header(&entries);
    assert_eq!(parse_header(&header[8..], DATA as u64).expect("what is encoded is parsed"), entries);
});
