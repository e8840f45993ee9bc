//! Tests that impossible requests are refused with what is wrong and a remedy.

use super::{dense, plan_error};

/// Options, what is wrong with them, and a word of the remedy.
const REFUSED: [(&str, &str, &str); 20] = [
    (
        "experts = 8\ntop-k = 4\ngranularity = 3",
        "multiple of --granularity 3",
        "--experts 9 --top-k 6",
    ),
    (
        "experts = 6\ntop-k = 3\ngranularity = 3",
        "doesn't divide the feed-forward width 512",
        "1, 2, 4, 8",
    ),
    ("experts = 8\ntop-k = 3\ngranularity = 2", "multiple of --granularity 2", "--top-k 4"),
    (
        "experts = 3\ntop-k = 2\ninit = 'partition'",
        "can't be dealt out evenly",
        "--experts as one of 2, 4",
    ),
    ("experts = 4\ntop-k = 2\nrouter = 'kmeans'", "is found on text", "--data"),
    ("experts = 4\ntop-k = 2\nrouter = 'prompts'", "made of prompts", "--prompts"),
    ("experts = 4\ntop-k = 2\nrouter = 'activations'", "--init partition", "--init partition"),
    (
        "experts = 4\ntop-k = 2\nrest = 'average'",
        "--rest average goes with --expert-model",
        "--expert-model",
    ),
    ("experts = 4\ntop-k = 2\nrouter-entropy = 1.0", "--router-entropy 1", "0.9"),
    ("experts = 4\ntop-k = 2\nlayers = '9'", "there are 4", "0 to 3"),
    (
        "experts = 4\ntop-k = 2\nshared-width = 9\ninit = 'partition'",
        "no shared expert",
        "--target",
    ),
    (
        "experts = 4\ntop-k = 2\ninit = 'partition'\ngranularity = 2",
        "deals out the neurons",
        "--granularity",
    ),
    (
        "experts = 4\ntop-k = 2\ngranularity = 2\nrouter = 'zeros'\nrouter-std = 0.0",
        "one shard twice",
        "--router-std",
    ),
    ("experts = 4\ntop-k = 2\nrouter-std = 1e300", "from 0 to 1e6", "--router-std"),
    (
        "experts = 4\ntop-k = 2\ndrop-fraction = 0.3",
        "--drop-fraction goes with --init drop",
        "--init drop",
    ),
    (
        "experts = 4\ntop-k = 2\ninit = 'drop'\ndrop-fraction = 0.0001",
        "less than one neuron",
        "--drop-fraction",
    ),
    ("experts = 4\ntop-k = 2\nrouter-entropy = 0.5", "--router-entropy goes with", "kmeans"),
    ("experts = 4\ntop-k = 2\nshared-experts = 2", "mixtral has no shared expert", "--target"),
    (
        "experts = 500\ntop-k = 2\ninit = 'partition'\ntarget = 'qwen2_moe'",
        "dealt out evenly",
        "--experts as one of 2, 3",
    ),
    (
        "experts = 4\ntop-k = 2\ninit = 'partition'\ntarget = 'qwen2_moe'\nshared-width = 511",
        "511 of them shared",
        "another --shared-width",
    ),
];

#[test]
fn impossible_requests_name_what_and_remedy() {
    let dense = dense();
    for (toml, what, remedy) in REFUSED {
        let error = plan_error(toml, &dense);
        assert!(
            error.contains(what) && error.contains("remedy:") && error.contains(remedy),
            "{toml}: {error}"
        );
    }
}
