//! Reads a text's bytes by position, and keeps one block.

use std::ops::Range;

use moe_checkpoint::Result;

use super::bytes::TextBytes;

/// Number of bytes that are read at a time.
const BLOCK_BYTES: u64 = 64 << 10;

/// Reads a text at any position.
pub(super) struct TextReader<'a> {
    pub text: &'a TextBytes,
    block: Vec<u8>,
    at: u64,
}

impl<'a> TextReader<'a> {
    pub fn new(text: &'a TextBytes) -> Self {
        Self { text, block: Vec::new(), at: 0 }
    }

    /// Returns the bytes of `range`, which must lie within the text.
    pub fn bytes(&mut self, range: Range<u64>) -> Result<&[u8]> {
        let held = self.at..self.at + self.block.len() as u64;
        if !(held.start <= range.start && range.end <= held.end) {
            let end = range.end.max(range.start + BLOCK_BYTES).min(self.text.len()).max(range.end);
            // Emptied first, so that after a failure nothing stale is returned.
            self.block.clear();
            let mut block = vec![0; (end - range.start) as usize];
            self.text.read_at(range.start, &mut block)?;
            (self.block, self.at) = (block, range.start);
        }
        let start = (range.start - self.at) as usize;
        Ok(&self.block[start..start + (range.end - range.start) as usize])
    }

    /// Returns the rest of a block from `at` on, but not beyond `end`; empty at the end.
    pub fn block(&mut self, at: u64, end: u64) -> Result<&[u8]> {
        let held = self.at..self.at + self.block.len() as u64;
        let end = end
            .min(if held.contains(&at) { held.end } else { at + BLOCK_BYTES })
            .min(self.text.len());
        self.bytes(at..end.max(at))
    }

    /// Returns the end of the line that contains `at`: the position of its line break, or the end
    /// of the text.
    pub fn line_end(&mut self, mut at: u64) -> Result<u64> {
        loop {
            let block = self.block(at, u64::MAX)?;
            if block.is_empty() {
                return Ok(at);
            }
            match memchr::memchr(b'\n', block) {
                Some(found) => return Ok(at + found as u64),
                None => at += block.len() as u64,
            }
        }
    }

    /// Returns the position where the line that contains `at` begins.
    pub fn line_start(&mut self, mut at: u64) -> Result<u64> {
        while at > 0 {
            let before = at.saturating_sub(BLOCK_BYTES);
            match memchr::memrchr(b'\n', self.bytes(before..at)?) {
                Some(found) => return Ok(before + found as u64 + 1),
                None => at = before,
            }
        }
        Ok(0)
    }
}
