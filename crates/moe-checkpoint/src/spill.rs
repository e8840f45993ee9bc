//! Bytes that are made long before they are written: in memory as far as that goes, then in a scratch file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::scratch::Scratch;

/// Keeps bytes until they are written.
#[derive(Debug)]
pub struct Spill {
    dir: PathBuf,
    /// Bytes that may stay in memory.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: u64,
    file: Option<Arc<Scratch>>,
    end: u64,
}

/// Bytes that were kept.
#[derive(Debug, Clone)]
pub enum Kept {
    /// In memory.
    Memory(Arc<Vec<u8>>),
    /// In a scratch file.
    File {
        /// The file, which is gone with the last of these.
        scratch: Arc<Scratch>,
        /// Where they start.
        offset: u64,
        /// How many they are.
        bytes: usize,
    },
}

impl Spill {
    /// Keeps `limit` bytes in memory, and what is beyond in a scratch file in `dir`.
    pub fn new(dir: &Path, limit: u64) -> Self {
        Self { dir: dir.to_owned(), limit, state: Mutex::default() }
    }

    /// Keeps `bytes`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`], as where the disk is full.
    pub fn keep(&self, bytes: Vec<u8>) -> Result<Kept> {
        let size = bytes.len() as u64;
        let (scratch, offset) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.held + size <= self.limit {
                state.held += size;
                return Ok(Kept::Memory(Arc::new(bytes)));
            }
            let scratch = match &state.file {
                Some(scratch) => scratch.clone(),
                None => state.file.insert(Arc::new(Scratch::create(&self.dir)?)).clone(),
            };
            let offset = state.end;
            state.end += size;
            (scratch, offset)
        };
        scratch.write_at(offset, &bytes)?;
        Ok(Kept::File { scratch, offset, bytes: bytes.len() })
    }
}

impl Kept {
    /// The bytes.
    ///
    /// # Errors
    /// [`crate::Kind::Io`].
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => Ok(bytes.to_vec()),
            Self::File { scratch, offset, bytes } => {
                let mut buffer = vec![0; *bytes];
                scratch.read_at(*offset, &mut buffer)?;
                Ok(buffer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_does_not_hold_goes_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(dir.path(), 4);
        let kept: Vec<_> = [vec![1, 2, 3], vec![4, 5], vec![6], vec![7; 9]].map(|b| spill.keep(b).unwrap()).into();
        let in_memory: Vec<_> = kept.iter().map(|kept| matches!(kept, Kept::Memory(_))).collect();
        assert_eq!(in_memory, [true, false, true, false]);
        let read: Vec<_> = kept.iter().map(|kept| kept.read().unwrap()).collect();
        assert_eq!(read, [vec![1, 2, 3], vec![4, 5], vec![6], vec![7; 9]]);
    }
}
