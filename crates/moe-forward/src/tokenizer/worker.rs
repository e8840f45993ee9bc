//! Runs a tokenizer on a thread of its own, so that one that never returns becomes an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use moe_checkpoint::{Error, Kind, Result};
use tokenizers::{Encoding, Tokenizer};

use crate::guarded::guarded;
use crate::memory_limit::{CheckpointCode, limited};

/// Time limits of a tokenizer.
#[derive(Clone, Copy)]
pub(super) struct WorkerLimits {
    /// Maximum time for loading.
    load: Duration,
    /// Maximum time for a text, whatever its length.
    text: Duration,
    /// Additional time for each MiB of a text.
    mebibyte: Duration,
}

impl WorkerLimits {
    /// Loading a tokenizer of 250,000 tokens takes a second, and a few MiB of text take another. A
    /// slow machine that is busy with other work takes ten times that.
    pub const USUAL: Self = Self {
        load: Duration::from_secs(120),
        text: Duration::from_secs(30),
        mebibyte: Duration::from_secs(60),
    };
}

/// Bytes that a tokenizer may take in memory, plus [`BYTES_PER_BYTE`] for each byte of its file or
/// of a text. Real ones take about 10 for a byte of the file, and 150 for a byte of text.
const BYTES: usize = 512 << 20;
const BYTES_PER_BYTE: usize = 256;

const AGAIN: &str = "download tokenizer.json again";

/// A text to tokenize.
struct TokenizeJob {
    text: String,
    /// Whether to add the tokens that begin and end every text.
    special_tokens: bool,
    /// Whether to find the places of tokens in the text, which takes longer.
    places: bool,
}

/// The result of loading a tokenizer; the outer error is the library's.
type Loaded = tokenizers::Result<Result<Arc<Tokenizer>>>;

/// A thread that tokenizes texts. If it takes too long, it is abandoned: a call into the library
/// can't be stopped.
pub(super) struct TokenizerWorker {
    jobs: Sender<TokenizeJob>,
    done: Receiver<tokenizers::Result<Encoding>>,
    limits: WorkerLimits,
}

impl TokenizerWorker {
    /// Starts a thread that calls `load` for the tokenizer in `file`, which has `bytes` bytes.
    ///
    /// # Errors
    /// Errors of `load`; [`Kind::Unsupported`] if it takes too long.
    pub fn start(
        file: &Path,
        bytes: usize,
        limits: WorkerLimits,
        load: impl FnOnce() -> Result<Tokenizer> + Send + 'static,
    ) -> Result<(Self, Arc<Tokenizer>)> {
        let (jobs, inbox) = channel();
        let (outbox, done) = channel();
        let (ready, loaded) = channel();
        let server = Server { file: file.to_owned(), ready, inbox, outbox };
        let started =
            Builder::new().name("tokenizer".into()).spawn(move || server.serve(bytes, load));
        started.map_err(|e| Error::io("cannot start a thread for this tokenizer", file, e))?;
        match loaded.recv_timeout(limits.load) {
            Ok(Ok(tokenizer)) => Ok((Self { jobs, done, limits }, tokenizer?)),
            Ok(Err(error)) => Err(Error::new(Kind::Malformed, "cannot understand this tokenizer")
                .source(error)
                .remedy(AGAIN)),
            Err(_) => Err(too_slow(limits.load, "to be set up")),
        }
    }

