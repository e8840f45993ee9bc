//! What fuzz targets share: a limit on memory, a place for files, checkpoints with small weights,
//! and what every error must be.

mod bounded;

pub use bounded::allow;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use moe_checkpoint::{CONFIG_FILE, Result};
use moe_forward::{Clock, TokenizeOptions};
use moe_math::Compute;
use moe_pipeline::{ByteSize, ConvertOptions};
use serde_json::Value;
use tempfile::TempDir;

/// Where this process writes; `scripts/fuzz` lets it lie in memory, and removes it.
static SCRATCH: LazyLock<TempDir> =
    LazyLock::new(|| TempDir::new().expect("a directory for scratch files"));

/// Writes the scratch file `name`, which may lie in a directory of a checkpoint there.
pub fn write(name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
    let path = SCRATCH.path().join(name);
    fs::write(&path, content).expect("a scratch file is written");
    path
}

/// What a parser made of an input. Where it refused it, it must have said what is wrong, where, and
/// what to do about it, in a message that a terminal shows as it is.
pub fn accepted<T>(result: Result<T>) -> Option<T> {
    result
        .map_err(|error| {
            let message = error.to_string();
            for part in ["\n  file:   ", "\n  remedy: "] {
                assert!(message.contains(part), "no {part:?} in {message}");
            }
            assert!(message.len() < 20_000, "a message of {} bytes", message.len());
            assert!(
                !message.contains(|c: char| c.is_control() && !"\n\t".contains(c)),
                "{message:?}"
            );
        })
        .ok()
}

/// Panics of which the program makes errors don't end the process, as libFuzzer's hook has it of
/// all.
pub fn let_caught_panics_pass() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !moe_forward::panic_is_caught() {
            usual(panic);
        }
    }));
}

/// A golden checkpoint, copied to a scratch directory, whose files can be replaced.
pub struct Base {
    pub name: &'static str,
    pub config: Value,
}

impl Base {
    /// The checkpoint in `golden/<golden>`, as the scratch directory `name`.
    pub fn of(golden: &str, name: &'static str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(golden);
        let dir = SCRATCH.path().join(name);
        fs::create_dir(&dir).expect("a scratch directory is made");
        // Not as a link: those that lead out of a model's folder are refused.
        fs::copy(from.join("model.safetensors"), dir.join("model.safetensors"))
            .expect("goldens have weights");
        let config = fs::read(from.join(CONFIG_FILE)).expect("goldens have a config");
        fs::write(dir.join(CONFIG_FILE), &config).expect("a config is written");
        Self { name, config: serde_json::from_slice(&config).expect("a golden's config is JSON") }
    }

    /// Where it is.
    pub fn dir(&self) -> PathBuf {
        SCRATCH.path().join(self.name)
    }

    /// Replaces or adds a file.
    pub fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        write(Path::new(self.name).join(file), content)
    }
}

/// Those of the checkpoints in `golden/` that are quantized, one of each encoding.
pub fn quantized_bases() -> Vec<Base> {
    let bases = [
        ("families/deepseek_v3/fp8/model", "block-fp8"),
        ("quantize/checkpoints/qwen3_moe.fp8", "compressed-fp8"),
        ("quantize/checkpoints/qwen3_moe.w4", "compressed-w4"),
        ("quantize/checkpoints/mixtral.w8", "compressed-w8"),
    ];
    bases.map(|(golden, name)| Base::of(golden, name)).into()
}

/// How little text becomes tokens of the base that targets on text share.
pub const TOKENIZED: TokenizeOptions = TokenizeOptions {
    sequence_length: 8,
    vocab: 101,
    max_tokens: Some(64),
    pack: true,
    sample: Some(1),
    memory_bytes: None,
    room: None,
    clock: Clock::SYSTEM,
};

/// How a pass is planned: on the CPU, with nothing measured.
pub fn options() -> ConvertOptions {
    ConvertOptions {
        overwrite: true,
        resume: true,
        max_shard_size: ByteSize(1 << 30),
        probe_tokens: 0,
        compute: Compute::cpu(),
        memory_budget: None,
    }
}
