use super::*;
use crate::{Checkpoint, Declared, Dtype, plan_shards, sha256_file};

fn declared() -> Vec<Declared> {
    let tensor = |name: &str, shape: &[usize]| Declared {
        name: name.into(),
        dtype: Dtype::U8,
        shape: shape.into(),
    };
    vec![
        tensor("a", &[5 << 20]),
        tensor("empty", &[0, 4]),
        tensor("b", &[3, 7]),
        tensor("c", &[3, 7]),
    ]
}

#[test]
fn pushed_tensors_are_read_back_and_hashed() {
    for max_shard in [1 << 20, 1 << 30] {
        let dir = tempfile::tempdir().unwrap();
        let mut writer =
            Writer::create(dir.path(), plan_shards(&declared(), max_shard).unwrap()).unwrap();
        let a: Vec<u8> = (0..5u32 << 20).map(|i| (i % 251) as u8).collect();
        writer.push("a", &a).unwrap();
        let mut calls = 0;
        writer
            .push_copies(&["b", "c"], 21, |_, buffer| {
                calls += 1;
                buffer.fill(9);
                Ok(())
            })
            .unwrap();
        assert_eq!(calls, 1);
        let summary = writer.finish().unwrap();
        for (file, hash) in &summary.hashes {
            assert_eq!(&sha256_file(&dir.path().join(file)).unwrap(), hash);
        }
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let mut read = vec![0; a.len()];
        checkpoint.tensors()["a"].read_at(0, &mut read).unwrap();
        assert_eq!(read, a);
        assert_eq!(checkpoint.tensors()["empty"].shape(), [0, 4]);
        for name in ["b", "c"] {
            let mut rows = vec![0; 7];
            checkpoint.tensors()[name].at(2).read_at(0, &mut rows).unwrap();
            assert_eq!(rows, [9; 7]);
        }
    }
}

#[test]
fn copies_larger_than_all_buffers_are_written() {
    let bytes = BUFFERS * BUFFER_BYTES + 5;
    let names = ["a", "b", "c"];
    let declared =
        names.map(|name| Declared { name: name.into(), dtype: Dtype::U8, shape: vec![bytes] });
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), plan_shards(&declared, 1 << 30).unwrap()).unwrap();
    let byte = |at: u64| (at % 241) as u8;
    let fill = |offset: u64, buffer: &mut [u8]| {
        buffer.iter_mut().zip(offset..).for_each(|(b, at)| *b = byte(at));
        Ok(())
    };
    writer.push_copies(&names, bytes as u64, fill).unwrap();
    writer.finish().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut read = vec![0; bytes];
    for name in names {
        checkpoint.tensors()[name].read_at(0, &mut read).unwrap();
        assert!(read.iter().zip(0..).all(|(b, at)| *b == byte(at)), "{name}");
    }
}

#[test]
fn order_size_and_completeness_are_enforced() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer =
        Writer::create(dir.path(), plan_shards(&declared(), 1 << 30).unwrap()).unwrap();
    assert_eq!(writer.push("b", &[0; 21]).unwrap_err().kind(), Kind::Mismatch);
    writer.push("a", &vec![0; 5 << 20]).unwrap();
    assert_eq!(writer.push("b", &[0; 22]).unwrap_err().kind(), Kind::Mismatch);
    let message = writer.finish().unwrap_err().to_string();
    assert!(message.contains("never written") && message.contains("tensor: b"), "{message}");
}

#[test]
fn a_directory_that_vanishes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let write = || {
        let mut writer = Writer::create(&gone, plan_shards(&declared(), 1 << 30)?)?;
        writer.push("a", &vec![0; 5 << 20])?;
        writer.push("empty", &[])?;
        writer.push("b", &[0; 21])?;
        writer.push("c", &[0; 21])?;
        // Pushed bytes may still be queued, but finishing fails unless all were written.
        writer.finish()
    };
    assert_eq!(write().unwrap_err().kind(), Kind::Io);
}
