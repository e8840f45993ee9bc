#!/usr/bin/env python3
"""Which experts-only quantized checkpoints does the installed transformers load, and what does it compute from them? See exact-config.md.

    python loaders.py make DIR      # requirements.txt: tiny models of the families, quantized by compressed-tensors' and transformers' own code
    python loaders.py try DIR       # any transformers: lines for each checkpoint
    python loaders.py pretend DIR   # any transformers, told that there is a GPU: which modules it would run in fp8, and what it writes
"""
import copy
import json
import logging
import os
import sys
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tiny import FAMILIES, TOKENS, build  # noqa: E402

torch.set_num_threads(1)


# ---------------------------------------------------------------- encodings


def weights_args(bits=4, group=128, symmetric=True, **kw):
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel" if group == -1 else "group",
            "group_size": None if group == -1 else group} | kw


FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
TOKEN = FLOAT | {"strategy": "token", "dynamic": True}
GROUPED = FLOAT | {"strategy": "group", "group_size": 128, "dynamic": True}
SCHEMES = {  # name: (format, weights, input activations)
    "w4": ("pack-quantized", weights_args(), None),
    "w4-channel": ("pack-quantized", weights_args(group=-1), None),
    "w4-g32": ("pack-quantized", weights_args(group=32), None),
    "w4-g64": ("pack-quantized", weights_args(group=64), None),
    "w8": ("pack-quantized", weights_args(8), None),
    "w3": ("pack-quantized", weights_args(3), None),
    "w2-g32": ("pack-quantized", weights_args(2, 32), None),
    "w4-asym": ("pack-quantized", weights_args(symmetric=False), None),
    "fp8-channel": ("float-quantized", FLOAT | {"strategy": "channel"}, TOKEN),
    "fp8-channel-w8a16": ("float-quantized", FLOAT | {"strategy": "channel"}, None),
    "fp8-block": ("float-quantized", FLOAT | {"strategy": "block", "block_structure": [128, 128]}, GROUPED),
}


def compressed(weight, scheme):
    """The tensors that stand for a weight, by suffix, and its values in float32: compressed-tensors' own quantize and decompress.
    Its scales have the weight's dtype."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    form, weights, activations = SCHEMES[scheme]
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations, format=form)
    args = scheme.weights
    if args.strategy == "block":
        blocks = weight.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    else:
        groups = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
        low, high = groups.amin(2), groups.amax(2)
    scale, zero = calculate_qparams(low, high, args)
    compressor = BaseCompressor.get_value_from_registry(form)
    tensors = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
    values = compressor.decompress(tensors | {"weight_scale": tensors["weight_scale"].float()}, scheme)["weight"]
    assert values.dtype == torch.float32
    return tensors, values


def fp8(weight):
    """The same by transformers' own Fp8Quantize and Fp8Dequantize."""
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
    tensors = Fp8Quantize(quantizer).convert({"weight": weight})
    values = Fp8Dequantize(quantizer)._dequantize_one(tensors["weight"], tensors["weight_scale_inv"], output_dtype=torch.float32)
    return tensors, values


def encoder(scheme):
    if scheme == "hf-fp8":
        return fp8
    if scheme == "w4-f32-scale":
        return lambda weight: compressed(weight.float(), "w4")
    return lambda weight: compressed(weight, scheme)


# ---------------------------------------------------------------- configs


def linears(tensors):
    """Modules with a matrix that stays as it is, routers among them, as llm-compressor lists them; embeddings are no Linear."""
    return [name.removesuffix(".weight") for name, value in tensors.items() if name.endswith(".weight") and value.ndim == 2 and "embed" not in name]


def compressed_config(scheme, kept, **changes):
    form, weights, activations = SCHEMES[scheme]
    group = {"format": form, "input_activations": activations, "output_activations": None, "targets": ["Linear"],
             "weights": {"actorder": None, "block_structure": None, "dynamic": False} | weights}
    return {"config_groups": {"group_0": group}, "format": form, "global_compression_ratio": None, "ignore": kept, "kv_cache_scheme": None,
            "quant_method": "compressed-tensors", "quantization_status": "compressed", "version": "0.20.0"} | changes


