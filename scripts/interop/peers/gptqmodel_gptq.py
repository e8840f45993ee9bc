#!/usr/bin/env python3
"""GPTQ by gptqmodel of the experts of a Mixture-of-Experts checkpoint, calibrated on given windows of token ids. Prints what it cost as JSON.

    python gptqmodel_gptq.py MODEL TOKENS.json OUT [--bits 4] [--group 128] [--routed | --all-experts] [--file-order] [--no-fallback]

Environment: `scripts/interop/venv gptqmodel`. MODEL needs tokenizer files. By default it solves groups, and columns within them, in the order of their
energy, and rounds experts that fewer than 0.5 % of the tokens reach.
"""
import os
import tempfile

from stopwatch import Stopwatch, arguments, prepare, windows

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its loader asks for two, and on two cores its default is one
KEPT = {rf"-:.*{part}.*": {} for part in ("self_attn", "shared_expert", r"layers\.\d+\.mlp\.(gate|up|down)_proj")}


def main():
    parser = arguments(__doc__, damping=0.05)
    parser.add_argument("--no-fallback", action="store_true")
    options, watch = parser.parse_args(), Stopwatch()
    torch = prepare(options)
    for name in ("model", "tokens", "out"):
        setattr(options, name, getattr(options, name).resolve())
    os.chdir(tempfile.mkdtemp())  # it leaves its logs where it is started
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import ExpertsRoutingBypass, Fallback, MoEConfig

    watch.lap("import")
    config = QuantizeConfig(bits=options.bits, group_size=options.group, sym=True, desc_act=False, dynamic=KEPT,
                            act_group_aware=not options.file_order and options.group != -1, damp_percent=options.damping,
                            fallback=None if options.no_fallback else Fallback(),
                            moe=MoEConfig(routing=ExpertsRoutingBypass()) if options.all_experts else None, offload_to_disk=False, device="cpu")
    model = GPTQModel.load(str(options.model), config, dtype=getattr(torch, options.dtype), backend=BACKEND.TORCH)
    watch.lap("load")
    ids = windows(options.tokens)
    model.quantize([{"input_ids": window, "attention_mask": [1] * len(window)} for window in ids], batch_size=1, calibration_sort=None)
    watch.lap("quantize")
    model.save(str(options.out))
    watch.lap("save")
    watch.report(options, ["gptqmodel", "transformers", "torch"])


if __name__ == "__main__":
    main()
