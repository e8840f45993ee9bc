//! What can't be read by position as it lies there, written to a nameless file where it can: gzip,
//! and lists of records.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use moe_checkpoint::{Error, Kind, Result, Scratch};

use super::source::TextFile;

const CHUNK_BYTES: usize = 1 << 20;
/// Text is packed to a tenth; a small file that claims to be a hundred times more was made to fill
/// a disk.
const MAX_RATIO: u64 = 100;
/// What that doesn't matter for.
const SMALL_BYTES: u64 = 1 << 30;

/// What the gzip file `file` holds, and its bytes.
pub(super) fn unpacked(file: &File) -> Result<(Scratch, u64)> {
    let scratch = scratch()?;
    let packed = file.metadata().map_or(0, |metadata| metadata.len());
    let most = SMALL_BYTES.max(packed.saturating_mul(MAX_RATIO));
    let mut unpacker = Members::new(BufReader::with_capacity(CHUNK_BYTES, file));
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut end = 0;
    loop {
        let read = unpacker.read(&mut chunk).map_err(|e| {
            Error::new(Kind::Malformed, "this gzip file can't be unpacked")
                .source(e)
                .remedy("check it by gzip -t, and download it again")
        })?;
        if read == 0 {
            return Ok((scratch, end));
        }
        scratch.write_at(end, &chunk[..read]).map_err(no_room)?;
        end += read as u64;
        if end > most {
            let what = format!("this gzip file of {packed} bytes holds more than {most}");
            return Err(Error::new(Kind::Unsupported, what)
                .remedy("unpack it first (gunzip -k), and give the part that is wanted"));
        }
    }
}

