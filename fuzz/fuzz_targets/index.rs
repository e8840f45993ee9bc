//! The index of a sharded checkpoint. Whatever it says, nothing outside of its directory is opened.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moe_checkpoint::{Checkpoint, Dtype, Entry, INDEX_FILE, encode_header};
use moe_fuzz::{Base, accepted, write};

static BASE: LazyLock<Base> = LazyLock::new(|| {
    let base = Base::of("families/llama/base/model", "model");
    for name in ["a", "b", "c"] {
        let entry = Entry { name: name.into(), dtype: Dtype::U8, shape: vec![], start: 0, end: 1 };
        let shard = [encode_header(&[entry]), vec![7]].concat();
        base.write(&format!("{name}.safetensors"), &shard);
        // Where a path upwards would lead.
        write(format!("{name}.safetensors"), &shard);
    }
    base
});

fuzz_target!(|index: &[u8]| {
    let dir = BASE.dir();
    BASE.write(INDEX_FILE, index);
    let Some(checkpoint) = accepted(Checkpoint::open(&dir)) else { return };
    for file in checkpoint.files() {
        assert_eq!(file.path().parent(), Some(dir.as_path()), "{}", file.path().display());
    }
    assert!(!checkpoint.tensors().is_empty());
});