def fp8_config(kept):
    return {"activation_scheme": "dynamic", "modules_to_not_convert": kept, "quant_method": "fp8", "weight_block_size": [128, 128]}


def variants(config):
    """Other configs for the same w4 tensors."""
    def but(edit):
        other = copy.deepcopy(config)
        edit(other)
        return other

    group = "config_groups"
    return {
        "regex-ignore": but(lambda c: c.update(ignore=["lm_head", "re:.*self_attn.*", "re:.*gate$", "re:.*shared_expert.*"])),
        "no-ignore": but(lambda c: c.update(ignore=[])),
        "regex-target": but(lambda c: (c.update(ignore=[]), c[group]["group_0"].update(targets=["re:.*mlp.experts.*"]))),
        "no-status": but(lambda c: c.pop("quantization_status")),
        "no-version": but(lambda c: c.pop("version")),
        "no-group-format": but(lambda c: c[group]["group_0"].pop("format")),
        "no-top-format": but(lambda c: c.pop("format")),
        "short": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights_args()}}, "format": "pack-quantized",
                  "ignore": config["ignore"], "quant_method": "compressed-tensors", "quantization_status": "compressed"},
    }


# ---------------------------------------------------------------- making


def both_names(config):
    """transformers 5 doesn't write some names that 4.57 reads."""
    old = {"rope_theta": config["rope_parameters"]["rope_theta"]}
    if config["model_type"] in ("qwen3_moe", "qwen2_moe", "olmoe"):
        old["num_experts"] = config.get("num_experts", config.get("num_local_experts"))
    return old | config


def write(folder, tensors, config):
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def quantized(dense, encode):
    """Checkpoint with the experts encoded, and the values they stand for: in float32, and rounded to bfloat16."""
    tensors, exact = {}, {}
    for name, weight in dense.items():
        if ".experts." in name:
            parts, values = encode(weight)
            tensors |= {name.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
            exact[name] = values
        else:
            tensors[name] = exact[name] = weight
    return tensors, exact, {name: value.to(torch.bfloat16) for name, value in exact.items()}


def make(root):
    for family in FAMILIES:
        build(family).save_pretrained(root / family / "dense")
        dense, config = load_file(root / family / "dense" / "model.safetensors"), both_names(json.loads((root / family / "dense" / "config.json").read_text()))
        kept = linears({name: value for name, value in dense.items() if ".experts." not in name})
        for scheme in [*SCHEMES, "w4-f32-scale", "hf-fp8"] if family in ("qwen3_moe", "mixtral") else ["w4", "w8", "fp8-channel", "hf-fp8"]:
            tensors, exact, rounded = quantized(dense, encoder(scheme))
            folder = root / family / scheme
            wanted = fp8_config(kept) if scheme == "hf-fp8" else compressed_config(scheme.removesuffix("-f32-scale"), kept)
            write(folder / "as-is", tensors, config | {"quantization_config": wanted})
            write(folder / "exact", exact, config)
            write(folder / "rounded", rounded, config)
            if scheme == "w4" and family in ("qwen3_moe", "mixtral"):
                for name, other in variants(wanted).items():
                    write(folder / name, tensors, config | {"quantization_config": other})
            if scheme == "hf-fp8":
                write(folder / "no-list", tensors, config | {"quantization_config": fp8_config(None)})
            if family == "mixtral" and scheme == "w4":
                names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
                renamed = {".".join(names.get(part, part) for part in name.split(".")): v for name, v in tensors.items()}
                write(folder / "gate_proj", renamed, config | {"quantization_config": wanted})


# ---------------------------------------------------------------- trying


def load(folder, dtype):
    """The model, and what loading complained about: missing tensors are drawn at random, and nothing raises on that."""
    import transformers
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if int(transformers.__version__.split(".")[0]) > 4 else {})
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model, " ".join(f"{len(value)} {key}" for key, value in info.items() if value) or "complete"


