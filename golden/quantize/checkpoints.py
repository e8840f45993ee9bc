#!/usr/bin/env python3
"""checkpoints/: whole checkpoints with quantized experts, and transformers' logits from them. See README.md.

    python checkpoints.py packed      # scripts/interop/venv llm-compressor
    python checkpoints.py fp8         # requirements.txt
    python checkpoints.py logits      # requirements.txt
    python checkpoints.py check       # transformers 4.57.6 with compressed-tensors 0.20.0: the exact logits, from the quantized files themselves
"""
import json
import os
import shutil
import sys
from tempfile import TemporaryDirectory

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from files import GOLDEN, HERE, report  # noqa: E402
from loaders import both_names, fp8, fp8_config, linears, load, weights_args  # noqa: E402

CHECKPOINTS = HERE / "checkpoints"
IGNORE = ["lm_head", "re:.*self_attn.*", "re:.*gate$"]
HUB_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
PACKED = {"qwen3_moe": ("both_names", 4), "mixtral": ("sliding", 8)}  # family goldens, and bits
FP8_TOKENS = [[3, 60, 14, 14, 7, 31, 22, 5, 49, 1, 0], [27, 8, 63], [40]]


def write(folder, tensors, config):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(both_names(config), indent=2) + "\n")


# ---------------------------------------------------------------- making


def packed(family, case, bits):
    """A family golden through llm-compressor, round to nearest, a scale for each row: no group but 2 divides both 40 and 14."""
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import load_quantizable_moe
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(GOLDEN / "families" / family / case / "model", dtype="auto")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights_args(bits, -1))
    oneshot(model=model, recipe=[QuantizationModifier(config_groups={"group_0": scheme}, ignore=IGNORE)])
    with TemporaryDirectory() as out:
        model.save_pretrained(out)
        tensors, config = load_file(f"{out}/model.safetensors"), json.loads(open(f"{out}/config.json").read())
    if family == "mixtral":  # 0.14.0.1 writes names that nothing loads
        tensors = {".".join(HUB_NAMES.get(part, part) for part in name.split(".")): value for name, value in tensors.items()}
    write(CHECKPOINTS / f"{family}.w{bits}", tensors, config)


def blocks():
    """A model of its own, since 128 x 128 blocks divide no family golden."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(4)
    config = AutoConfig.for_model("qwen3_moe", vocab_size=64, hidden_size=128, moe_intermediate_size=128, num_experts=3, num_experts_per_tok=2, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64, norm_topk_prob=True,
                                  tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        scale = 0.3 if name.endswith("mlp.gate.weight") else 0.2 if "embed" in name else 0.1
        parameter.data = (torch.randn(parameter.shape) * scale if parameter.ndim > 1 else 1 + 0.3 * torch.randn(parameter.shape))
    with TemporaryDirectory() as out:
        model.to(torch.bfloat16).save_pretrained(out)
        dense, config = load_file(f"{out}/model.safetensors"), json.loads(open(f"{out}/config.json").read())
    tensors = {name: value for name, value in dense.items() if ".experts." not in name}
    config["quantization_config"] = fp8_config(linears(tensors))
    for name, value in dense.items():
        if ".experts." in name:
            tensors |= {name.removesuffix("weight") + part: stored for part, stored in fp8(value)[0].items()}
    write(CHECKPOINTS / "qwen3_moe.fp8", tensors, config)
    (CHECKPOINTS / "qwen3_moe.fp8" / "tokens.json").write_text(json.dumps(FP8_TOKENS) + "\n")


# ---------------------------------------------------------------- logits


def sequences(name):
    family, what = name.split(".")
    return FP8_TOKENS if what == "fp8" else json.loads((GOLDEN / "families" / family / PACKED[family][0] / "tokens.json").read_text())


def logits(model, name):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in sequences(name)])


def exact_values(tensors, config):
    """Every weight in float32: compressed-tensors' or transformers' own decoding, from scales widened to float32."""
    from types import SimpleNamespace

    values = {}
    for name, value in tensors.items():
        module, _, what = name.rpartition(".")
        if what == "weight_packed":
            from compressed_tensors.compressors import BaseCompressor
            from compressed_tensors.quantization import QuantizationScheme

            scheme = QuantizationScheme(**config["quantization_config"]["config_groups"]["group_0"])
            state = {part: tensors[f"{module}.{part}"] for part in ("weight_packed", "weight_scale", "weight_shape")}
            state["weight_scale"] = state["weight_scale"].float()
            values[f"{module}.weight"] = BaseCompressor.get_value_from_registry("pack-quantized").decompress(state, scheme)["weight"]
        elif value.dtype == torch.float8_e4m3fn:
            from transformers.integrations.finegrained_fp8 import Fp8Dequantize

            values[name] = Fp8Dequantize(SimpleNamespace())._dequantize_one(value, tensors[f"{module}.weight_scale_inv"], output_dtype=torch.float32)
        elif not what.startswith("weight_"):
            values[name] = value.float()
    assert all(value.dtype == torch.float32 for value in values.values())
    return values


def reference(folder):
    """`logits`: the stored file, loaded in its dtype, which rounds weights to bfloat16, computed in float32; `logits_exact`: from unrounded weights."""
    model, complaints = load(folder, "auto")
    assert complaints == "complete", complaints
    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):  # the rest is computed from the same rounded values, whatever the loader did with them
            assert module.gate_up_proj.dtype == torch.bfloat16
    found = {"logits": logits(torch.nn.Module.float(model), folder.name)}
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    with TemporaryDirectory() as out:
        save_file(exact_values(tensors, config), f"{out}/model.safetensors", {"format": "pt"})
        open(f"{out}/config.json", "w").write(json.dumps({key: value for key, value in config.items() if key != "quantization_config"} | {"dtype": "float32"}))
        model, complaints = load(out, torch.float32)
        assert complaints == "complete", complaints
        gaps = []
        for module in model.modules():
            if type(module).__name__.endswith("TopKRouter"):
                k = module.top_k
                module.register_forward_hook(lambda _m, _i, out, k=k: gaps.append(out[0].softmax(-1).sort(descending=True).values[:, k - 1 : k + 1].diff().abs().min().item()))
        found["logits_exact"] = logits(model, folder.name)
    save_file(found, folder / "reference.safetensors")
    print(folder.name, "logits at most", found["logits"].abs().max().item(), "rounding changes", (found["logits"] - found["logits_exact"]).abs().max().item(), "least routing gap", min(gaps))
    assert min(gaps) > 1e-3
    for name in ("model", "reference"):
        report(f"checkpoints/{folder.name}/{name}.safetensors")


def check(folder):
    if folder.name.endswith("fp8"):
        return print(folder.name, "4.57 reads fp8 on GPUs alone")
    model, complaints = load(folder, torch.float32)
    wanted = load_file(folder / "reference.safetensors")["logits_exact"]
    print(folder.name, complaints, "from logits_exact", (logits(model, folder.name) - wanted).abs().max().item())


if __name__ == "__main__":
    if sys.argv[1] == "packed":
        [packed(family, case, bits) for family, (case, bits) in PACKED.items()]
    elif sys.argv[1] == "fp8":
        blocks()
    else:
        for folder in sorted(CHECKPOINTS.iterdir()):
            {"logits": reference, "check": check}[sys.argv[1]](folder)
