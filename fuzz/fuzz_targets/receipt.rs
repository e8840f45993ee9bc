//! What a finished output says of itself: `moe-convert.json`, and behind a NUL `SHA256SUMS`, as
//! `--resume` and `verify` read them.
#![no_main]

use std::sync::LazyLock;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use moe_checkpoint::{MANIFEST_FILE, Manifest};
use moe_fuzz::{Base, accepted, options};
use moe_passes::UpcycleOptions;
use moe_pipeline::{FoundResult, Quiet, RECEIPT_FILE, find_result, verify};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pass: UpcycleOptions,
}

static SOURCE: LazyLock<Base> = LazyLock::new(|| Base::of("families/qwen3/base/model", "source"));
static OUTPUT: LazyLock<Base> = LazyLock::new(|| Base::of("families/mixtral/sliding/model", "output"));
static PASS: LazyLock<UpcycleOptions> =
    LazyLock::new(|| Arguments::parse_from(["", "--experts", "2", "--top-k", "1"]).pass);

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    OUTPUT.write(RECEIPT_FILE, &input[..end]);
    OUTPUT.write(MANIFEST_FILE, input.get(end + 1..).unwrap_or_default());
    // It is the output of no pass.
    let found = accepted(find_result(&[&*PASS], &SOURCE.dir(), &OUTPUT.dir(), &options()));
    assert_ne!(found, Some(FoundResult::Same));
    accepted(verify(&OUTPUT.dir(), &Quiet));
    let Some(manifest) = accepted(Manifest::read(&OUTPUT.dir())).flatten() else { return };
    OUTPUT.write(MANIFEST_FILE, manifest.to_text().as_bytes());
    assert_eq!(Manifest::read(&OUTPUT.dir()).expect("what is written is read"), Some(manifest));
});
