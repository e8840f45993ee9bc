"""Broken copies of quantized outputs, which quantized.py must find, each for its own reason.

usage: quantized_bites.py OUT_DIR      adds them to OUT_DIR/quantized.json"""
import json
import pathlib
import shutil
import sys

from breaking import broken_copy


def flips_a_code(tensors, name, bit):
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, bytes([data[0] ^ 1 << bit]) + data[1:]


def flips_a_packed_code(tensors):
    flips_a_code(tensors, first(tensors, "experts.1.", ".weight_packed"), 3)


def flips_a_gptq_code(tensors):
    flips_a_code(tensors, first(tensors, "experts.1.", ".qweight"), 7)


def flips_a_sign(tensors):
    flips_a_code(tensors, first(tensors, "experts.1.", "down_proj.weight"), 7)


def flips_a_zero_point(tensors):
    flips_a_code(tensors, first(tensors, "experts.1.", ".weight_zero_point"), 3)


def swaps_scales_of_two_experts(tensors):
    suffix = first(tensors, "experts.0.", (".weight_scale", ".weight_scale_inv", ".scales")).split("experts.0.")[1]
    one, other = (first(tensors, f"experts.{expert}.", suffix) for expert in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


def swaps_gate_and_up(tensors):
    names = [name for name in tensors if "experts.0.gate_proj." in name]
    for name in names:
        other = name.replace("gate_proj", "up_proj")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def lacks_scales_of_an_expert(tensors):
    del tensors[first(tensors, "experts.1.", ".weight_scale")]


def first(tensors, of, suffix):
    return next(name for name in tensors if of in name and name.endswith(suffix))


PACKED, ASYMMETRIC, FLOAT = "--scheme w4a16 --group-size -1 ", "--scheme w4a16 --group-size 32 --asymmetric", "--scheme fp8 "
BLOCKS, GPTQ = "--scheme fp8-block --solver", "--scheme w8a16 --format gptq"
# What is in a case's options, how its tensors are broken, what must be said of it (a pattern).
BREAKS = [
    (PACKED, flips_a_packed_code, "source: "),
    (PACKED, swaps_scales_of_two_experts, "source: "),
    (PACKED, swaps_gate_and_up, "source: "),
    (ASYMMETRIC, flips_a_packed_code, "source: "),
    (ASYMMETRIC, flips_a_zero_point, "source: "),
    (FLOAT, flips_a_sign, "source: "),
    (FLOAT, swaps_scales_of_two_experts, "source: "),
    (BLOCKS, flips_a_sign, "source: "),
    (BLOCKS, swaps_scales_of_two_experts, "source: "),
    (GPTQ, flips_a_gptq_code, "source: "),
    (GPTQ, swaps_scales_of_two_experts, "source: "),
    (PACKED, lacks_scales_of_an_expert, "weight_scale"),
]


# The same tensors, and a config that says something else of them.
def ignores_no_query(said):
    said["ignore"] = [name for name in said["ignore"] if not name.endswith("q_proj")]


def ignores_an_expert(said):
    said["ignore"].append("model.layers.0.mlp.experts.1.up_proj")


def has_other_groups(said):
    said["config_groups"]["group_0"]["weights"] |= {"strategy": "group", "group_size": 8}


MISDESCRIBED = {
    ignores_no_query: "missing_keys|no attribute 'weight'",
    ignores_an_expert: "quantization_config calls for no quantization",
    has_other_groups: "group_size 8",
}


def main(out):
    file, broken = pathlib.Path(out, "quantized.json"), pathlib.Path(out, "broken-quantized")
    cases = json.loads(file.read_text())
    whole = [case for case in cases if pathlib.Path(case["model"], "model.safetensors").exists()]
    case_of = lambda options: next(case for case in whole if options in f"{case['options']} ")
    spoilt = [broken_copy(case_of(options), spoil, broken, why) for options, spoil, why in BREAKS]
    spoilt += [misdescribed(case_of(PACKED), spoil, broken, why) for spoil, why in MISDESCRIBED.items()]
    file.write_text(json.dumps(cases + spoilt, indent=1))


def misdescribed(case, spoil, out, reason):
    to = out / f"{pathlib.Path(case['model']).name}-{spoil.__name__}"
    shutil.copytree(case["model"], to)
    config = json.loads((to / "config.json").read_text())
    spoil(config["quantization_config"])
    (to / "config.json").write_text(json.dumps(config))
    return case | {"model": str(to), "options": "broken", "reason": reason}


main(*sys.argv[1:])