    /// Tokenizes `text`. With `special_tokens`, this includes those that begin and end every text.
    ///
    /// # Errors
    /// [`Kind::Malformed`] if the tokenizer fails, [`Kind::Unsupported`] if it takes too long.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>> {
        Ok(self.run(text, special_tokens, false)?.get_ids().to_vec())
    }

    /// As [`Self::encode`], but returns the tokens with their places.
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub fn places(&self, text: &str, special_tokens: bool) -> Result<Encoding> {
        self.run(text, special_tokens, true)
    }

    fn run(&self, text: &str, special_tokens: bool, places: bool) -> Result<Encoding> {
        let allowed = self.limits.text + self.limits.mebibyte * (text.len() >> 20) as u32;
        let bytes = text.len();
        if self.jobs.send(TokenizeJob { text: text.to_owned(), special_tokens, places }).is_err() {
            return Err(failed());
        }
        match self.done.recv_timeout(allowed) {
            Ok(Ok(encoding)) => Ok(encoding),
            Ok(Err(error)) => Err(failed().source(error)),
            Err(RecvTimeoutError::Timeout) => {
                Err(too_slow(allowed, &format!("for {bytes} bytes of text")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(failed()),
        }
    }
}

/// The part of a [`TokenizerWorker`] that runs on its thread.
struct Server {
    /// The tokenizer's file, which errors name.
    file: PathBuf,
    ready: Sender<Loaded>,
    inbox: Receiver<TokenizeJob>,
    outbox: Sender<tokenizers::Result<Encoding>>,
}

impl Server {
    /// Calls `load`, and then tokenizes the text of each job.
    fn serve(self, bytes: usize, load: impl FnOnce() -> Result<Tokenizer>) {
        let allowed = BYTES + BYTES_PER_BYTE * bytes;
        let loaded = limited(CheckpointCode::Tokenizer, &self.file, allowed, || {
            guarded(|| Ok(load().map(Arc::new)))
        });
        let Ok(Ok(tokenizer)) = &loaded else {
            _ = self.ready.send(loaded);
            return;
        };
        let tokenizer = Arc::clone(tokenizer);
        _ = self.ready.send(loaded);
        // The channel closes when the tokenizer is dropped.
        for job in &self.inbox {
            if self.outbox.send(self.encode(&tokenizer, job)).is_err() {
                return;
            }
        }
    }

    fn encode(&self, tokenizer: &Tokenizer, job: TokenizeJob) -> tokenizers::Result<Encoding> {
        let TokenizeJob { text, special_tokens, places } = job;
        let allowed = BYTES + BYTES_PER_BYTE * text.len();
        limited(CheckpointCode::Tokenizer, &self.file, allowed, || {
            guarded(|| {
                if places {
                    tokenizer.encode(text, special_tokens)
                } else {
                    tokenizer.encode_fast(text, special_tokens)
                }
            })
        })
    }
}

fn too_slow(allowed: Duration, what: &str) -> Error {
    let seconds = allowed.as_secs_f64();
    Error::new(Kind::Unsupported, format!("this tokenizer takes more than {seconds} s {what}"))
        .remedy(
            "a pattern in it may never end: download tokenizer.json again, or give \"input_ids\"",
        )
}

fn failed() -> Error {
    Error::new(Kind::Malformed, "the tokenizer failed").remedy(AGAIN)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokenizers::models::wordlevel::WordLevel;

    use super::*;

    const SHORT: WorkerLimits = WorkerLimits {
        load: Duration::from_millis(200),
        text: Duration::from_millis(1),
        mebibyte: Duration::ZERO,
    };

    fn words() -> Result<Tokenizer> {
        let vocab = [("a".to_owned(), 0)].into_iter().collect();
        let model = WordLevel::builder().vocab(vocab).unk_token("a".to_owned()).build();
        Ok(Tokenizer::new(model.expect("a vocabulary of one word")))
    }

    fn refused<T>(found: Result<T>) -> String {
        let error = found.err().expect("it takes too long");
        assert_eq!(error.kind(), Kind::Unsupported);
        error.to_string()
    }

    #[test]
    fn a_tokenizer_that_never_returns_is_abandoned() {
        let start = Instant::now();
        let endless = || {
            std::thread::sleep(Duration::from_secs(60));
            words()
        };
        let error = refused(TokenizerWorker::start(Path::new("tokenizer.json"), 0, SHORT, endless));
        assert!(
            error.contains("more than 0.2 s to be set up") && error.contains("remedy"),
            "{error}"
        );
        let patient = WorkerLimits { load: WorkerLimits::USUAL.load, ..SHORT };
        let (worker, _) =
            TokenizerWorker::start(Path::new("tokenizer.json"), 0, patient, words).unwrap();
        let error = refused(worker.encode(&"a".repeat(4 << 20), false));
        assert!(error.contains("more than 0.001 s for 4194304 bytes of text"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        let (worker, _) =
            TokenizerWorker::start(Path::new("tokenizer.json"), 0, WorkerLimits::USUAL, words)
                .unwrap();
        assert_eq!(worker.encode("a", false).unwrap(), [0]);
    }
}
