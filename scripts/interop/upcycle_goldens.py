"""Upcycles every dense golden with several options, and some under edited configs, for check.py.

usage: upcycle_goldens.py OUT_DIR      from the root of the repository; writes OUT_DIR/cases.json

A new option is a line in EACH, which every pair of a dense and an MoE family gets, or in MORE, for what one golden shows as well
as all; one that every golden of a family should have, an entry in OPTIONS."""
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from caveats import older_cannot

FAMILIES = pathlib.Path("golden/families")
BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
EIGHT, FIVE = "--experts 8 --top-k 2", "--experts 5 --top-k 3"
NOT_NORMALISED = f"{EIGHT} --norm-topk-prob false --router zeros"
OPTIONS = {
    "llama": [EIGHT, FIVE, f"{EIGHT} --target qwen2_moe"],
    "mistral": [EIGHT, FIVE],
    "qwen2": [f"{e} --shared-fraction {s}" for e in (EIGHT, FIVE) for s in (0, 0.5, 1)]
    + [NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros --shared-fraction 0"],
    "qwen3": [EIGHT, FIVE, NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros"],
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
# Pairs of families: a dense model with a tokenizer, and what to add to each line of EACH.
PAIRS = [("llama/text", ""), ("mistral/text", ""), ("qwen2/text", ""), ("llama/text", "--target qwen2_moe"), ("qwen3/text", "")]
LETTERS = {"mistral/text": "mistral/old", "qwen2/text": "qwen2/base", "qwen3/text": "qwen3/base"}  # of a few letters
FOUR = "--experts 4 --top-k 2"
SHARDS, QUARTERS = "--experts 8 --top-k 4 --granularity 2", "--experts 12 --top-k 8 --granularity 4"
DATA = "--data text=golden/text/english.calibration.txt --data-tokens 300"
# DENSE and SIBLING are the model that is upcycled and its layers in another order; PROMPTS has four sets of them.
EACH = [
    SHARDS,
    f"{QUARTERS} --router orthogonal --noise-std 0.02",
    "--experts 8 --top-k 8 --granularity 4 --router zeros",
    "--experts 4 --top-k 4 --granularity 4",
    f"{SHARDS} --router zeros",
    f"{SHARDS} --scale-placement nvidia",
    f"{FOUR} --init drop",
    f"{SHARDS} --init drop --drop-fraction 0.3 --noise-std 0.02 --noise-fraction 0.1",
    "--experts 4 --top-k 4 --init partition --router zeros",
    f"{FOUR} --init partition --partition-by random --noise-std 0.02",
    f"{FOUR} --init partition --partition-by activations --router activations {DATA}",
    f"{FOUR} --init partition --router kmeans --router-entropy 0.7 {DATA}",
    f"{FOUR} --router kmeans {DATA}",
    f"{FOUR} --router prompts --prompts PROMPTS --router-entropy 0",
    f"{SHARDS} --router cheap-embed --prompts PROMPTS --router-entropy 0.5",
    f"{FOUR} --expert-model DENSE --expert-model SIBLING",
    f"{SHARDS} --expert-model SIBLING --expert-model DENSE --rest average --router orthogonal --router-std 0.3",
    "--experts 6 --top-k 6 --granularity 2 --expert-model DENSE --expert-model SIBLING --expert-model DENSE --rest average",
    f"{FOUR} --expert-model SIBLING --init drop --router prompts --prompts PROMPTS",
]
# The same for families with dense layers.
MIXED = [
    f"{EIGHT} --layers every:2",
    f"{SHARDS} --layers 0 --noise-std 0.02",
    f"{FOUR} --layers 1 --init partition --partition-by activations --router activations {DATA}",
    f"{FOUR} --layers 0 --expert-model SIBLING --expert-model DENSE --rest average",
    f"{SHARDS} --layers every:2 --expert-model SIBLING --expert-model DENSE",
    f"{QUARTERS} --norm-topk-prob false --router zeros",
    f"{SHARDS} --norm-topk-prob false --scale-placement nvidia",
]
# The same for families with a shared expert.
SHARED = [
    f"{FOUR} --shared-experts 3",
    f"{SHARDS} --shared-experts 2 --shared-fraction 0.25",
    f"{FOUR} --shared-experts 2 --init drop --layers 0",
    "--experts 3 --top-k 3 --init partition --shared-width 1 --router zeros",
    "--experts 5 --top-k 2 --init partition --shared-width 5 --partition-by random --layers 1",
    f"{FOUR} --init partition --norm-topk-prob false --router kmeans {DATA}",
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
    ("llama/four_models", "mergekit/a", "--experts 8 --top-k 4 --granularity 2 " + " ".join(f"--expert-model golden/mergekit/inputs/{m}" for m in "abcd")),
    ("llama/of_others", "mergekit/a", f"{FOUR} --target qwen2_moe --rest average " + " ".join(f"--expert-model golden/mergekit/inputs/{m}" for m in "bd")),
    ("mistral/wide_groups", "mistral/base", "--experts 60 --top-k 20 --granularity 20 --router zeros"),
    ("qwen2/windows", "qwen2/sliding", f"{SHARDS} --layers 1"),
    ("qwen3/many_shards", "qwen3/base", "--experts 168 --top-k 56 --granularity 28 --router zeros --layers 0"),
    ("llama/trained_layers", "llama/trained", f"{SHARDS} --target qwen2_moe --layers 0,2-3"),
    ("llama/partition_trained", "llama/trained", f"--experts 8 --top-k 2 --init partition --partition-by activations --router activations {DATA}"),
]
# Names of what the target family cannot hold.
REFUSED = {"llama/bias", "qwen3/layer_types"}


def main(out):
    out = pathlib.Path(out)
    cases, wrong = [], []
    work = [(source, options) for source in goldens() for options in OPTIONS[source[0].split("/")[0]]]
    work += [(edited(out, *edit), EIGHT) for edit in EDITS]
    work += [((name, *golden(of)[1:]), options) for name, of, options in MORE]
    work += paired(out)
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
        case = {"model": to, "source": source, "tokens": tokens, "dense": dense, "older_cannot": older_cannot(receipt)}
        case["options"] = f"[{options}: {receipt['identity']['kind']}, measured {measured:.1e}]"
        cases.append({key: str(value) for key, value in case.items() if value})
        verify = moe_convert("verify", to)
        if verify.returncode:
            wrong.append(f"verify {to}: exit code {verify.returncode}: {verify.stderr.strip()}")
    (out / "cases.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} of {len(work)} upcycled; refused as they should be: {', '.join(sorted(REFUSED))}")
    if wrong:
        raise SystemExit("\n".join(f"WRONG  {what}" for what in wrong))


def paired(out):
    """Each pair of families with each of its options."""
    sources = {"llama/text": golden("mergekit/a")} | {name: lettered(out, name, of) for name, of in LETTERS.items()}
    prompts = out / "prompts.json"
    sets = [["The cat sat."], ["def f(x):", "return x"], ["¿Qué hora es?"], ["12 + 30 = 42", "7 * 6"]]
    prompts.write_text(json.dumps([{"positive": positive, "negative": ["the"] * (at % 2)} for at, positive in enumerate(sets)]))
    for name, target in PAIRS:
        _, source, tokens, dense = sources[name]
        words = {"PROMPTS": prompts, "DENSE": source, "SIBLING": sibling(out, name, source)}
        family = name.split("/")[0]
        lines = EACH + MIXED * (family.startswith("qwen") or bool(target)) + SHARED * (family == "qwen2" or bool(target))
        for line in lines:
            options = " ".join([str(words.get(word, word)) for word in line.split()] + target.split())
            yield (name, source, tokens, dense), options


def lettered(out, name, of):
    """A golden with a tokenizer: each of some letters is a token, and all others are one. transformers makes byte-level BPE of whatever
    Qwen's models have, so that theirs is that, without a merge; others are no token there."""
    _, source, tokens, dense = golden(of)
    to = out / "dense" / name
    shutil.copytree(source, to)
    letters = ["?", *"abcdefghijklmnopqrstuvwxyz ABCDEFT0123456789+-*=().,:"]
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "post_processor": None}
    tokenizer |= {"decoder": {"type": "Fuse"}, "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}}
    tokenizer["model"] = {"type": "WordLevel", "vocab": {letter: at for at, letter in enumerate(letters)}, "unk_token": "?"}
    if name.startswith("qwen"):
        vocabulary = {letter.replace(" ", "Ġ"): at for at, letter in enumerate(letters)}
        tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        tokenizer["model"] = {"type": "BPE", "vocab": vocabulary, "merges": []}
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    return name, to, tokens, dense


def sibling(out, name, source):
    """The model with its first two layers exchanged: another one of the same shapes."""
    to = out / "dense" / f"{name}-sibling"
    if not to.exists():
        shutil.copytree(source, to)
        data = (source / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header, at = json.loads(data[8 : 8 + size]), [".layers.0.", ".layers.1."]
        exchanged = {key.replace(*at) if at[0] in key else key.replace(*at[::-1]): value for key, value in header.items()}
        text = json.dumps(exchanged).encode()
        (to / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return to


def goldens():
    names = [d.relative_to(FAMILIES).as_posix() for family in OPTIONS for d in sorted((FAMILIES / family).iterdir())]
    models = pathlib.Path("golden/models")
    trained = ("llama/trained", models / "dense", models / "dense.tokens.json", models / "dense.logits.safetensors")
    return [golden(name) for name in names] + [trained]


def golden(name):
    if name == "llama/trained":
        return goldens()[-1]
    if name.startswith("mergekit/"):
        path = pathlib.Path("golden/mergekit/inputs") / name.removeprefix("mergekit/")
        return name, path, None, path
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
