//! Bytes that are made long before they are written, in a scratch file: the system keeps it in
//! memory as far as that goes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::scratch::Scratch;

/// Keeps bytes until they are written.
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

/// Bytes that were kept.
#[derive(Debug, Clone)]
pub struct KeptBytes {
    /// The file, which is gone with the last of these.
    scratch: Arc<Scratch>,
    /// Where they start.
    offset: u64,
    /// How many they are.
    bytes: usize,
}

impl ScratchStore {
    /// Keeps bytes in a nameless file in `dir`, which is made when there are some.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), state: Mutex::default() }
    }

    /// Keeps `bytes`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], as where the disk is full.
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
    /// The bytes.
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
    fn what_was_kept_comes_back_from_a_file_without_a_name() {
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
