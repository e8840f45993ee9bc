//! Embeds tokens.

use candle_core::Tensor;
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_model::Weight;

use crate::context::Context;
use crate::loader::Loader;

/// Returns the rows `ids` of the embedding `table`, as `[ids, hidden]`. Each distinct row is read
/// once.
///
/// # Errors
/// Errors of reading the table and of the device.
pub fn embed(table: &Weight, ids: &[u32], compute: &Compute) -> Result<Tensor> {
    embed_with(Loader::new(compute), table, ids)
}

/// As [`embed`], with the overrides and shared weights of `loader`.
pub(crate) fn embed_with(loader: Loader<'_>, table: &Weight, ids: &[u32]) -> Result<Tensor> {
    let mut unique = ids.to_vec();
    unique.sort_unstable();
    unique.dedup();
    let row =
        |id: &u32| unique.binary_search(id).expect("every id is among the unique ones") as u32;
    let rows: Vec<u32> = ids.iter().map(row).collect();
    let read = loader.rows(table, &unique)?;
    let select =
        || read.index_select(&Tensor::from_vec(rows, ids.len(), &loader.compute.device)?, 0);
    select().context(|| "the embedding".into())
}
