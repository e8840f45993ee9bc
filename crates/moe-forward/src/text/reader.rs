//! A text's bytes by position, through one block that is kept.

use std::ops::Range;

use moe_checkpoint::Result;

use super::bytes::TextBytes;

/// As much is read at once.
const BLOCK_BYTES: u64 = 64 << 10;

/// Reads a text wherever it is asked to.
pub(super) struct TextReader<'a> {
    pub text: &'a TextBytes,
    block: Vec<u8>,
    at: u64,
}

impl<'a> TextReader<'a> {
    pub fn new(text: &'a TextBytes) -> Self {
        Self { text, block: Vec::new(), at: 0 }
    }

    /// The bytes of `range`, which lies within the text.
    pub fn bytes(&mut self, range: Range<u64>) -> Result<&[u8]> {
        let held = self.at..self.at + self.block.len() as u64;
        if !(held.start <= range.start && range.end <= held.end) {
            let end = range.end.max(range.start + BLOCK_BYTES).min(self.text.len()).max(range.end);
            // Emptied first, so that a failure leaves nothing that is taken for the text.
            self.block.clear();
            let mut block = vec![0; (end - range.start) as usize];
            self.text.read_at(range.start, &mut block)?;
            (self.block, self.at) = (block, range.start);
        }
        let start = (range.start - self.at) as usize;
        Ok(&self.block[start..start + (range.end - range.start) as usize])
    }

    /// What there is of a block from `at` on, and not beyond `end`; empty at the end.
    pub fn block(&mut self, at: u64, end: u64) -> Result<&[u8]> {
        let held = self.at..self.at + self.block.len() as u64;
        let end = end
            .min(if held.contains(&at) { held.end } else { at + BLOCK_BYTES })
            .min(self.text.len());
        self.bytes(at..end.max(at))
    }

    /// Where the line ends that `at` lies in: at its line break, or at the end of the text.
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

    /// Where the line begins that `at` lies in.
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
