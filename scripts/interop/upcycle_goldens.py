"""Upcycles every dense golden with several options, and some under edited configs, for check.py.

usage: upcycle_goldens.py OUT_DIR      from the root of the repository; writes OUT_DIR/cases.json

A new option is a line in MORE; one that every model of a family should have, an entry in OPTIONS."""
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

FAMILIES = pathlib.Path("golden/families")
BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
EIGHT, FIVE = "--experts 8 --top-k 2", "--experts 5 --top-k 3"
NOT_NORMALISED = f"{EIGHT} --norm-topk-prob false --router zeros"
OPTIONS = {
    "llama": [EIGHT, FIVE],
    "mistral": [EIGHT, FIVE],
    "qwen2": [f"{e} --shared-fraction {s}" for e in (EIGHT, FIVE) for s in (0, 0.5, 1)]
    + [NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros --shared-fraction 0"],
    "qwen3": [EIGHT, FIVE, NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros"],
}
# What transformers 4.57's own reading of the target family lacks; no config key can say it.
WINDOWS = "qwen2_moe there ignores layer_types: it masks every layer alike, and decoding through the cache differs"
OLDER_CANNOT = {
    "qwen2/sliding": WINDOWS,
    "qwen2/sliding_old": WINDOWS,
    "qwen2/all_slide": WINDOWS,
    "qwen2/tied": "qwen2_moe there wants head_dim = hidden_size / heads",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "high_freq_factor": 2.0, "low_freq_factor": 1.0}
LEFTOVER = dict(decoder_sparse_step=2, mlp_only_layers=[0], num_experts=3, num_experts_per_tok=1, norm_topk_prob=False,
                moe_intermediate_size=7, shared_expert_intermediate_size=3)
# Configs as people have them: (name, golden whose weights and tokens they take, keys to change or, with ..., to drop).
EDITS = [
    ("llama/null_scaling_yarn", "llama/yarn", dict(rope_scaling=None)),
    ("llama/empty_scaling_linear", "llama/linear", dict(rope_scaling={})),
    ("llama/no_theta", "llama/linear_old", dict(rope_theta=..., rope_scaling=...)),
    ("llama/default_type", "llama/linear_old", dict(rope_scaling={"type": "default"})),
    ("llama/top_original", "llama/llama3_old", dict(original_max_position_embeddings=16, rope_scaling=LLAMA3)),
    ("llama/top_original_wins", "llama/llama3_old", dict(original_max_position_embeddings=24)),
    ("llama/yarn_null_factor", "llama/yarn_old", dict(rope_scaling=YARN | {"factor": None})),
    ("llama/yarn_theta_inside", "llama/yarn_old", dict(rope_theta=..., rope_scaling=YARN | {"rope_theta": 20.0})),
    ("llama/yarn_both_types", "llama/yarn_old", dict(rope_scaling=YARN | {"type": "yarn"})),
    ("llama/null_heads", "llama/unknown_key", dict(head_dim=None, num_key_value_heads=None)),
    ("llama/defaults", "llama/linear_old", dict(hidden_act=..., rms_norm_eps=..., tie_word_embeddings=..., torch_dtype=...)),
    ("llama/tokens", "llama/linear_old", dict(eos_token_id=[2, 3], bos_token_id=..., pad_token_id=...)),
    ("llama/leftovers", "llama/linear_old", LEFTOVER | dict(sliding_window=4, layer_types=["full_attention"] * 2)),
    ("mistral/no_window_key", "mistral/old", dict(sliding_window=...)),
    ("qwen2/all_slide", "qwen2/sliding_old", dict(max_window_layers=0)),
    ("qwen2/none_slide", "qwen2/sliding_old", dict(max_window_layers=3)),
    ("qwen2/switched_off", "qwen2/sliding_old", dict(use_sliding_window=False)),
    ("qwen2/leftovers", "qwen2/base", LEFTOVER),
    ("qwen3/all_slide", "qwen3/layer_types", dict(layer_types=["sliding_attention"] * 3)),
    ("qwen3/leftovers", "qwen3/base", LEFTOVER),
]
# What one golden shows as well as all: (name, golden, options).
MORE = [
    ("llama/sharded", "llama/linear_old", f"{EIGHT} --max-shard-size 60000"),
    ("llama/top_1", "llama/linear_old", "--experts 4 --top-k 1"),
    ("llama/all", "llama/linear_old", "--experts 4 --top-k 4"),
    ("llama/one", "llama/linear_old", "--experts 1 --top-k 1"),
    ("qwen3/many", "qwen3/base", "--experts 160 --top-k 8"),
    ("llama/noise", "llama/base", f"{EIGHT} --noise-std 0.05 --noise-fraction 0.5"),
    ("qwen2/noise", "qwen2/base", f"{FIVE} --noise-std 0.05"),
    ("qwen3/noise", "qwen3/base", f"{FIVE} --noise-std 0.05"),
]
# Names of what the target family cannot hold.
REFUSED = {"llama/bias", "qwen3/layer_types"}


def main(out):
    out = pathlib.Path(out)
    cases, wrong = [], []
    work = [(source, options) for source in goldens() for options in OPTIONS[source[0].split("/")[0]]]
    work += [(edited(out, *edit), EIGHT) for edit in EDITS]
    work += [((name, *golden(of)[1:]), options) for name, of, options in MORE]
    for number, ((name, source, tokens, dense), options) in enumerate(work):
        to = out / name.replace("/", "-") / str(number)
        to.parent.mkdir(parents=True, exist_ok=True)
        run = moe_convert("upcycle", source, "-o", to, *shlex.split(options), "--json", "--quiet")
        if name in REFUSED or run.returncode:
            if (run.returncode == 1) != (name in REFUSED):
                wrong.append(f"{name} {options}: exit code {run.returncode}: {run.stderr.strip()}")
            continue
        receipt = json.loads(run.stdout)["receipt"]
        measured = receipt["measured"]["max_logit_difference"]
        case = {"model": to, "tokens": tokens, "dense": dense, "older_cannot": OLDER_CANNOT.get(name)}
        case["options"] = f"[{options}: {receipt['identity']['kind']}, measured {measured:.1e}]"
        cases.append({key: value and str(value) for key, value in case.items()})
        verify = moe_convert("verify", to)
        if verify.returncode:
            wrong.append(f"verify {to}: exit code {verify.returncode}: {verify.stderr.strip()}")
    (out / "cases.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} of {len(work)} upcycled; refused as they should be: {', '.join(sorted(REFUSED))}")
    if wrong:
        raise SystemExit("\n".join(f"WRONG  {what}" for what in wrong))


def goldens():
    names = [d.relative_to(FAMILIES).as_posix() for family in OPTIONS for d in sorted((FAMILIES / family).iterdir())]
    models = pathlib.Path("golden/models")
    trained = ("llama/trained", models / "dense", models / "dense.tokens.json", models / "dense.logits.safetensors")
    return [golden(name) for name in names] + [trained]


def golden(name):
    path = FAMILIES / name
    return name, path / "model", path / "tokens.json", path / "reference.safetensors"


def edited(out, name, of, changes):
    """A golden under another config; its own logits then are what transformers reads out of that."""
    _, source, tokens, _ = golden(of)
    to = out / "dense" / name
    shutil.copytree(source, to)
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return name, to, tokens, to


def moe_convert(*words):
    return subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True)


main(*sys.argv[1:])
