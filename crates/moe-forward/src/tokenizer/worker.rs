//! A tokenizer at work on a thread of its own, so that one that never comes back is an error.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use moe_checkpoint::{Error, Kind, Result};
use tokenizers::{Encoding, Tokenizer};

use crate::allowance::limited;
use crate::guarded::guarded;

/// Setting up a tokenizer of 250,000 tokens takes a second.
const LOAD_SECONDS: u64 = 120;
/// Tokenizers take a second for a few MiB of text. A slow machine that is busy with other things takes ten times that.
const TEXT_SECONDS: u64 = 30;
const SECONDS_PER_MIB: u64 = 60;
/// A tokenizer holds some 150 bytes for a byte of text, and 10 for a byte of its file.
const BYTES: usize = 512 << 20;
const BYTES_PER_BYTE: usize = 256;

const AGAIN: &str = "download tokenizer.json again";

/// A text to make tokens of.
struct Job {
    text: String,
    /// With those that begin and end every text.
    special_tokens: bool,
    /// With where each token stands in the text, which takes longer.
    places: bool,
}

/// A thread that makes tokens of texts. It is left behind where it takes too long: no call into the library can be stopped.
pub(super) struct Worker {
    jobs: Sender<Job>,
    done: Receiver<tokenizers::Result<Encoding>>,
}

impl Worker {
    /// Starts a thread that makes a tokenizer by `load`, of `bytes` bytes of `file`, and keeps it.
    ///
    /// # Errors
    /// What `load` returns; [`Kind::Unsupported`] where it takes too long.
    pub fn start(
        file: &Path,
        bytes: usize,
        load: impl FnOnce() -> Result<Tokenizer> + Send + 'static,
    ) -> Result<(Self, Arc<Tokenizer>)> {
        let (jobs, inbox) = channel::<Job>();
        let (outbox, done) = channel();
        let (ready, loaded) = channel();
        let path = file.to_owned();
        let serve = move || {
            let allowed = BYTES + BYTES_PER_BYTE * bytes;
            let tokenizer = limited(&path, allowed, || guarded(|| Ok(load().map(Arc::new))));
            let Ok(Ok(tokenizer)) = &tokenizer else {
                _ = ready.send(tokenizer);
                return;
            };
            let tokenizer = Arc::clone(tokenizer);
            _ = ready.send(Ok(Ok(Arc::clone(&tokenizer))));
            // The channel closes where nobody wants tokens any more.
            for Job { text, special_tokens, places } in inbox {
                let allowed = BYTES + BYTES_PER_BYTE * text.len();
                let found = limited(&path, allowed, || {
                    guarded(|| match places {
                        true => tokenizer.encode(text, special_tokens),
                        false => tokenizer.encode_fast(text, special_tokens),
                    })
                });
                if outbox.send(found).is_err() {
                    return;
                }
            }
        };
        let started = Builder::new().name("tokenizer".into()).spawn(serve);
        started.map_err(|e| Error::io("cannot start a thread for this tokenizer", file, e))?;
        match loaded.recv_timeout(Duration::from_secs(LOAD_SECONDS)) {
            Ok(Ok(tokenizer)) => Ok((Self { jobs, done }, tokenizer?)),
            Ok(Err(error)) => {
                Err(Error::new(Kind::Malformed, "cannot understand this tokenizer").source(error).remedy(AGAIN))
            }
            Err(_) => Err(too_slow(LOAD_SECONDS, "to be set up")),
        }
    }

    /// The token ids of `text`, with those that begin and end every text if `special_tokens`.
    ///
    /// # Errors
    /// [`Kind::Malformed`] where the tokenizer fails, [`Kind::Unsupported`] where it takes too long.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        Ok(self.run(text, special_tokens, false)?.get_ids().to_vec())
    }

    /// The same tokens with where they stand.
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub fn places(&self, text: &str, special_tokens: bool) -> Result<Encoding> {
        self.run(text, special_tokens, true)
    }

    fn run(&self, text: &str, special_tokens: bool, places: bool) -> Result<Encoding> {
        let seconds = TEXT_SECONDS + SECONDS_PER_MIB * (text.len() as u64 >> 20);
        let failed = || Error::new(Kind::Malformed, "the tokenizer failed").remedy(AGAIN);
        if self.jobs.send(Job { text: text.to_owned(), special_tokens, places }).is_err() {
            return Err(failed());
        }
        match self.done.recv_timeout(Duration::from_secs(seconds)) {
            Ok(Ok(encoding)) => Ok(encoding),
            Ok(Err(error)) => Err(failed().source(error)),
            Err(RecvTimeoutError::Timeout) => Err(too_slow(seconds, &format!("for {} bytes of text", text.len()))),
            Err(RecvTimeoutError::Disconnected) => Err(failed()),
        }
    }
}

fn too_slow(seconds: u64, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("this tokenizer takes more than {seconds} s {what}"))
        .remedy("a pattern in it may never end: download tokenizer.json again, or give \"input_ids\"")
}
