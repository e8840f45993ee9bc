#!/usr/bin/env python3
"""What llm-compressor writes when it quantizes the experts alone, round to nearest: the quantization_config and the tensors of an expert. See exact-config.md.

    python written.py OUT        # scripts/interop/venv llm-compressor; OUT gets a folder for each family and scheme
"""
import json
import sys
from pathlib import Path

from safetensors import safe_open

from tiny import FAMILIES, build

IGNORE = ["lm_head", "re:.*self_attn.*", "re:.*gate$", "re:.*shared_expert.*", "re:.*mlp.(gate|up|down)_proj$"]
SCHEMES = ["W4A16", "W4A16_ASYM", "W8A16", "FP8_DYNAMIC", "FP8_BLOCK"]


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: (str(file.get_slice(name).get_dtype()), list(file.get_slice(name).get_shape())) for name in file.keys()}
    return found


def main(out):
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import load_quantizable_moe
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    for family in FAMILIES:
        build(family).save_pretrained(out / family / "dense")
        for scheme in SCHEMES if family == "qwen3_moe" else SCHEMES[:1]:
            with load_quantizable_moe():
                model = AutoModelForCausalLM.from_pretrained(out / family / "dense", dtype="auto")
            oneshot(model=model, recipe=[QuantizationModifier(targets="Linear", scheme=scheme, ignore=IGNORE)])
            folder = out / family / scheme
            model.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            print("####", family, scheme)
            print(json.dumps(config["quantization_config"]))
            found = tensors(folder)
            print(json.dumps({name: what for name, what in found.items() if ".layers.1." in name and ("experts.0." in name or "scale" in name) and "experts.1" not in name}))
            print("without scales:", [name for name in found if ".layers.1." in name and name.endswith("weight") and name + "_scale" not in found])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
