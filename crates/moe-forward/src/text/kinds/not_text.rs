//! Files that aren't text.

use moe_checkpoint::Result;
use moe_checkpoint::json::LFS_POINTER;

use crate::text::bytes::TextBytes;
use crate::text::kind::{FileStart, OpenedText, TextFormat};

/// Known formats that aren't text. All of them are refused.
pub(super) struct NotText;

impl TextFormat for NotText {
    fn recognizes(&self, head: &FileStart<'_>) -> Result<bool> {
        let known = OTHERS.iter().find(|(magic, _, _)| head.bytes.starts_with(magic));
        if let Some((_, what, remedy)) = known {
            return Err(head.refused(what, remedy));
        }
        if head.bytes.get(257..262) == Some(b"ustar") {
            return Err(head.refused("a tar archive", "unpack it first: tar -xf FILE"));
        }
        if looks_like_utf_16(head.bytes) {
            return Err(head.refused("UTF-16 without a byte order mark, or binary", UTF_16));
        }
        Ok(false)
    }

    fn open(&self, _: TextBytes, _: &FileStart<'_>) -> Result<OpenedText> {
        unreachable!("it recognizes no file")
    }
}

/// Known beginnings of files that aren't text, with the format's name and the command that converts
/// it to text (`FILE` stands for the file).
const OTHERS: &[(&[u8], &str, &str)] = &[
    (
        b"PAR1",
        "Parquet",
        "write it as JSON Lines: python3 -c 'import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], \
         orient=\"records\", lines=True)' FILE data.jsonl",
    ),
    (
        b"ARROW1",
        "Arrow",
        "write it as JSON Lines: python3 -c 'import sys, datasets; datasets.Dataset.from_file(sys.argv[1])\
         .to_json(sys.argv[2])' FILE data.jsonl",
    ),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it first: zstd -d FILE"),
    (b"\xfd7zXZ\0", "xz", "unpack it first: xz -dk FILE"),
    (b"BZh", "bzip2", "unpack it first: bunzip2 -k FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    (b"%PDF-", "PDF", "write its text first: pdftotext FILE"),
    (b"\x80\x04\x95", "a pickle", "write its text, or JSON Lines, first"),
    (b"\x89HDF", "HDF5", "write its text, or JSON Lines, first"),
    (b"SQLite format 3\0", "an SQLite database", "write its text, or JSON Lines, first"),
    (LFS_POINTER, "a pointer of Git LFS to the data", "fetch the data: git lfs pull"),
    (b"\xff\xfe\0\0", "UTF-32", "write it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > data.txt"),
    (b"\0\0\xfe\xff", "UTF-32", "write it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > data.txt"),
    (b"\xff\xfe", "UTF-16", UTF_16),
    (b"\xfe\xff", "UTF-16", UTF_16),
];
const UTF_16: &str = "write it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > data.txt";

/// Returns whether `head` looks like Latin text in UTF-16, where every other byte is zero.
fn looks_like_utf_16(head: &[u8]) -> bool {
    let pairs = head.chunks_exact(2);
    let count = pairs.len();
    let zeros = pairs.filter(|pair| (pair[0] == 0) != (pair[1] == 0)).count();
    count >= 8 && zeros * 3 > count
}