/// All members of a gzip file, one after the other, as Python's `gzip` reads them: with zeros
/// between them and behind the last, which tapes and block devices pad files with.
struct Members<R: BufRead> {
    /// The one that is read; None behind the last.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(reader: R) -> Self {
        Self { member: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let rest = self.member.take().map(GzDecoder::into_inner);
            self.member = rest.map(behind_zeros).transpose()?.flatten().map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// `reader` behind the zeros that it begins with; None where nothing else comes.
fn behind_zeros<R: BufRead>(mut reader: R) -> io::Result<Option<R>> {
    loop {
        let held = reader.fill_buf()?;
        let zeros = held.iter().take_while(|byte| **byte == 0).count();
        if held.is_empty() {
            return Ok(None);
        }
        if zeros < held.len() {
            reader.consume(zeros);
            return Ok(Some(reader));
        }
        reader.consume(zeros);
    }
}

/// The elements of the list of JSON that `file` is, a line each, and their bytes.
pub(super) fn lines_of_array(file: &TextFile) -> Result<(Scratch, u64)> {
    let scratch = scratch()?;
    let mut lines = ArrayLines::default();
    let (mut at, mut end) = (0, 0);
    while at < file.len() {
        let mut chunk = vec![0; CHUNK_BYTES.min((file.len() - at) as usize)];
        file.read_at(at, &mut chunk)?;
        at += chunk.len() as u64;
        lines
            .split(&mut chunk)
            .map_err(|what| malformed(format!("line {}: {what}", lines.breaks + 1)))?;
        scratch.write_at(end, &chunk).map_err(no_room)?;
        end += chunk.len() as u64;
    }
    if lines.state != UnpackState::Behind {
        return Err(malformed(format!(
            "the file ends in line {}, and its list isn't closed",
            lines.breaks + 1
        )));
    }
    Ok((scratch, end))
}

fn scratch() -> Result<Scratch> {
    Scratch::create(&std::env::temp_dir()).map_err(no_room)
}

fn no_room(error: Error) -> Error {
    Error::new(Kind::Io, "there is no room to unpack this data file")
        .source(error)
        .remedy("set TMPDIR to a folder on a disk with more room, or unpack it yourself")
}

fn malformed(what: String) -> Error {
    Error::new(Kind::Malformed, what)
        .remedy("give a list of records, or records line by line: jq -c '.[]' makes such")
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum UnpackState {
    #[default]
    Before,
    Within,
    Behind,
}

/// Puts elements of a list on lines of their own, byte for byte: brackets and commas between them
/// become line breaks, and line breaks within them spaces.
#[derive(Default)]
struct ArrayLines {
    state: UnpackState,
    depth: usize,
    /// Line breaks that were read.
    breaks: u64,
    in_string: bool,
    is_escaped: bool,
    /// Whether something stands behind the last comma of the list.
    has_element: bool,
    /// Whether there was such a comma.
    has_comma: bool,
}

impl ArrayLines {
    fn split(&mut self, chunk: &mut [u8]) -> Result<(), String> {
        for byte in chunk {
            self.breaks += u64::from(*byte == b'\n');
            if self.in_string {
                self.in_string = self.is_escaped || *byte != b'"';
                self.is_escaped = !self.is_escaped && *byte == b'\\';
                continue;
            }
            self.check_commas(*byte)?;
            match (self.state, *byte) {
                (UnpackState::Before, b'[') => (self.state, *byte) = (UnpackState::Within, b'\n'),
                (UnpackState::Within, b'"') => self.in_string = true,
                (UnpackState::Within, b'[' | b'{') => self.depth += 1,
                (UnpackState::Within, b']') if self.depth == 0 => {
                    (self.state, *byte) = (UnpackState::Behind, b'\n')
                }
                (UnpackState::Within, b']' | b'}') => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or("a bracket is closed that wasn't opened")?;
                }
                (UnpackState::Within, b',') if self.depth == 0 => *byte = b'\n',
                (UnpackState::Within, b'\n' | b'\r') => *byte = b' ',
                (UnpackState::Before | UnpackState::Behind, byte)
                    if !byte.is_ascii_whitespace() =>
                {
                    return Err(format!("{:?} outside of the list", char::from(byte)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses commas without a record before or behind them, as Python does: `byte` stands outside
    /// of strings.
    fn check_commas(&mut self, byte: u8) -> Result<(), String> {
        if self.state != UnpackState::Within || byte.is_ascii_whitespace() {
            return Ok(());
        }
        match byte {
            b',' if self.depth == 0 && !self.has_element => {
                Err("a comma of the list has no record before it".to_owned())
            }
            b']' if self.depth == 0 && self.has_comma && !self.has_element => {
                Err("the list ends with a comma that no record follows".to_owned())
            }
            b',' if self.depth == 0 => {
                (self.has_comma, self.has_element) = (true, false);
                Ok(())
            }
            _ => {
                self.has_element = true;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn member(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    /// As `gzip.decompress` of Python 3.11 takes them, and refuses them.
    #[test]
    fn gzip_is_read_to_its_end_as_python_reads_it() {
        let (a, b, zeros) = (member("a"), member("b"), [0; 3000]);
        let cases: [(Vec<u8>, Option<&str>); 8] = [
            (a.clone(), Some("a")),
            ([&a[..], &zeros].concat(), Some("a")),
            ([&a[..], &b].concat(), Some("ab")),
            ([&a[..], &zeros, &b, &zeros].concat(), Some("ab")),
            ([&a[..], b"x"].concat(), None),
            ([&a[..], &zeros, b"rest"].concat(), None),
            ([&a[..], &b[..12]].concat(), None),
            ([&zeros, &a[..]].concat(), None),
        ];
        for (bytes, wanted) in cases {
            for capacity in [1, 100, 1 << 16] {
                let mut text = String::new();
                let mut members = Members::new(BufReader::with_capacity(capacity, &bytes[..]));
                let read = members.read_to_string(&mut text);
                assert_eq!(read.ok().map(|_| text.as_str()), wanted, "{capacity}");
            }
        }
    }

    #[test]
    fn elements_of_a_list_become_lines() {
        let split = |text: &str, chunk: usize| {
            let mut bytes = text.as_bytes().to_vec();
            let mut lines = ArrayLines::default();
            let split = bytes.chunks_mut(chunk).try_for_each(|chunk| lines.split(chunk));
            split.map(|()| (String::from_utf8(bytes).unwrap(), lines.state == UnpackState::Behind))
        };
        let text = "[{\"a\": \"],\\\"\\\\\",\n \"b\": [1, 2]}, {\"c\": {}}\n]\n";
        let wanted = "\n{\"a\": \"],\\\"\\\\\",  \"b\": [1, 2]}\n {\"c\": {}} \n\n";
        for chunk in [1, 3, 100] {
            assert_eq!(split(text, chunk), Ok((wanted.to_owned(), true)));
        }
        assert_eq!(split("[{}", 9), Ok(("\n{}".to_owned(), false)));
        for wrong in ["[{}] x", "[}]", "[{},]", "[{}, \n]", "[,{}]", "[{},,{}]", "[,]"] {
            assert!(split(wrong, 1).is_err() && split(wrong, 9).is_err(), "{wrong}");
        }
        assert!(split("[ ]", 9).is_ok() && split("[1,[2,],3]", 9).is_ok());
    }
}
