//! A plan of pruning that somebody has edited, for a model of two layers.
#![no_main]

use std::sync::LazyLock;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use moe_fuzz::{Base, accepted, options, write};
use moe_passes::PruneOptions;
use moe_pipeline::plan;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    pass: PruneOptions,
}

static PASS: LazyLock<PruneOptions> = LazyLock::new(|| Arguments::parse_from([""]).pass);
static BASE: LazyLock<Base> = LazyLock::new(|| Base::of("families/qwen3_moe/bias/model", "model"));

fuzz_target!(|input: &[u8]| {
    let path = write("plan.json", input);
    let pass = PruneOptions { plan: Some(path), ..PASS.clone() };
    let Some(planned) =
        accepted(plan(&[&pass], 1, false, &BASE.dir(), &BASE.dir().with_file_name("output"), &options()))
    else {
        return;
    };
    assert!(!planned.shards.is_empty());
});
