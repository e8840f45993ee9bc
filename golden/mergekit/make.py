"""Builds inputs/, runs `mergekit-moe` on them, and writes cases/ and reference/. See README.md.

    python -m venv VENV && VENV/bin/pip install -r requirements.txt && VENV/bin/python make.py
"""
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import inputs
import reference
from configs import DENSE, LAST_IS_STOP, PROMPTS, cases, even_prompts

HERE = pathlib.Path(__file__).resolve().parent
WHOLE = ("cheap_embed", "mistral", "qwen2", "qwen3")  # stored with their weights


def mergekit(config, scratch, out):
    """The real command line, from a folder in which every input has a tokenizer."""
    path = scratch / "config.yml"
    path.write_text(config)
    command = [pathlib.Path(sys.executable).parent / "mergekit-moe", path, out, "--random-seed", "0", "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [line for line in run.stderr.splitlines() if line.startswith(("WARNING:root", "ERROR:root"))]


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def described(tensors):
    """dtype, shape and hash of each tensor; for fused ones also of every expert's matrices, as one-per-expert files hold them."""
    found = {}
    for name, t in sorted(tensors.items()):
        found[name] = {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "sha256": sha256(t)}
        if name.endswith("experts.gate_up_proj"):
            halves = [e.chunk(2) for e in t]
            found[name]["experts"] = [{"gate_proj": sha256(gate), "up_proj": sha256(up)} for gate, up in halves]
        elif name.endswith("experts.down_proj"):
            found[name]["experts"] = [{"down_proj": sha256(down)} for down in t]
    return found


def check_experts(name, config, tensors):
    """Experts are the inputs' feed-forward weights, byte for byte unless converted or scaled."""
    for e, expert in enumerate(config["experts"]):
        dense = load_file(HERE / expert["source_model"] / "model.safetensors")
        for layer in range(2):
            prefix = f"model.layers.{layer}.mlp."
            gate, up, down = (dense[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down"))
            if expert.get("residual_scale") is not None:
                down = (down.float() * torch.tensor(expert["residual_scale"])).bfloat16()
            if f"{prefix}experts.gate_up_proj" in tensors:
                found = *tensors[f"{prefix}experts.gate_up_proj"][e].chunk(2), tensors[f"{prefix}experts.down_proj"][e]
            else:
                found = (tensors[f"{prefix}experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(found, (gate, up, down))), (name, e)


def routers(tensors):
    """[layers, experts, hidden], and the rows of the shared expert's gate if there is one."""
    stack = lambda suffix: [tensors[n] for n in sorted(n for n in tensors if n.endswith(suffix))]
    shared = stack("shared_expert_gate.weight")
    return torch.stack(stack("mlp.gate.weight")), torch.stack(shared) if shared else None


def by_layer(rows):
    return {f"layer.{i}": row.clone() for i, row in enumerate(rows)}


def logits(directory):
    options = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    assert not any(info.values()), info
    ids = torch.randint(64, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits[0]


def make(name, config, scratch):
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    out, kept = scratch / "out" / name, HERE / "cases" / name
    warnings = mergekit(text, scratch, out)
    kept.mkdir(parents=True)
    (kept / "config.yml").write_text(text)
    tensors = load_file(out / "model.safetensors")
    (kept / "tensors.json").write_text(re.sub(r'\[\s+([\d,\s]+?)\s+\]', lambda m: "[" + " ".join(m[1].split()) + "]",
                                              json.dumps(described(tensors), indent=1)) + "\n")
    shutil.copy(out / "config.json", kept)
    check_experts(name, config, tensors)
    rows, shared = routers(tensors)
    save_file({**by_layer(rows), **({f"shared.{i}": r for i, r in enumerate(shared)} if shared is not None else {})},
              kept / "routers.safetensors")
    if name in WHOLE:
        shutil.copy(out / "model.safetensors", kept)
    if len({e["source_model"] for e in config["experts"]}) == 1:
        dense = logits(HERE / config["base_model"])
        print(f"{name}: max |Δlogit| to the dense model {(logits(out) - dense).abs().max():.2g} of {dense.abs().max():.2g}")
    print(f"{name}: {'; '.join(warnings) or 'no warning'}", flush=True)
    return rows.float()


def compare(rows):
    """Writes reference/ and holds what mergekit wrote to it."""
    folder = HERE / "reference"
    folder.mkdir()
    model = reference.Reference(HERE / "inputs" / "a")
    tokens = {key: reference.token_ids(HERE / "inputs" / "a", p) for key, p in
              (("prompts", PROMPTS), ("even", even_prompts()), ("stop", LAST_IS_STOP))}
    (folder / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n")
    cheap = lambda model: model.cheap_embed(tokens["prompts"]).expand(2, -1, -1)
    found = {  # tolerances: rounding of bfloat16 rows, and of whole bfloat16 forwards
        "cheap_embed": (cheap(model), [("cheap_embed", 2e-3), ("cheap_embed_f32", 1e-6), ("cheap_embed_scaled", 2e-3)]),
        "cheap_embed_base_d": (cheap(reference.Reference(HERE / "inputs" / "d")), [("base_d", 2e-3)]),
        "hidden_last": (model.hidden_last(tokens["prompts"]), [("hidden", 2e-2)]),
        "hidden_last_even": (model.hidden_last(tokens["even"]), [("hidden_even", 2e-2)]),
        "hidden_last_stop": (model.hidden_last(tokens["stop"]), [("hidden_stop", 2e-2)]),
        "hidden_avg": (model.hidden_avg(tokens["prompts"]), [("hidden_avg", 2e-2)]),
        "hidden_avg_even": (model.hidden_avg(tokens["even"]), [("hidden_avg_even", 2e-2)]),
        "hidden_post_norm": (model.hidden_post_norm(tokens["prompts"]), []),
        "hidden_post_norm_no_bos": (model.hidden_post_norm(tokens["prompts"], skip=1), []),
    }
    for key, (expected, held) in found.items():
        save_file(by_layer(expected), folder / f"{key}.safetensors")
        for name, tolerance in held:
            error = (rows[name] - expected).abs().max().item()
            print(f"{name} is within {error:.2g} of reference/{key}")
            assert error < tolerance, name


def main():
    torch.set_num_threads(1)
    assert transformers.__version__ == "5.23.0" and torch.__version__.startswith("2.13.0"), "see requirements.txt"
    for folder in ("inputs", "cases", "reference"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name in inputs.MODELS:
            inputs.make(name, HERE / "inputs" / name, DENSE)
            shutil.copytree(HERE / "inputs" / name, scratch / "inputs" / name)
            for file in inputs.TOKENIZER:
                shutil.copy(DENSE / file, scratch / "inputs" / name)
        rows = {name: make(name, config, scratch) for name, config in cases().items()}
    compare(rows)
    files = [f for f in HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    print(len(files), "files,", sum(f.stat().st_size for f in files), "bytes")


main()
