//! Hidden states of many tokens, in blocks, in memory or in a scratch file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use moe_checkpoint::{Result, Scratch};
use moe_math::Compute;

use crate::context::Context;

/// Where a sweep keeps the hidden states of its tokens, and how many of them it runs at once.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Approximate number of tokens, in whole sequences, that go through a layer together; None for
    /// all.
    pub block_tokens: Option<usize>,
    /// Directory for a scratch file; None to keep everything in memory.
    pub scratch: Option<PathBuf>,
}

/// Hidden states of a batch, `[tokens, hidden]`.
pub(crate) struct States {
    /// The tokens of each block.
    blocks: Vec<Range<usize>>,
    hidden: usize,
    compute: Compute,
    store: StateStore,
}

enum StateStore {
    Memory(Vec<Option<Tensor>>),
    /// Stores f32 values, row by row.
    File(Scratch),
}

impl States {
    /// Creates storage for `blocks` of tokens. A block must be written before it is read.
    pub fn new(
        blocks: &[Range<usize>],
        hidden: usize,
        scratch: Option<&Path>,
        compute: &Compute,
    ) -> Result<Self> {
        let store = match scratch {
            None => StateStore::Memory(vec![None; blocks.len()]),
            Some(dir) => StateStore::File(Scratch::create(dir)?),
        };
        Ok(Self { blocks: blocks.to_vec(), hidden, compute: compute.clone(), store })
    }

    /// Returns whether all states are in memory.
    pub fn in_memory(&self) -> bool {
        matches!(self.store, StateStore::Memory(_))
    }

    pub fn get(&self, block: usize) -> Result<Tensor> {
        match &self.store {
            StateStore::Memory(blocks) => {
                Ok(blocks[block].clone().expect("a block is written before it is read"))
            }
            StateStore::File(file) => self.read(file, self.blocks[block].clone()),
        }
    }

    pub fn set(&mut self, block: usize, states: Tensor) -> Result<()> {
        let offset = (self.blocks[block].start * self.hidden * 4) as u64;
        match &mut self.store {
            StateStore::Memory(blocks) => blocks[block] = Some(states),
            StateStore::File(file) => {
                let values =
                    states.to_dtype(DType::F32).and_then(|s| s.flatten_all()?.to_vec1::<f32>());
                let values = values.context(|| "hidden states".into())?;
                file.write_at(offset, bytemuck::cast_slice(&values))?;
            }
        }
        Ok(())
    }

    /// Returns the states of `tokens`.
    pub fn rows(&self, tokens: Range<usize>) -> Result<Tensor> {
        let blocks = match &self.store {
            StateStore::File(file) => return self.read(file, tokens),
            StateStore::Memory(blocks) => blocks,
        };
        let overlaps = self.blocks.iter().zip(blocks).filter_map(|(range, block)| {
            let (start, end) = (range.start.max(tokens.start), range.end.min(tokens.end));
            let block = block.as_ref().filter(|_| start < end)?;
            Some(block.narrow(0, start - range.start, end - start))
        });
        let parts = overlaps.collect::<candle_core::Result<Vec<_>>>();
        parts.and_then(|parts| Tensor::cat(&parts, 0)).context(|| "hidden states".into())
    }

    fn read(&self, file: &Scratch, tokens: Range<usize>) -> Result<Tensor> {
        let mut values = vec![0f32; tokens.len() * self.hidden];
        file.read_at(
            (tokens.start * self.hidden * 4) as u64,
            bytemuck::cast_slice_mut(&mut values),
        )?;
        let states = Tensor::from_vec(values, (tokens.len(), self.hidden), &self.compute.device);
        states.and_then(|s| s.to_dtype(self.compute.dtype)).context(|| "hidden states".into())
    }
}

/// Groups consecutive sequences into blocks of about `tokens` tokens, at least one sequence each.
pub(crate) fn blocks(spans: &[Range<usize>], tokens: Option<usize>) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match blocks.last_mut() {
            Some(last) if tokens.is_none_or(|tokens| span.end - last.start <= tokens) => {
                last.end = span.end
            }
            _ => blocks.push(span.clone()),
        }
    }
    blocks
}
