//! Sample options of every pass, for tests that run all of them.

use moe_passes::PASSES;

/// A pass and options for it.
pub struct Sample {
    /// The name of the pass.
    pub pass: &'static str,
    /// The model of `golden/models` that it converts.
    pub model: &'static str,
    /// Options for that model, apart from text. The pass works for long enough to be stopped
    /// midway.
    pub options: &'static str,
    /// Whether it needs text with these options.
    pub needs_text: bool,
    /// Options for any model that it takes, with the text `ids.jsonl`.
    pub for_any_model: &'static str,
}

/// A sample of each pass.
pub const SAMPLES: [Sample; 6] = [
    Sample {
        pass: "upcycle",
        model: "dense",
        options: "--experts 8 --top-k 2 --noise-std 0.01",
        needs_text: false,
        for_any_model: "--experts 2 --top-k 1",
    },
    Sample {
        pass: "prune",
        model: "moe",
        options: "--experts 12 --criterion reap",
        needs_text: true,
        for_any_model: "--keep 1 --data ids.jsonl",
    },
    Sample {
        pass: "merge",
        model: "moe",
        options: "--experts 12 --algorithm ream",
        needs_text: true,
        for_any_model: "--keep 1 --data ids.jsonl",
    },
    Sample {
        pass: "quantize",
        model: "moe",
        options: "--per-expert --scheme w4a16 --group-size 32",
        needs_text: true,
        for_any_model: "--scheme fp8-block",
    },
    Sample {
        pass: "distill",
        model: "moe",
        options: "--steps 4 --down measured",
        needs_text: true,
        for_any_model: "--data ids.jsonl --data-tokens 16384 --steps 1",
    },
    Sample {
        pass: "heal",
        model: "moe",
        options: "--steps 4 --eval-every 1 --batch-tokens 512",
        needs_text: true,
        for_any_model: "--train all --data ids.jsonl --steps 1",
    },
];

/// The sample of `pass`.
#[track_caller]
pub fn sample(pass: &str) -> &'static Sample {
    let found = SAMPLES.iter().find(|sample| sample.pass == pass);
    found.unwrap_or_else(|| panic!("add {pass} to SAMPLES in tests/it/common/passes.rs"))
}

/// Checks that the list in `file`, which has these `passes`, has every pass of the table.
#[track_caller]
pub fn assert_has_every_pass<'p>(file: &str, passes: impl IntoIterator<Item = &'p str>) {
    let listed: Vec<&str> = passes.into_iter().collect();
    let missing: Vec<&str> =
        PASSES.iter().map(|info| info.name).filter(|pass| !listed.contains(pass)).collect();
    assert!(missing.is_empty(), "the list in {file} lacks {missing:?}");
}
