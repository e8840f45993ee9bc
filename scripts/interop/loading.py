"""Loading a checkpoint with the installed transformers, as strictly as it allows, and comparing logits."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
TOLERANCE = 1e-4  # on logits in f32, for each unit of the largest one
transformers.utils.logging.disable_progress_bar()


def load(path, **options):
    """The model, in f32 unless `options` say otherwise; raises if any tensor is missing (transformers would draw it at random), left over or misshapen."""
    older = int(transformers.__version__.split(".")[0]) < 5
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | ({} if older else {"experts_implementation": "eager"}) | options
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= info.keys(), info
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    assert not wrong, f"{path}: {wrong}"
    unaligned(model)
    return model.eval()


def unaligned(model):
    """f32 tensors are unaligned in a mapped file, which alters the last bits of products: move them."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def logits(model, sequences):
    """[all tokens in order, vocab]; every sequence is run on its own."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences])


def split_groups(model, sequences, granularity):
    """How often a token, in any layer, goes to some shards of a dense network but not to all of them."""
    found, hooks = [], []

    def look(gate, _, output):
        k = model.config.num_experts_per_tok
        picked = output[2] if isinstance(output, tuple) else output.softmax(-1, dtype=torch.float).topk(k, -1)[1]
        chosen = torch.zeros(len(picked), len(gate.weight)).scatter(-1, picked, 1.0).unflatten(-1, (-1, granularity))
        found.append((chosen != chosen[..., :1]).any(-1).sum().item())

    for layer in model.model.layers:
        block = layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe
        if hasattr(block, "experts"):
            hooks.append(block.gate.register_forward_hook(look))
    logits(model, sequences)
    for hook in hooks:
        hook.remove()
    return sum(found)


def stepped(model, ids):
    """Logits as generation sees them: half the tokens at once, then one by one through the cache."""
    with torch.no_grad():
        half = max(1, len(ids) // 2)
        step = model(torch.tensor([ids[:half]]), use_cache=True)
        rows, cache = [step.logits[0].float()], step.past_key_values
        for position in range(half, len(ids)):
            step = model(torch.tensor([[ids[position]]]), past_key_values=cache, use_cache=True)
            rows.append(step.logits[0].float())
            cache = step.past_key_values
    return torch.cat(rows)


def ours(path, sequences):
    """What `moe-convert logits` computes."""
    with tempfile.TemporaryDirectory() as scratch:
        tokens, out = pathlib.Path(scratch, "ids.json"), pathlib.Path(scratch, "logits.safetensors")
        tokens.write_text(json.dumps(sequences))
        command = [BINARY, "logits", str(path), "--tokens", str(tokens), "-o", str(out), "--device", "cpu", "--quiet"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f"moe-convert logits: {run.stderr}"
        return load_file(out)["logits"]


def difference(found, wanted):
    """(max |Δ|, the same for each unit of the largest wanted logit, 1 at least)."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} logits, not {tuple(wanted.shape)}"
    assert torch.isfinite(found).all(), "a logit isn't finite"
    largest = (found - wanted).abs().max().item()
    return largest, largest / max(1.0, wanted.abs().max().item())


def versions():
    return f"transformers {transformers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}"
