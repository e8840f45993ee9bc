//! The streaming writer: tensors are pushed as they are made, and hashed and written side by side.
//!
//! Three threads use the same recycled buffers: the caller fills one, one thread hashes it and one
//! writes it. A fourth asks the kernel to flush what is already written, so that the final fsync
//! has little to wait for. The buffers bound the memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::index::INDEX_FILE;
use crate::json;
use crate::manifest::{hex, sha256_bytes};
use crate::open_dir::OpenDir;
use crate::shard::{ShardPlan, index_json};

const BUFFER_BYTES: usize = 2 << 20;
const BUFFERS: usize = 8;
const FLUSH_EVERY_BYTES: u64 = 64 << 20;

/// A recycled buffer; dropping the last reference returns it to the pool.
struct PooledBytes {
    bytes: Vec<u8>,
    pool: Sender<Vec<u8>>,
}

impl Drop for PooledBytes {
    fn drop(&mut self) {
        // The pool is gone only if the writer is, and then the buffer isn't needed.
        let _ = self.pool.send(std::mem::take(&mut self.bytes));
    }
}

enum WriteOrder {
    /// Starts the file with this name in the directory.
    Open(String),
    Data(Arc<PooledBytes>),
    Close,
}

/// Hashes, sizes and times of the files written.
#[derive(Debug, Clone, Default)]
pub struct WriteSummary {
    /// SHA-256 of every file, in hexadecimal.
    pub hashes: BTreeMap<String, String>,
    /// Total size of all files.
    pub bytes: u64,
    /// Time that the hashing thread was busy.
    pub hashing: Duration,
    /// Time that the writing thread was busy.
    pub writing: Duration,
}

/// Writes planned shards into a directory, one after another.
pub struct Writer {
    dir: OpenDir,
    shards: Vec<ShardPlan>,
    shard: usize,
    entry: usize,
    /// Bytes of the current entry pushed so far.
    filled: u64,
    pool: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    /// Number of buffers, in the pool and in use.
    buffers: usize,
    hash: WriterThread<String>,
    disk: WriterThread<()>,
    summary: WriteSummary,
}

/// A thread that takes orders and answers once for every `Close`.
struct WriterThread<T> {
    orders: Option<SyncSender<WriteOrder>>,
    answers: Receiver<Result<T>>,
    thread: Option<JoinHandle<Duration>>,
}

impl<T: Send + 'static> WriterThread<T> {
    fn start(
        run: impl FnOnce(Receiver<WriteOrder>, Sender<Result<T>>) -> Duration + Send + 'static,
    ) -> Result<Self> {
        let (orders, inbox) = sync_channel(BUFFERS);
        let (outbox, answers) = channel();
        let thread = Builder::new().spawn(move || run(inbox, outbox)).map_err(no_thread)?;
        Ok(Self { orders: Some(orders), answers, thread: Some(thread) })
    }

    /// Sends an order; if the worker has stopped, returns its error.
    fn send(&self, order: WriteOrder) -> Result<()> {
        let orders = self.orders.as_ref().expect("orders end in stop()");
        orders.send(order).map_err(|_| match self.answers.try_iter().find_map(Result::err) {
            Some(error) => error,
            None => Error::new(Kind::Io, "a writer thread stopped"),
        })
    }

    fn answer(&self) -> Result<T> {
        self.answers.recv().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a writer thread stopped")))
    }

    fn stop(&mut self) -> Duration {
        self.orders = None;
        self.thread.take().and_then(|t| t.join().ok()).unwrap_or_default()
    }
}

impl Writer {
    /// Starts writing `shards` into the directory `dir`.
    ///
    /// # Errors
    /// [`Kind::Io`] if the first file can't be created.
    pub fn create(dir: &Path, shards: Vec<ShardPlan>) -> Result<Self> {
        let opened =
            OpenDir::open(dir).map_err(|e| Error::io("cannot open this directory", dir, e))?;
        Self::within(opened, shards)
    }

    /// Starts writing `shards` into the open directory `dir`, even if it was renamed.
    pub(crate) fn within(dir: OpenDir, shards: Vec<ShardPlan>) -> Result<Self> {
        let hash = WriterThread::start(hash_shards)?;
        let disk = WriterThread::start({
            let dir = dir.clone();
            move |orders, answers| write_shards(&dir, orders, answers)
        })?;
        let mut writer = Self {
            dir,
            shards,
            shard: 0,
            entry: 0,
            filled: 0,
            pool: filled_pool(),
            buffers: BUFFERS,
            hash,
            disk,
            summary: WriteSummary::default(),
        };
        writer.open_shard()?;
        Ok(writer)
    }

    /// The name of the next expected tensor; `None` when all are written.
    pub fn next_tensor(&self) -> Option<&str> {
        Some(self.shards.get(self.shard)?.entries.get(self.entry)?.name.as_str())
    }

