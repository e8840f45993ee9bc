#!/usr/bin/env python3
"""Asks the GPTQ of llm-compressor and gptqmodel for the cases of gptq.json in which their conventions are ours, and counts codes that differ. See README.md.

    python peers.py llm-compressor        # scripts/interop/venv llm-compressor
    python peers.py gptqmodel             # requirements-gptqmodel.txt
"""
import json
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from files import GOLDEN, HERE

torch.set_num_threads(1)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def task(case, stored):
    """W [N, K] and H [K, K] in float64."""
    name = f"model.layers.{case['layer']}.mlp.experts.{case['expert']}.{case['matrix']}_proj.weight"
    with safe_open(GOLDEN / "models" / "moe" / "model.safetensors", "pt") as file:
        W = file.get_tensor(name).double()
    X = stored[f"{case['problem']}.inputs"].double()
    rho = stored["hot.gates"].double() ** case["gate_power"] if case["gate_power"] else torch.ones(len(X), dtype=torch.float64)
    if case["wide"]:
        W, X, rho = W.reshape(64, 256), X.reshape(-1, 256), rho[::2]
    W = W[: case["rows"]].clone()
    for row, start, end in case["zeroed"]:
        W[row, start:end] = 0
    return W, (X * rho[:, None]).T @ X


def llm_compressor(case, W, H):
    """Codes, and the scales and zeros that compressed-tensors computes: llm-compressor takes them all from the original weights."""
    if case["group"] != -1 and not case["act_order"]:
        return None
    import llmcompressor.modifiers.gptq.gptq_quantize as gptq
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq import helpers

    gptq.GPTQ_PRECISION = helpers.GPTQ_PRECISION = torch.float64
    g = W.shape[1] if case["group"] == -1 else case["group"]
    args = QuantizationArgs(num_bits=case["bits"], symmetric=case["symmetric"], strategy="group", group_size=g, actorder="static" if case["act_order"] else None)
    groups = W.unflatten(1, (-1, g))
    scales, zeros = calculate_qparams(groups.amin(2), groups.amax(2), args)
    scales = scales.to(DTYPES[case["scale_dtype"]]).double()
    values, _, fallback = gptq.quantize_weight(W[None].clone(), H[None].clone(), scales[None], zeros[None], None, args, percdamp=0.01)
    assert not fallback.any()
    middle = 2 ** (case["bits"] - 1)
    wide = scales.repeat_interleave(g, 1)
    zeros = zeros.double() + middle
    return values[0] / wide + zeros.repeat_interleave(g, 1), scales, zeros


def gptqmodel(case, W, H):
    """The same in float32; its parameters of a group know the blocks of columns before, so a block is a group here."""
    if case["act_order"] or case["scale_dtype"] != "float32":
        return None
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W.float()
    config = QuantizeConfig(bits=case["bits"], group_size=case["group"], sym=case["symmetric"], desc_act=False, act_group_aware=False,
                            damp_percent=0.01, fallback=None)
    solver = GPTQ(linear, config)
    solver.quantizer.configure(perchannel=True)
    solver.finalize_hessian = lambda target_device=None: setattr(solver, "H", H.float())
    solver.nsamples = 1
    with torch.inference_mode():
        values, scales, zeros, *_ = solver.quantize(blocksize=128 if case["group"] == -1 else case["group"])
    g = W.shape[1] // scales.shape[1]
    return values.double() / scales.double().repeat_interleave(g, 1) + zeros.double().repeat_interleave(g, 1), scales, zeros


def main(peer):
    stored = load_file(HERE / "gptq.safetensors")
    for case in json.loads((HERE / "gptq.json").read_text())["cases"]:
        W, H = task(case, stored)
        found = peer(case, W, H)
        if found is None:
            continue
        codes, scales, zeros = found
        whole = codes.round()
        assert (codes - whole).abs().max() < 1e-2, "not on the grid"
        wanted, scale, zero = (stored[f"{case['name']}.{what}"].double() for what in ("codes", "scales", "zeros"))
        different = whole != wanted
        print(f"{case['name']:42} {different.sum().item()} of {whole.numel()} codes in {different.any(1).sum().item()} rows differ,",
              f"{(scales.double() != scale).sum().item()} scales (at most {((scales.double() - scale).abs() / scale).max():.0e}),",
              f"{(zeros.double() != zero).sum().item()} zeros; dead columns {(H.diag() == 0).sum().item()}")


if __name__ == "__main__":
    main({"llm-compressor": llm_compressor, "gptqmodel": gptqmodel}[sys.argv[1]])