def logits(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in TOKENS])


def nearest(found, wanted):
    """Which of the wanted logits, by name, are these, bit for bit? Else how far from the nearest."""
    same = [name for name, value in wanted.items() if torch.equal(found, value)]
    return " = ".join(same) or f"{min((found - value).abs().max().item() for value in wanted.values()):.0e} off"


def outcome(folder, dtype, widen):
    """Loaded in a dtype, and made float32 afterwards if `widen`."""
    try:
        plain = [load(folder.parent / name, dtype)[0] for name in ("exact", "rounded")]
        model, complaints = load(folder, dtype)
        models = [model, *plain]
        found, *wanted = [logits(torch.nn.Module.float(model) if widen else model) for model in models]
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    return f"{complaints}, {nearest(found, dict(zip(('exact', 'rounded'), wanted)))}"


# ---------------------------------------------------------------- pretending


def pretend(root):
    """Loading goes through the GPU's path on the CPU; nothing can be run."""
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    for family in FAMILIES:
        for folder in (root / family / "hf-fp8" / "as-is", root / family / "hf-fp8" / "no-list"):
            try:
                model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu", output_loading_info=True)
            except Exception as error:
                print(f"{family:12}{folder.name:9}{type(error).__name__}: {str(error)[:80]}")
                continue
            kinds = [type(module).__name__ for module in model.modules()]
            print(f"{family:12}{folder.name:9}", {key: len(value) for key, value in info.items() if value} or "complete",
                  {kind: kinds.count(kind) for kind in sorted(set(kinds)) if kind == "Linear" or "FP8" in kind})
        kept = json.loads((root / family / "hf-fp8" / "as-is" / "config.json").read_text())["quantization_config"]["modules_to_not_convert"]
        fly = {"quantization_config": FineGrainedFP8Config(modules_to_not_convert=kept)}
        for what, source, options in (("resaved", root / family / "hf-fp8" / "as-is", {}), ("on the fly", root / family / "dense", fly)):
            resave(family, what, source, root / family / "hf-fp8", options)


def resave(family, what, source, made, options):
    """Saves what it loaded, and compares with the checkpoint made by hand."""
    from tempfile import TemporaryDirectory

    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as out:
        try:
            AutoModelForCausalLM.from_pretrained(source, dtype="auto", device_map="cpu", **options).save_pretrained(out)
        except Exception as error:
            return print(f"{family:12}{what:11}{type(error).__name__}: {str(error)[:80]}")
        found, wanted = load_file(Path(out) / "model.safetensors"), load_file(made / "as-is" / "model.safetensors")
        same = [torch.equal(found[name].float(), value.float()) for name, value in wanted.items() if name in found]
        print(f"{family:12}{what:11}{sum(same)} of {len(wanted)} tensors by hand are there and equal, {len(same) - sum(same)} differ;",
              "others:", sorted(found.keys() - wanted.keys())[-2:], "config:",
              json.dumps(json.loads((Path(out) / "config.json").read_text())["quantization_config"]) if family == "mixtral" else "as the others")
        print(f"{'':12}{'':11}loads again:", attempt_again(out))


def attempt_again(folder):
    from transformers import AutoModelForCausalLM

    try:
        _, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="cpu", output_loading_info=True)
        return {key: len(value) for key, value in info.items() if value} or "complete"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"


def main(command, root):
    if command == "make":
        return make(root)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    print("transformers", transformers.__version__)
    if command == "pretend":
        return pretend(root)
    for family in FAMILIES:
        for folder in sorted((root / family).glob("*/*/")):
            if folder.name not in ("exact", "rounded"):
                for what, dtype, widen in (("float32", torch.float32, False), ("bfloat16", "auto", False), ("widened", "auto", True)):
                    print(f"{family:12}{folder.parent.name:18}{folder.name:16}{what:9}", outcome(folder, dtype, widen), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