    /// Pushes `bytes` as the next part of the tensor `name`.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] for the wrong order or size; [`Kind::Io`] if writing fails.
    pub fn push(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.push_copies(&[name], bytes.len() as u64, |offset, buffer| {
            buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
            Ok(())
        })
    }

    /// Pushes `bytes_total` bytes for each of the tensors `names`, which are the next in the
    /// declared order. `fill` gets an offset and a buffer, in order, and fills the buffer once for
    /// all names.
    ///
    /// With several names, the tensor's bytes are held in memory.
    ///
    /// # Errors
    /// As for [`Writer::push`], and if `fill` fails.
    pub fn push_copies(
        &mut self,
        names: &[&str],
        bytes_total: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let Some((first, copies)) = names.split_first() else { return Ok(()) };
        let mut kept = Vec::new();
        let mut offset = 0;
        while offset < bytes_total {
            let part = (bytes_total - offset).min(BUFFER_BYTES as u64) as usize;
            self.check_room(first, part)?;
            let mut buffer = self.buffer(part, kept.len());
            fill(offset, &mut buffer)?;
            let chunk = self.chunk(buffer);
            self.send(chunk.clone())?;
            if !copies.is_empty() {
                kept.push(chunk);
            }
            offset += part as u64;
        }
        copies.iter().try_for_each(|name| self.send_again(name, &kept))?;
        self.skip_empty()
    }

    /// A buffer for the next chunk of `bytes` bytes, while the caller holds `kept` chunks.
    fn buffer(&mut self, bytes: usize, kept: usize) -> Vec<u8> {
        let mut buffer = if kept + 1 < self.buffers {
            self.pool.1.recv().expect("this struct holds a sender")
        } else {
            self.buffers += 1;
            Vec::with_capacity(BUFFER_BYTES)
        };
        // Buffers keep their length, so memory is cleared only on first use or growth.
        buffer.resize(bytes, 0);
        buffer
    }

    /// Wraps `bytes`, which return to the pool when they are no longer used.
    fn chunk(&self, bytes: Vec<u8>) -> Arc<PooledBytes> {
        Arc::new(PooledBytes { bytes, pool: self.pool.0.clone() })
    }

    fn check_room(&self, name: &str, bytes: usize) -> Result<()> {
        let entry = self.shards.get(self.shard).and_then(|s| s.entries.get(self.entry));
        let room = match entry {
            Some(entry) if entry.name == name => entry.end - entry.start - self.filled,
            _ => {
                return Err(Error::new(
                    Kind::Mismatch,
                    "a tensor was pushed out of the declared order",
                )
                .tensor(name));
            }
        };
        if bytes as u64 > room {
            return Err(Error::new(Kind::Mismatch, "a tensor is larger than declared").tensor(name));
        }
        Ok(())
    }

    /// Sends all `chunks` of another tensor for the tensor `name`.
    fn send_again(&mut self, name: &str, chunks: &[Arc<PooledBytes>]) -> Result<()> {
        for chunk in chunks {
            self.check_room(name, chunk.bytes.len())?;
            self.send(chunk.clone())?;
        }
        Ok(())
    }

    /// Sends the next part of the current entry.
    fn send(&mut self, chunk: Arc<PooledBytes>) -> Result<()> {
        self.filled += chunk.bytes.len() as u64;
        self.send_bytes(chunk)?;
        let entry = &self.shards[self.shard].entries[self.entry];
        if self.filled == entry.end - entry.start { self.next_entry() } else { Ok(()) }
    }

    fn send_bytes(&mut self, chunk: Arc<PooledBytes>) -> Result<()> {
        self.summary.bytes += chunk.bytes.len() as u64;
        self.hash.send(WriteOrder::Data(chunk.clone()))?;
        self.disk.send(WriteOrder::Data(chunk))
    }

    fn next_entry(&mut self) -> Result<()> {
        self.entry += 1;
        self.filled = 0;
        if self.entry < self.shards[self.shard].entries.len() {
            return Ok(());
        }
        self.close_shard()?;
        self.shard += 1;
        self.entry = 0;
        self.open_shard()
    }

    /// Skips tensors without elements, which need no push.
    fn skip_empty(&mut self) -> Result<()> {
        while let Some(entry) = self.shards.get(self.shard).and_then(|s| s.entries.get(self.entry))
        {
            if entry.start != entry.end {
                break;
            }
            self.next_entry()?;
        }
        Ok(())
    }

    fn open_shard(&mut self) -> Result<()> {
        let Some(plan) = self.shards.get(self.shard) else { return Ok(()) };
        let (file, header) = (plan.file.clone(), plan.header.clone());
        self.hash.send(WriteOrder::Open(file.clone()))?;
        self.disk.send(WriteOrder::Open(file))?;
        self.send_bytes(self.chunk(header))?;
        if self.shards[self.shard].entries.is_empty() {
            self.close_shard()?;
            self.shard += 1;
        }
        self.skip_empty()
    }

