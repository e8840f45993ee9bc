"""Quantized checkpoints as plain ones: compressed-tensors decodes its own formats, a few lines of torch the two others (Hugging Face's
fp8 and GPTQ v1). Nothing here is moe-convert's."""
import json
import pathlib

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file, save_file

MARKS = {".weight_packed": "compressed-tensors", ".qweight": "gptq"}  # a module's tensor that tells how it is encoded
PARTS = (".weight_packed", ".weight_shape", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".qweight", ".qzeros", ".scales", ".g_idx")


def read(path):
    """The tensors and the config."""
    tensors = {}
    for file in sorted(pathlib.Path(path).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors, json.loads((pathlib.Path(path) / "config.json").read_text())


def modules(tensors):
    """Names of quantized modules."""
    packed = {name.removesuffix(mark) for name in tensors for mark in MARKS if name.endswith(mark)}
    floats = {name.removesuffix(".weight") for name, value in tensors.items() if value.dtype == torch.float8_e4m3fn}
    return sorted(packed | floats)


def parts_of(name, tensors):
    return {part: tensors[name + part] for part in (".weight", *PARTS) if name + part in tensors}


def decoded(tensors, config):
    """{module: values [N, K] in float32}; every product of a code and a scale is exact in it, or rounded once."""
    said = config["quantization_config"]
    decode = {"compressed-tensors": compressed, "fp8": blocks, "gptq": gptq}[said["quant_method"]]
    return {name: decode(parts_of(name, tensors), of_module(name, said)) for name in modules(tensors)}


def of_module(name, said):
    """What the config says of this module: the one group of compressed-tensors whose target its library finds first."""
    if "config_groups" not in said:
        return said
    groups = {target: group for group in said["config_groups"].values() for target in group["targets"]}
    return said | {"config_groups": {"group_0": groups[match_targets(name, torch.nn.Linear(1, 1), groups)[0]]}}


def steps(tensors, config):
    """{module: the scale of each weight [N, K] in float32}."""
    return {name: step(parts_of(name, tensors), of_module(name, config["quantization_config"])) for name in modules(tensors)}


def step(parts, said):
    if ".scales" in parts:
        return parts[".scales"].float().T[:, parts[".g_idx"].long()]
    scale = parts.get(".weight_scale", parts.get(".weight_scale_inv")).float()
    (n, k), block = shape(parts), said.get("weight_block_size")
    for group in said.get("config_groups", {}).values():
        block = group["weights"].get("block_structure")
    rows, columns = block or (1, k // scale.shape[1])
    return scale.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]


def shape(parts):
    return parts[".weight_shape"].tolist() if ".weight_shape" in parts else parts[".weight"].shape


def compressed(parts, said):
    (group,) = said["config_groups"].values()
    scheme = QuantizationScheme(**group)
    state = {name.removeprefix("."): value for name, value in parts.items()}
    state["weight_scale"] = state["weight_scale"].float()
    values = BaseCompressor.get_value_from_registry(said["format"]).decompress(state, scheme)["weight"]
    assert values.dtype == torch.float32
    return values


def blocks(parts, said):
    return parts[".weight"].float() * step(parts, said)


def gptq(parts, said):
    """GPTQ v1: codes down the columns, zero points less 1 along the rows, both with the lowest bits first."""
    bits = said["bits"]
    codes = unbits(parts[".qweight"].T, bits)  # [N, K]
    zeros = (unbits(parts[".qzeros"], bits) + 1) % 2**bits  # [groups, N]
    groups = parts[".g_idx"].long()
    return (codes - zeros.T[:, groups]).float() * step(parts, said)


def unbits(words, bits):
    """Each row of 32-bit words as numbers of `bits` bits."""
    ones = words[:, :, None].bitwise_right_shift(torch.arange(32, dtype=torch.int32)).bitwise_and(1).flatten(1)
    return (ones.unflatten(1, (-1, bits)).long() << torch.arange(bits)).sum(-1)


def plain(path, out, as_stored=False):
    """Writes the checkpoint without quantization: all exact, in float32; or, as transformers 5 has it in memory, with the values of
    routed experts, and of all that Hugging Face's fp8 holds, in the model's dtype. Returns what was decoded."""
    out.mkdir()
    tensors, config = read(path)
    values = decoded(tensors, config)
    said = {key: value for key, value in config.items() if key != "quantization_config"}
    if not as_stored:
        said |= {"dtype": "float32", "torch_dtype": "float32"}
    kept = {name: value for name, value in tensors.items() if not any(name.removesuffix(part) in values for part in (".weight", *PARTS))}
    for name, value in values.items():
        rounded = as_stored and (".experts." in name or config["quantization_config"]["quant_method"] == "fp8")
        kept[f"{name}.weight"] = value.to(getattr(torch, said["dtype"]) if rounded else torch.float32).contiguous()
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(said))
    return values
