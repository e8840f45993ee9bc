//! Attention: scores of queries and keys, and weighted sums of values.

use std::ops::Range;

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_math::ops;

/// Number of queries that are scored at once: scores take heads × this × keys.
const QUERY_BLOCK: usize = 256;

/// A function that is called with each input of projections, and the index of the first of
/// [`moe_model::Attention::linears`] that reads it.
pub(crate) type Seen<'a> = &'a mut dyn FnMut(usize, &Tensor);

/// How scores are computed.
pub(crate) struct Scores {
    /// Factor of the scores.
    pub scale: f64,
    /// Number of tokens that a token attends to, itself included; None for all.
    pub window: Option<usize>,
}

impl Scores {
    /// Runs attention on one sequence: `q` is `[heads, tokens, width]`, `k` `[kv_heads, tokens,
    /// width]` and `v` `[kv_heads, tokens, value]`. Returns `[tokens, heads · value]`.
    pub fn attend(&self, q: Tensor, k: &Tensor, v: &Tensor) -> CandleResult<Tensor> {
        let (heads, tokens, width) = q.dims3()?;
        let kv_heads = v.dim(0)?;
        let scaled = (q.reshape((kv_heads, heads / kv_heads, tokens, width))? * self.scale)?;
        drop(q);
        let blocks = (0..tokens).step_by(QUERY_BLOCK).map(|first| {
            self.attend_block(&scaled, k, v, first..(first + QUERY_BLOCK).min(tokens))
        });
        Tensor::cat(&blocks.collect::<CandleResult<Vec<_>>>()?, 0)
    }

    /// Runs attention for the queries `block` of `q`, which is `[kv_heads, groups, tokens, width]`
    /// and scaled.
    fn attend_block(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        block: Range<usize>,
    ) -> CandleResult<Tensor> {
        let (kv_heads, groups, _, width) = q.dims4()?;
        let queries = block.len();
        // The window of the first query determines which keys no query of the block can see.
        let start = self.window.map_or(0, |w| (block.start + 1).saturating_sub(w));
        let keys = start..block.end;
        let q = q.narrow(2, block.start, queries)?.contiguous()?;
        let q = q.reshape((kv_heads, groups * queries, width))?;
        let k = k.narrow(1, start, keys.len())?;
        let v = v.narrow(1, start, keys.len())?;
        // In long sequences, scores take most of the memory, so each version of them is dropped
        // early.
        let scores = q
            .matmul(&k.transpose(1, 2)?)?
            .reshape((kv_heads, groups, queries, keys.len()))?
            .to_dtype(DType::F32)?
            .broadcast_add(&mask(block, keys.clone(), self.window, &q)?)?;
        let weights = ops::softmax(&scores)?;
        drop(scores);
        let weights = weights.to_dtype(v.dtype())?;
        let weights = weights.reshape((kv_heads, groups * queries, keys.len()))?;
        let out = weights.matmul(&v.contiguous()?)?;
        let (heads, value) = (kv_heads * groups, v.dim(2)?);
        out.reshape((heads, queries, value))?.transpose(0, 1)?.reshape((queries, heads * value))
    }
}

/// Returns 0 where query i sees key j, and −∞ elsewhere: `[queries, keys]` on the device of `like`.
fn mask(
    queries: Range<usize>,
    keys: Range<usize>,
    window: Option<usize>,
    like: &Tensor,
) -> CandleResult<Tensor> {
    let (rows, columns) = (queries.len(), keys.len());
    let mut values = Vec::with_capacity(rows * columns);
    for i in queries {
        for j in keys.clone() {
            let is_visible = j <= i && window.is_none_or(|w| j + w > i);
            values.push(if is_visible { 0.0 } else { f32::NEG_INFINITY });
        }
    }
    Tensor::from_vec(values, (rows, columns), like.device())
}
