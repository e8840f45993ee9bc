#!/usr/bin/env python3
"""Where transformers' routers send bfloat16 states: one file for each MoE family. README.md says what is in it.

    $(../../scripts/interop/venv transformers-5) make.py        # half a minute

The models are those of ../families/<family>/base, loaded in bfloat16 as transformers loads them by default. Of many random
tokens, `CLOSE` are kept of which the last expert that is chosen ties with the first that isn't, and as many others.
"""

import os
import zlib
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
FAMILIES = HERE.parent / "families"
# What the modelling files of 5.23.0 do with states in bfloat16: the dtypes of logits and of gates.
ROUNDED = {
    "mixtral": (torch.bfloat16, torch.float32),
    "qwen2_moe": (torch.bfloat16, torch.bfloat16),
    "qwen3_moe": (torch.bfloat16, torch.bfloat16),
    "olmoe": (torch.bfloat16, torch.bfloat16),
    "deepseek_v2": (torch.float32, torch.float32),
    "deepseek_v3": (torch.float32, torch.float32),
    "glm4_moe": (torch.float32, torch.float32),
}
CLOSE, SEQUENCES, LENGTH = 16, 1000, 20
SUM = 1e-6  # how far a sum in float32 may be off
BORDER = 1e-3  # of a bfloat16 step: nearer than this, the order of a sum decides which way a logit is rounded


def run(family):
    """The first router of a bfloat16 model, what went in and what came out."""
    model, info = AutoModelForCausalLM.from_pretrained(
        FAMILIES / family / "base" / "model", dtype=torch.bfloat16, output_loading_info=True,
        attn_implementation="eager", experts_implementation="eager")
    assert not any(info.values()), info
    name, router = next((n, m) for n, m in model.named_modules() if type(m).__name__.lower().endswith("topkrouter"))
    seen = []
    router.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].reshape(-1, inputs[0].shape[-1]), *output)))
    generator = torch.Generator().manual_seed(zlib.crc32(family.encode()))
    with torch.no_grad():
        for _ in range(SEQUENCES):
            model(torch.randint(model.config.vocab_size, (1, LENGTH), generator=generator), use_cache=False)
        x, logits, gates, selected = (torch.cat(of) for of in zip(*seen))
        model.float()  # bfloat16 values are float32 values
        wide = [router(row)[2] for row in x.float().split(1)]
    return int(name.split(".")[2]), router, x, logits, gates, selected, torch.cat(wide)


def is_sure(router, x, logits):
    """Tokens of which no logit lies so near to a border between two values of bfloat16 that the order of a sum decides."""
    if logits.dtype != torch.bfloat16:
        return torch.ones(len(x), dtype=torch.bool)
    exact = x.double() @ router.weight.detach().double().T
    step = torch.ldexp(torch.ones_like(exact), torch.frexp(exact)[1] - 8)
    assert ((logits.double() - exact).abs() <= 0.51 * step + SUM).all(), "logits are not what they would be if they were rounded once"
    steps = exact / step
    return ((steps - steps.floor() - 0.5).abs() > BORDER + SUM / step).all(1)


def is_first(x):
    """Tokens with a state that none before has."""
    seen = set()
    return torch.tensor([not (row in seen or seen.add(row)) for row in map(tuple, x.float().tolist())])


def ties(selected, logits):
    """Whether the last expert chosen and the first that isn't have one logit; for plain softmax only."""
    ranked = logits.float().sort(dim=1, descending=True).values
    return ranked[:, selected.shape[1] - 1] == ranked[:, selected.shape[1]]


def make(family):
    layer, router, x, logits, gates, selected, wide = run(family)
    assert x.dtype == torch.bfloat16 and (logits.dtype, gates.dtype) == ROUNDED[family], (logits.dtype, gates.dtype)
    rounds = logits.dtype == torch.bfloat16
    usable = is_sure(router, x, logits) & is_first(x)
    tied = ties(selected, logits) if rounds else torch.zeros(len(x), dtype=torch.bool)
    close = (tied & usable).nonzero()[:CLOSE, 0]
    chosen = torch.cat([close, (~tied & usable).nonzero()[: 2 * CLOSE - len(close), 0]])
    elsewhere = (selected[chosen].sort(1).values != wide[chosen].sort(1).values).any(1)
    assert not elsewhere[len(close) :].any(), "rounding keeps the order of logits, so that ties alone can be decided otherwise"
    assert not rounds or elsewhere.sum() >= 4, f"{family}: {elsewhere.sum()} tokens go elsewhere in float32"
    # By descending gate, as ../families has it.
    order = gates[chosen].float().argsort(dim=1, descending=True, stable=True)
    tensors = {
        "states": x[chosen],
        "router_logits": logits[chosen],
        "selected": selected[chosen].gather(1, order),
        "weights": gates[chosen].gather(1, order),
        "tied": (torch.arange(len(chosen)) < len(close)).to(torch.uint8),
        "layer": torch.tensor([layer]),
    }
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, HERE / f"{family}.safetensors")
    size = (HERE / f"{family}.safetensors").stat().st_size
    print(f"{family}: {len(chosen)} tokens; {len(close)} have a tie ({tied.float().mean():.2%} of all), {int(elsewhere.sum())} of which go elsewhere in float32; {size} bytes")


def main():
    torch.set_num_threads(1)
    assert transformers.__version__ == "5.23.0" and torch.__version__.startswith("2.13.0"), "see requirements.txt"
    for family in ROUNDED:
        make(family)


main()
