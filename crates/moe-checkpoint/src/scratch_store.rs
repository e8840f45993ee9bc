//! A store for bytes that are made long before they are written. They are in a scratch file, which
//! the system caches in memory as far as possible.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::scratch::Scratch;

/// Stores bytes until they are written.
#[derive(Debug)]
pub struct ScratchStore {
    dir: PathBuf,
    state: Mutex<StoreState>,
}

#[derive(Debug, Default)]
struct StoreState {
    file: Option<Arc<Scratch>>,
    end: u64,
}

/// Bytes in a `ScratchStore`.
#[derive(Debug, Clone)]
pub struct KeptBytes {
    /// The file; it is removed with the last of its users.
    scratch: Arc<Scratch>,
    /// Offset of the first byte.
    offset: u64,
    /// Number of bytes.
    bytes: usize,
}

impl ScratchStore {
    /// Creates a store in a nameless file in `dir`; the file is created with the first bytes.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), state: Mutex::default() }
    }

    /// Stores `bytes`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], such as for a full disk.
    pub fn keep(&self, bytes: &[u8]) -> Result<KeptBytes> {
        let (scratch, offset) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let scratch = match &state.file {
                Some(scratch) => scratch.clone(),
                None => state.file.insert(Arc::new(Scratch::create(&self.dir)?)).clone(),
            };
            let offset = state.end;
            state.end += bytes.len() as u64;
            (scratch, offset)
        };
        scratch.write_at(offset, bytes)?;
        Ok(KeptBytes { scratch, offset, bytes: bytes.len() })
    }
}

impl KeptBytes {
    /// Reads the bytes back.
    ///
    /// # Errors
    /// [`crate::Kind::Io`].
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; self.bytes];
        self.scratch.read_at(self.offset, &mut buffer)?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_bytes_come_back_from_a_nameless_file() {
        let dir = tempfile::tempdir().unwrap();
        let spill = ScratchStore::new(dir.path());
        let given = [vec![1, 2, 3], vec![], vec![6], vec![7; 9]];
        let kept: Vec<_> = given.iter().map(|bytes| spill.keep(bytes).unwrap()).collect();
        drop(spill);
        let read: Vec<_> = kept.iter().map(|kept| kept.read().unwrap()).collect();
        assert_eq!(read, given);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(ScratchStore::new(&dir.path().join("missing")).keep(&[1]).is_err());
    }
}
