//! A copy of a golden checkpoint, and ways to damage it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// The weights file of an unsharded checkpoint.
pub const SHARD: &str = "model.safetensors";
/// The index file of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint directory that tests may change.
pub struct Checkpoint(PathBuf);

impl Checkpoint {
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The path of the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub fn make_directory(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
    }

    /// Replaces the file `name` by an empty directory.
    pub fn make_directory_of(&self, name: &str) {
        self.remove(name);
        fs::create_dir(self.path(name)).unwrap();
    }

    /// Replaces the file `name` by a link to `target`.
    pub fn make_link_of(&self, name: &str, target: &str) {
        self.remove(name);
        symlink(target, self.path(name)).unwrap();
    }

    /// Cuts the file `name` to `length` bytes, counted from its end if negative.
    pub fn truncate(&self, name: &str, length: i64) {
        self.edit_bytes(name, |bytes| {
            let keep = if length < 0 { bytes.len() as i64 + length } else { length };
            bytes.truncate(usize::try_from(keep).unwrap());
        });
    }

    pub fn edit_bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        edit(&mut bytes);
        self.write(name, bytes);
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut value: Map<String, Value> =
            serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut value);
        self.write(name, serde_json::to_vec(&value).unwrap());
    }

    /// Sets a key of config.json.
    pub fn set(&self, key: &str, value: Value) {
        self.edit_json("config.json", |config| {
            config.insert(key.to_owned(), value);
        });
    }

    /// Takes a key out of config.json.
    pub fn unset(&self, key: &str) {
        self.edit_json("config.json", |config| _ = config.remove(key));
    }

    /// Makes the index say that `shard` holds `tensor`.
    pub fn set_index(&self, tensor: &str, shard: &str) {
        self.edit_json(INDEX, |index| index["weight_map"][tensor] = json!(shard));
    }

    /// Replaces the header of `model.safetensors` by `json`; the data stays.
    pub fn set_header(&self, json: impl AsRef<[u8]>) {
        let mut shard = Shard::read(&self.path(SHARD));
        shard.json = json.as_ref().to_vec();
        shard.write(&self.path(SHARD));
    }

    /// Changes the header of the shard `name`; the data stays.
    pub fn edit_header(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut shard = Shard::read(&self.path(name));
        let mut header = shard.header();
        edit(&mut header);
        shard.json = serde_json::to_vec(&header).unwrap();
        shard.write(&self.path(name));
    }

    /// Moves the range of `tensor` in the header of `model.safetensors`; `to` gets the old start
    /// and end.
    pub fn move_range(&self, tensor: &str, to: impl FnOnce(u64, u64) -> (u64, u64)) {
        self.edit_header(SHARD, |header| {
            let (start, end) = range(&header[tensor]);
            let (start, end) = to(start, end);
            header[tensor]["data_offsets"] = json!([start, end]);
        });
    }

    /// Changes what the header of `model.safetensors` says under `key` of `tensor`.
    pub fn set_entry(&self, tensor: &str, key: &str, value: Value) {
        self.edit_header(SHARD, |header| header[tensor][key] = value);
    }

    /// Adds a tensor without elements to the header of `model.safetensors`.
    pub fn add_empty_tensor(&self, name: &str) {
        let entry = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
        self.edit_header(SHARD, |header| _ = header.insert(name.to_owned(), entry));
    }

    /// Renames `tensor` in `model.safetensors`.
    pub fn rename_tensor(&self, tensor: &str, new: &str) {
        self.edit_header(SHARD, |header| {
            let entry = header.remove(tensor).unwrap();
            header.insert(new.to_owned(), entry);
        });
    }

    /// Overwrites element `index` of the f32 tensor `tensor` of `model.safetensors`.
    pub fn set_f32(&self, tensor: &str, index: usize, value: f32) {
        let path = self.path(SHARD);
        let mut shard = Shard::read(&path);
        let at = range(&shard.header()[tensor]).0 as usize + 4 * index;
        shard.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        shard.write(&path);
    }

    /// Takes a tensor out of `model.safetensors` and closes the gap.
    pub fn remove_tensor(&self, tensor: &str) {
        let path = self.path(SHARD);
        let mut shard = Shard::read(&path);
        let mut header = shard.header();
        let (start, end) = range(&header.remove(tensor).unwrap());
        shard.data.drain(start as usize..end as usize);
        for (name, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            let (from, to) = range(entry);
            assert!(name.as_str() != tensor && (to <= start || from >= end));
            if from >= end {
                entry["data_offsets"] = json!([from - (end - start), to - (end - start)]);
            }
        }
        shard.json = serde_json::to_vec(&header).unwrap();
        shard.write(&path);
    }
}

fn range(entry: &Value) -> (u64, u64) {
    serde_json::from_value(entry["data_offsets"].clone()).unwrap()
}

/// The two parts of a safetensors file.
struct Shard {
    json: Vec<u8>,
    data: Vec<u8>,
}

impl Shard {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Self { json: bytes[8..8 + length].to_vec(), data: bytes[8 + length..].to_vec() }
    }

    fn header(&self) -> Map<String, Value> {
        serde_json::from_slice(&self.json).unwrap()
    }

    fn write(&self, path: &Path) {
        let length = (self.json.len() as u64).to_le_bytes();
        fs::write(path, [&length[..], &self.json, &self.data].concat()).unwrap();
    }
}