    fn close_shard(&mut self) -> Result<()> {
        self.hash.send(WriteOrder::Close)?;
        self.disk.send(WriteOrder::Close)?;
        self.disk.answer()?;
        let hash = self.hash.answer()?;
        self.summary.hashes.insert(self.shards[self.shard].file.clone(), hash);
        Ok(())
    }

    /// Writes the index if there are several shards, and returns what was written.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if a declared tensor was never pushed; [`Kind::Io`] if writing fails.
    pub fn finish(mut self) -> Result<WriteSummary> {
        if let Some(missing) = self.next_tensor() {
            return Err(
                Error::new(Kind::Mismatch, "a declared tensor was never written").tensor(missing)
            );
        }
        if self.shards.len() > 1 {
            let text = json::to_pretty(&index_json(&self.shards));
            self.dir.write(INDEX_FILE, text.as_bytes())?;
            self.summary.bytes += text.len() as u64;
            self.summary.hashes.insert(INDEX_FILE.to_owned(), sha256_bytes(text.as_bytes()));
        }
        self.summary.hashing = self.hash.stop();
        self.summary.writing = self.disk.stop();
        Ok(std::mem::take(&mut self.summary))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.hash.stop();
        self.disk.stop();
    }
}

/// A pool with all of its buffers.
fn filled_pool() -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
    let pool = channel();
    for _ in 0..BUFFERS {
        let _ = pool.0.send(Vec::with_capacity(BUFFER_BYTES));
    }
    pool
}

fn no_thread(error: std::io::Error) -> Error {
    Error::new(Kind::Io, "cannot start a thread that writes")
        .source(error)
        .remedy("allow more processes (ulimit -u) and address space (ulimit -v)")
}

fn hash_shards(orders: Receiver<WriteOrder>, answers: Sender<Result<String>>) -> Duration {
    let mut hasher = Sha256::new();
    let mut busy = Duration::ZERO;
    for order in orders {
        let start = Instant::now();
        match order {
            WriteOrder::Open(_) => hasher = Sha256::new(),
            WriteOrder::Data(chunk) => hasher.update(&chunk.bytes),
            WriteOrder::Close => {
                let _ = answers.send(Ok(hex(&std::mem::take(&mut hasher).finalize())));
            }
        }
        busy += start.elapsed();
    }
    busy
}

fn write_shards(
    dir: &OpenDir,
    orders: Receiver<WriteOrder>,
    answers: Sender<Result<()>>,
) -> Duration {
    let mut busy = Duration::ZERO;
    let mut shard: Option<OpenShard> = None;
    for order in orders {
        let start = Instant::now();
        let done = match order {
            WriteOrder::Open(name) => OpenShard::create(dir, &name).map(|s| shard = Some(s)),
            WriteOrder::Data(chunk) => shard.as_mut().map_or(Ok(()), |s| s.write(&chunk.bytes)),
            WriteOrder::Close => shard.take().map_or(Ok(()), OpenShard::close).map(|()| {
                let _ = answers.send(Ok(()));
            }),
        };
        busy += start.elapsed();
        if let Err(error) = done {
            // The caller's next order fails, and returns this error.
            let _ = answers.send(Err(error));
            break;
        }
    }
    busy
}

/// A shard being written, with a thread that flushes it as it grows.
struct OpenShard {
    path: PathBuf,
    file: File,
    unflushed: u64,
    flush: Option<SyncSender<()>>,
    flusher: JoinHandle<std::io::Result<()>>,
}

impl OpenShard {
    fn create(dir: &OpenDir, name: &str) -> Result<Self> {
        let (path, file) = (dir.path().join(name), dir.create(name)?);
        let handle =
            file.try_clone().map_err(|e| Error::io("cannot create this shard", &path, e))?;
        let (flush, wanted) = sync_channel::<()>(1);
        let flusher = Builder::new().spawn(move || {
            wanted.into_iter().try_for_each(|()| handle.sync_data())?;
            handle.sync_all()
        });
        let flusher = flusher.map_err(|e| no_thread(e).file(&path))?;
        Ok(Self { path, file, unflushed: 0, flush: Some(flush), flusher })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|e| Error::io("cannot write this shard", &self.path, e))?;
        self.unflushed += bytes.len() as u64;
        if self.unflushed >= FLUSH_EVERY_BYTES {
            self.unflushed = 0;
            // If the queue is full, a waiting flush covers these bytes too.
            let _ = self.flush.as_ref().map(|f| f.try_send(()));
        }
        Ok(())
    }

    fn close(mut self) -> Result<()> {
        self.flush = None;
        let synced = self
            .flusher
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the flushing thread died")));
        synced.map_err(|e| Error::io("cannot write this shard", &self.path, e))
    }
}

#[cfg(test)]
mod tests;
