//! Lazy references to tensor bytes in files, read by position.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

use crate::error::{Error, Kind, Result};
use crate::header::{Entry, Header, MAX_HEADER_BYTES, parse_with_metadata};
use crate::regular::open_file;

/// An open safetensors file with a checked header.
///
/// The handle stays open, so that a file can still be read after it is renamed or unlinked; a
/// truncated file gives an error.
#[derive(Debug)]
pub struct SourceFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    bytes: u64,
    format: Option<String>,
}

impl SourceFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// [`Kind::Io`] if it can't be read, [`Kind::Malformed`] if it isn't a valid safetensors file.
    pub fn open(path: &Path) -> Result<(Arc<Self>, Vec<Entry>)> {
        let file = open_file(path)?;
        let bytes =
            file.metadata().map_err(|e| Error::io("cannot open this shard", path, e))?.len();
        let length = header_length(&file, bytes, path)?;
        let mut json = vec![0; length as usize];
        read_header(&file, 8, &mut json, path)?;
        let Header { entries, format } = parse_with_metadata(&json, bytes - 8 - length)
            .map_err(|e| e.file(path).remedy("this file is damaged: download or copy it again"))?;
        let source = Self { path: path.to_owned(), file, data_start: 8 + length, bytes, format };
        Ok((Arc::new(source), entries))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The `format` in the header's metadata, such as "pt": "" if it is missing, None without
    /// metadata.
    pub fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    /// The file's length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The length in bytes of the JSON header of the safetensors `file` of `bytes` bytes.
fn header_length(file: &File, bytes: u64, path: &Path) -> Result<u64> {
    if bytes < 8 {
        return Err(truncated(format!("{bytes} bytes are too few for a safetensors file"), path));
    }
    let mut length = [0; 8];
    read_header(file, 0, &mut length, path)?;
    if length == *b"version " {
        let what = "this file is a Git LFS pointer, not the weights that it stands for";
        return Err(Error::new(Kind::Malformed, what)
            .file(path)
            .remedy("fetch them: git lfs pull"));
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > bytes - 8 {
        let what = format!("the header claims {length} bytes; the file has {bytes}");
        return Err(truncated(what, path));
    }
    Ok(length)
}

fn read_header(file: &File, at: u64, buffer: &mut [u8], path: &Path) -> Result<()> {
    file.read_exact_at(buffer, at).map_err(|e| Error::io("cannot read the header", path, e))
}

fn truncated(what: String, path: &Path) -> Error {
    Error::new(Kind::Malformed, what).file(path).remedy("download or copy the file again")
}

/// A tensor in a file, or a contiguous part of one.
#[derive(Debug, Clone)]
pub struct Stored {
    file: Arc<SourceFile>,
    name: Arc<str>,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Absolute position in the file of the first byte.
    offset: u64,
    bytes: u64,
}

impl Stored {
    /// The tensor `entry` of `file`.
    pub fn of_file(file: &Arc<SourceFile>, entry: Entry) -> Self {
        Self {
            file: file.clone(),
            name: entry.name.into(),
            dtype: entry.dtype,
            shape: entry.shape,
            offset: file.data_start + entry.start,
            bytes: entry.end - entry.start,
        }
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether both are the same bytes of the same open file.
    pub fn same_bytes(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
            && self.offset == other.offset
            && self.bytes == other.bytes
    }

    /// Rows `start..end` of the outermost dimension; reads nothing.
    ///
    /// # Panics
    /// If the range isn't within the shape, or rows don't end on a byte.
    #[must_use]
    pub fn rows(&self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.shape[0], "rows {start}..{end} of {:?}", self.shape);
        let row_bytes = if self.shape[0] == 0 { 0 } else { self.bytes / self.shape[0] as u64 };
        let mut part = self.clone();
        part.shape[0] = end - start;
        part.offset += start as u64 * row_bytes;
        part.bytes = (end - start) as u64 * row_bytes;
        part
    }

    /// Entry `index` of the outermost dimension, which is dropped: expert e of a fused `[E, …]`
    /// tensor.
    ///
    /// # Panics
    /// If `index` isn't within the shape.
    #[must_use]
    pub fn at(&self, index: usize) -> Self {
        let mut part = self.rows(index, index + 1);
        part.shape.remove(0);
        part
    }

    /// Fills `buffer` with the bytes that start `offset` bytes into this tensor.
    ///
    /// # Errors
    /// [`Kind::Io`], naming file and tensor, if the file has become shorter or can't be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        debug_assert!(offset + buffer.len() as u64 <= self.bytes);
        self.file.file.read_exact_at(buffer, self.offset + offset).map_err(|e| {
            let what = match e.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    "the file became shorter while it was being read"
                }
                _ => "cannot read this tensor",
            };
            Error::io(what, self.path(), e).tensor(self.name())
        })
    }
}
