#!/usr/bin/env python3
"""formats/*.safetensors: random codes as the reference libraries pack them, and the values they unpack them to. See README.md.

    python formats.py compressed-tensors     # requirements.txt: pack-quantized, float-quantized, and transformers' fp8
    python formats.py gptq                   # requirements-gptqmodel.txt
"""
import os
import sys

os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from files import GOLDEN, HERE, report  # noqa: E402

torch.set_num_threads(1)
BITS = [2, 3, 4, 8]  # of GPTQ
PACKED_BITS = [2, 3, 4, 5, 6, 8]
FP8_MAX = 448.0


def save(name, tensors):
    assert all(torch.isfinite(value.float()).all() for value in tensors.values())
    path = f"formats/{name}.safetensors"
    (HERE / path).parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / path)
    report(path)
    assert (HERE / path).stat().st_size <= 40_000


def random_codes(shape, bits, generator):
    """Codes from 0, with both ends in every row."""
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    codes[:, 0], codes[:, -1] = 0, 2**bits - 1
    return codes


def random_scales(shape, generator, dtype):
    return (torch.rand(shape, generator=generator) * 0.02 + 0.001).to(dtype)


# ---------------------------------------------------------------- compressed-tensors


def packed(bits, symmetric, group, generator):
    """One case of pack-quantized: codes q + 2^(b-1), what stands in the file, and the values in float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationScheme

    N, K = (6, 128) if group == 128 else (12, 84) if group == -1 else (12, 64)
    g, middle = K if group == -1 else group, 2 ** (bits - 1)
    codes = random_codes((N, K), bits, generator)
    scales = random_scales((N, K // g), generator, torch.bfloat16)
    zeros = torch.full((N, K // g), middle) if symmetric else torch.randint(0, 2**bits, (N, K // g), generator=generator)
    strategy = {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
    scheme = QuantizationScheme(targets=["Linear"], weights={"num_bits": bits, "type": "int", "symmetric": symmetric} | strategy)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    weight = (codes - zeros.repeat_interleave(g, 1)).float() * scales.float().repeat_interleave(g, 1)
    state = {"weight": weight, "weight_scale": scales.float(), "weight_zero_point": (zeros - middle).to(torch.int8)}
    stored = compressor.compress(state, scheme)
    assert torch.equal(stored["weight_packed"], pack_to_int32((codes - middle).to(torch.int8), bits)), "codes got lost"
    values = compressor.decompress(stored, scheme)["weight"]
    assert values.dtype == torch.float32 and values.shape == codes.shape
    assert set(stored) == {"weight_packed", "weight_scale", "weight_shape"} | (set() if symmetric else {"weight_zero_point"})
    return {"codes": codes.to(torch.uint8), "zeros": zeros.to(torch.uint8), **stored, "weight_scale": scales, "values": values}


def pack_quantized():
    for bits in PACKED_BITS:
        for symmetric in (True, False):
            generator, tensors = torch.Generator().manual_seed(10 * bits + symmetric), {}
            for group in (-1, 32, 64, 128):
                tensors |= {f"g{group}.{key}": value for key, value in packed(bits, symmetric, group, generator).items()}
            save(f"pack-quantized.w{bits}.{'sym' if symmetric else 'asym'}", tensors)


# ---------------------------------------------------------------- fp8


def model_rows():
    """[256, 128] of the built-in model, bfloat16: an expert's gate and up."""
    with safe_open(GOLDEN / "models" / "moe" / "model.safetensors", "pt") as file:
        return torch.cat([file.get_tensor(f"model.layers.1.mlp.experts.3.{name}_proj.weight") for name in ("gate", "up")])


