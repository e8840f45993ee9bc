//! Divides declared tensors into shard files before the first byte is written.

use std::collections::HashSet;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::header::{Entry, MAX_HEADER_BYTES, MAX_TENSORS, data_bytes, encode_header};
use crate::index::shard_file_name;

/// A tensor that will be written: its name, element type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The name in the output.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// One output file, fixed down to the last header byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    /// Name of the file.
    pub file: String,
    /// The file's tensors, in order.
    pub entries: Vec<Entry>,
    /// The length, JSON and padding.
    pub header: Vec<u8>,
}

impl ShardPlan {
    /// Bytes of tensor data in this file.
    pub fn data_bytes(&self) -> u64 {
        self.entries.last().map_or(0, |e| e.end)
    }
}

/// Divides `declared`, in its order, into shards of at most `max_shard_bytes` of data.
///
/// A tensor is never split, so a larger one gets its own shard. A tensor that would not start at a
/// multiple of its element size opens a new shard, since loaders view the bytes in place.
///
/// # Errors
/// [`Kind::Mismatch`] if a name is declared twice or a shape has no size in bytes;
/// [`Kind::Unsupported`] if a header would be larger than readers accept.
pub fn plan_shards(declared: &[Declared], max_shard_bytes: u64) -> Result<Vec<ShardPlan>> {
    let mut names = HashSet::with_capacity(declared.len());
    let mut divided = ShardDivision { max_shard_bytes, shards: vec![Vec::new()], position: 0 };
    for tensor in declared {
        if !names.insert(tensor.name.as_str()) {
            return Err(Error::new(Kind::Mismatch, "the output would hold this tensor twice")
                .tensor(&tensor.name));
        }
        divided.push(tensor)?;
    }
    let count = divided.shards.len();
    let shards = divided.shards.into_iter().enumerate();
    shards.map(|(number, entries)| planned(shard_file_name(number, count), entries)).collect()
}

/// Tensors divided into shards so far.
struct ShardDivision {
    max_shard_bytes: u64,
    /// Shards so far; tensors are added to the last.
    shards: Vec<Vec<Entry>>,
    /// Bytes of data in the last shard.
    position: u64,
}

impl ShardDivision {
    fn push(&mut self, tensor: &Declared) -> Result<()> {
        let Declared { name, dtype, shape } = tensor;
        let Some(bytes) = data_bytes(*dtype, shape) else {
            let what = format!("shape {shape:?} of {dtype} has no size");
            return Err(Error::new(Kind::Mismatch, what).tensor(name));
        };
        let element_bytes = (dtype.bitsize() as u64 / 8).max(1);
        if self.is_full_for(bytes) || !self.position.is_multiple_of(element_bytes) {
            self.shards.push(Vec::new());
            self.position = 0;
        }
        let end = self.position + bytes;
        let entry = Entry {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            start: self.position,
            end,
        };
        self.position = end;
        self.shards.last_mut().expect("there is always a shard").push(entry);
        Ok(())
    }

    /// Whether the last shard has no room for another tensor of `bytes` bytes.
    fn is_full_for(&self, bytes: u64) -> bool {
        self.position > 0 && self.position.saturating_add(bytes) > self.max_shard_bytes
            || self.shards.last().is_some_and(|shard| shard.len() == MAX_TENSORS)
    }
}

fn planned(file: String, entries: Vec<Entry>) -> Result<ShardPlan> {
    let header = encode_header(&entries);
    if header.len() as u64 > MAX_HEADER_BYTES {
        let what = "too many tensors for one shard's header";
        return Err(Error::new(Kind::Unsupported, what).remedy("lower --max-shard-size"));
    }
    Ok(ShardPlan { file, entries, header })
}

/// The content of `model.safetensors.index.json` for these shards.
pub(crate) fn index_json(shards: &[ShardPlan]) -> Value {
    let weight_map: std::collections::BTreeMap<&str, &str> = shards
        .iter()
        .flat_map(|s| s.entries.iter().map(|e| (e.name.as_str(), s.file.as_str())))
        .collect();
    let total: u64 = shards.iter().map(ShardPlan::data_bytes).sum();
    json!({ "metadata": { "total_size": total }, "weight_map": weight_map })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(name: &str, dtype: Dtype, shape: &[usize]) -> Declared {
        Declared { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn shards_respect_the_limit_and_keep_the_order() {
        let tensors: Vec<_> =
            (0..5).map(|i| declared(&format!("t{i}"), Dtype::BF16, &[10, 3])).collect();
        let shards = plan_shards(&tensors, 130).unwrap();
        let sizes: Vec<_> = shards.iter().map(|s| s.entries.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
        assert_eq!(shards[2].file, "model-00003-of-00003.safetensors");
    }

    #[test]
    fn a_tensor_larger_than_the_limit_gets_its_own_shard() {
        let tensors = [declared("small", Dtype::U8, &[1]), declared("large", Dtype::U8, &[100])];
        assert_eq!(plan_shards(&tensors, 10).unwrap().len(), 2);
    }

    #[test]
    fn every_tensor_starts_at_a_multiple_of_its_element_size() {
        let tensors = [declared("odd", Dtype::BF16, &[3]), declared("float", Dtype::F32, &[1])];
        let shards = plan_shards(&tensors, 1 << 20).unwrap();
        assert_eq!(shards.len(), 2);
        assert_eq!(shards[1].entries[0].start, 0);
    }

    #[test]
    fn a_duplicate_name_is_refused() {
        let tensors = [declared("a", Dtype::U8, &[1]), declared("a", Dtype::U8, &[1])];
        assert_eq!(plan_shards(&tensors, 10).unwrap_err().kind(), Kind::Mismatch);
    }
}
