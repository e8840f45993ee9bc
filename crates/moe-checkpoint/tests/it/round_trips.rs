//! What is written is read back: headers, shards with their index, manifests, and a config's
//! description of quantized weights.

use std::collections::BTreeMap;

use moe_checkpoint::quantization::{
    Blocks, CompressedTensors, Integers, QUANTIZATION_KEY, Quantization, Scheme, SchemeGroup,
    Target,
};
use moe_checkpoint::{
    CONFIG_FILE, Checkpoint, Declared, Dtype, Entry, MANIFEST_FILE, Manifest, Writer,
    encode_header, parse_header, plan_shards, sha256_bytes,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::json;

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![
        Dtype::BOOL,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8_E4M3,
        Dtype::BF16,
        Dtype::F16,
        Dtype::I32,
        Dtype::F32,
        Dtype::I64,
        Dtype::F64,
    ])
}

/// A name that a file may have: anything but control characters.
fn name() -> impl Strategy<Value = String> {
    "[^\\pC]{1,12}"
}

/// Tensors of any type and shape, including empty ones, in order of their names.
fn tensors() -> impl Strategy<Value = Vec<Declared>> {
    btree_map(name(), (dtype(), vec(0..5usize, 0..4)), 1..12).prop_map(|tensors| {
        tensors.into_iter().map(|(name, (dtype, shape))| Declared { name, dtype, shape }).collect()
    })
}

fn bytes(tensor: &Declared) -> usize {
    tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8
}

/// Bytes that distinguish tensors and positions.
fn content(tensor: &Declared, index: usize) -> Vec<u8> {
    (0..bytes(tensor)).map(|i| (i * 7 + index) as u8).collect()
}

proptest! {
    #[test]
    fn headers(tensors in tensors()) {
        let mut end = 0;
        let entry = |tensor: &Declared| {
            let start = end;
            end += bytes(tensor) as u64;
            Entry { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone(), start, end }
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        let header = encode_header(&entries);
        let by_name = |mut entries: Vec<Entry>| {
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            entries
        };
        // Empty tensors begin where others do, so only names distinguish them.
        prop_assert_eq!(by_name(parse_header(&header[8..], end).unwrap()), by_name(entries.clone()));
        let file = [header, vec![0; end as usize]].concat();
        let theirs = SafeTensors::deserialize(&file).unwrap();
        for entry in entries {
            let view = theirs.tensor(&entry.name).unwrap();
            prop_assert_eq!((view.dtype(), view.shape()), (entry.dtype, entry.shape.as_slice()));
        }
    }

    /// A header that is cut, lengthened or changed in one byte is either read or refused; nothing
    /// else happens.
    #[test]
    fn damaged_headers(tensors in tensors(), at in any::<prop::sample::Index>(), byte: u8, data_len in 0..200u64) {
        let entry = |t: &Declared| Entry { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), start: 0, end: 8 };
        let mut json = encode_header(&tensors.iter().map(entry).collect::<Vec<_>>()).split_off(8);
        let at = at.index(json.len());
        json[at] = byte;
        for json in [&json[..], &json[..at]] {
            if let Ok(entries) = parse_header(json, data_len) {
                prop_assert_eq!(entries.last().map_or(0, |e| e.end), data_len);
            }
        }
    }

    #[test]
    fn manifests(names in btree_set("[^/\\pC]{1,20}", 0..20)) {
        let plain = names.into_iter().filter(|name| ![".", ".."].contains(&name.as_str()));
        let manifest = Manifest { files: plain.map(|name| { let hash = sha256_bytes(name.as_bytes()); (name, hash) }).collect() };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST_FILE), manifest.to_text()).unwrap();
        prop_assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest));
    }

    #[test]
    fn quantizations(bits in prop::sample::select(Integers::WIDTHS.to_vec()), group in prop::option::of(1..4096usize),
                     symmetric: bool, block in prop::option::of([1..512usize, 1..512]), layer in 0..100usize) {
        let integers = Scheme::Integers(Integers { bits, group, symmetric });
        let floats = Scheme::Fp8(block.map_or(Blocks::Rows, Blocks::Of));
        let of_layer = Target::parse(&format!(r"re:.*layers\.{layer}\.")).unwrap();
        let groups = vec![SchemeGroup::linear(integers), SchemeGroup { targets: vec![of_layer], ..SchemeGroup::linear(floats) }];
        let said = Quantization::Compressed(CompressedTensors { groups, ignore: vec![] });
        let config = json!({ QUANTIZATION_KEY: said.declared(&["lm_head".to_owned()], &[]) });
        let read = Quantization::read(config.as_object().unwrap(), CONFIG_FILE.as_ref()).unwrap().unwrap();
        prop_assert_eq!(read.scheme("lm_head"), None);
        let module = |layer: usize| format!("model.layers.{layer}.mlp.experts.0.up_proj");
        prop_assert_eq!(read.scheme(&module(layer)), Some(floats));
        prop_assert_eq!(read.scheme(&module(layer + 1)), Some(integers));
    }
}

proptest! {
    // Each case writes and syncs some files.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn shards_and_their_index(tensors in tensors(), max_shard_bytes in 1..400u64) {
        let dir = tempfile::tempdir().unwrap();
        let shards = plan_shards(&tensors, max_shard_bytes).unwrap();
        for shard in &shards {
            prop_assert!(shard.data_bytes() <= max_shard_bytes || shard.entries.iter().filter(|e| e.end > e.start).count() == 1);
        }
        let mut writer = Writer::create(dir.path(), shards).unwrap();
        for (index, tensor) in tensors.iter().enumerate() {
            writer.push(&tensor.name, &content(tensor, index)).unwrap();
        }
        writer.finish().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE), "{}").unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let wanted: BTreeMap<_, _> = tensors.iter().enumerate().map(|(i, t)| (&t.name, (t, content(t, i)))).collect();
        prop_assert_eq!(checkpoint.tensors().keys().collect::<Vec<_>>(), wanted.keys().copied().collect::<Vec<_>>());
        for (name, found) in checkpoint.tensors() {
            let (tensor, content) = &wanted[name];
            let mut bytes = vec![0; found.bytes() as usize];
            found.read_at(0, &mut bytes).unwrap();
            prop_assert_eq!((found.dtype(), found.shape(), &bytes), (tensor.dtype, tensor.shape.as_slice(), content));
        }
    }
}