def float_quantized():
    """Per row, and in blocks of 128 x 128, of which those at the edges are smaller. Scales are rounded to their dtype first; the rest is float32."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    generator, tensors = torch.Generator().manual_seed(8), {}
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    cases = {"channel": (20, 96), "block.wide": (8, 136), "block.tall": (136, 8)}
    for name, shape in cases.items():
        weight = (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)
        weight[3] = 0
        block = name.startswith("block")
        strategy = {"strategy": "block", "block_structure": [128, 128]} if block else {"strategy": "channel"}
        scheme = QuantizationScheme(targets=["Linear"], weights={"num_bits": 8, "type": "float", "symmetric": True} | strategy)
        rows, columns = (128, 128) if block else (1, shape[1])
        largest = torch.stack([torch.stack([part.abs().max() for part in band.split(columns, 1)]) for band in weight.float().split(rows, 0)])
        scale, _ = calculate_qparams(-largest, largest, scheme.weights)
        scale = scale.to(torch.bfloat16)
        stored = compressor.compress({"weight": weight.float(), "weight_scale": scale.float()}, scheme)
        values = compressor.decompress(stored, scheme)["weight"]
        assert stored["weight"].dtype == torch.float8_e4m3fn and values.dtype == torch.float32
        tensors |= {f"{name}.input": weight, f"{name}.weight": stored["weight"], f"{name}.weight_scale": scale, f"{name}.values": values}
    save("float-quantized", tensors)


def hugging_face_fp8():
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config())
    stored = Fp8Quantize(quantizer).convert({"weight": model_rows()})
    values = Fp8Dequantize(quantizer)._dequantize_one(stored["weight"], stored["weight_scale_inv"], output_dtype=torch.float32)
    save("fp8", {**stored, "values.every_64th_row": values[::64]})


def casts():
    """float32 around every border between two float8 values, also beyond the largest, clamped as both libraries do, then cast by torch."""
    grid = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (grid[1:] + grid[:-1]) / 2
    up, down = (torch.nextafter(middle, torch.tensor(end)) for end in (1e9, -1e9))
    inputs = torch.cat([grid, middle, up, down, torch.tensor([449.0, 463.9, 464.0, 464.1, 480.0, 1e30, 1e-30, 2.0**-149])])
    inputs = torch.cat([inputs, -inputs])
    save("e4m3", {"inputs": inputs, "codes": inputs.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)})


# ---------------------------------------------------------------- GPTQ


def gptq_case(bits, symmetric, group, generator, shuffled=False, least_zero=1):
    """GPTQ v1 as gptqmodel's TORCH backend packs codes [N, K] (from 0), and what it reads back."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import FORMAT
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module

    N, K = 32, 64
    g, middle = K if group == -1 else group, 2 ** (bits - 1)
    codes = random_codes((N, K), bits, generator)
    scales = random_scales((N, K // g), generator, torch.float16)
    zeros = torch.full((N, K // g), middle) if symmetric else torch.randint(least_zero, 2**bits, (N, K // g), generator=generator)
    order = torch.randperm(K, generator=generator) if shuffled else torch.arange(K)
    g_idx = torch.empty(K, dtype=torch.int32)
    g_idx[order] = (torch.arange(K) // g).to(torch.int32)
    linear = torch.nn.Linear(K, N, bias=False)
    linear.weight.data = (codes - zeros[:, g_idx]).float() * scales.float()[:, g_idx]

    def layer():
        return TorchLinear(bits=bits, group_size=group, sym=symmetric, desc_act=shuffled, in_features=K, out_features=N, format=FORMAT.GPTQ)

    writer = layer()
    writer.pack(linear, scales.float(), zeros.float(), g_idx)
    convert_gptq_v2_to_v1_format_module(writer, QuantizeConfig(bits=bits, group_size=group, sym=symmetric))
    stored = {name: getattr(writer, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    assert torch.equal(stored["scales"], scales.T)

    reader = layer()
    for name, value in stored.items():
        assert getattr(reader, name).shape == value.shape and getattr(reader, name).dtype == value.dtype, name
        getattr(reader, name).copy_(value)
    convert_gptq_v1_to_v2_format_module(reader, bits, torch.int32)
    reader.scales = reader.scales.float()
    values = reader.dequantize_weight().T
    assert values.dtype == torch.float32 and torch.equal(values, linear.weight.data)
    return {"codes": codes.to(torch.uint8), "zeros": zeros.to(torch.uint8), **stored, "values": values}


def gptq():
    for bits in BITS:
        generator, tensors = torch.Generator().manual_seed(bits), {}
        for name, symmetric, group in (("sym.g-1", True, -1), ("asym.g32", False, 32)):
            tensors |= {f"{name}.{key}": value for key, value in gptq_case(bits, symmetric, group, generator).items()}
        save(f"gptq.w{bits}", tensors)
    generator = torch.Generator().manual_seed(1)
    tensors = {f"shuffled.{key}": value for key, value in gptq_case(4, True, 32, generator, shuffled=True).items()}
    tensors |= {f"zero.{key}": value for key, value in gptq_case(4, False, 32, generator, least_zero=0).items()}
    assert (tensors["zero.zeros"] == 0).any()
    save("gptq.odd", tensors)


if __name__ == "__main__":
    if sys.argv[1] == "gptq":
        gptq()
    else:
        pack_quantized(), float_quantized(), hugging_face_fp8(), casts()
