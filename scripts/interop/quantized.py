#!/usr/bin/env python3
"""Does the installed transformers load these quantized checkpoints as moe-convert means them?

usage: quantized.py --cases CASES.json      as quantize_goldens.py writes them

Each is decoded by compressed-tensors and torch into a plain checkpoint (decoding.py). `moe-convert logits` must compute the same from
both, bit for bit, and transformers the same as we; what was rounded to nearest lies as near to the source's weights as its scales
allow. Loaded as it is, with nothing missing, unexpected or misshapen, transformers must compute what it does from the plain
checkpoint, bit for bit: transformers 5 with the values of routed experts in the model's dtype, 4.57 with exact ones.
What the receipt warns this transformers of must fail, and no others may. Exits with 1 if anything is wrong, after looking at everything."""
import argparse
import json
import logging
import os
import pathlib
import tempfile
import traceback
import warnings

os.environ |= {"TQDM_DISABLE": "1", "LOGURU_LEVEL": "ERROR"}

import decoding
import torch
import transformers
from caveats import older_cannot, refuses
from loading import TOLERANCE, difference, load, logits, ours, versions

NEWER = int(transformers.__version__.split(".")[0]) >= 5
# 4.57 multiplies blocks that are cut off at the edge in another order than compressed-tensors' own function does.
CUT_BLOCKS = 1e-6
PROBLEMS = []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", metavar="CASES.json", required=True)
    cases = json.loads(pathlib.Path(parser.parse_args().cases).read_text())
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # models this small lose time to waiting threads
    warnings.simplefilter("ignore")
    print(versions())
    limits = {}
    for case in cases:
        try:
            cannot = check(case)
            if cannot:
                limits.setdefault(cannot, []).append(case)
        except Exception as error:
            PROBLEMS.append(case["model"])
            what = str(error) if isinstance(error, AssertionError) else traceback.format_exc(limit=-3)
            print(f"WRONG  {case['model']} {case['options']}\n       " + what.strip().replace("\n", "\n       "), flush=True)
    for cannot, limited in sorted(limits.items()):
        print(f"limit ({len(limited)}): {cannot}")
    print(f"{len(cases) - len(PROBLEMS)} of {len(cases)} as expected; transformers {transformers.__version__}")
    raise SystemExit(bool(PROBLEMS))


def check(case):
    """What this transformers is known not to take, after seeing that it doesn't; empty where it takes the checkpoint."""
    path, ids = pathlib.Path(case["model"]), json.loads(pathlib.Path(case["tokens"]).read_text())
    receipt = json.loads((path / "moe-convert.json").read_text())
    family, refused = "" if NEWER else older_cannot(receipt), refuses(receipt, transformers.__version__)
    with tempfile.TemporaryDirectory() as scratch:
        exact, rounded = pathlib.Path(scratch, "exact"), pathlib.Path(scratch, "rounded")
        near_the_source(case, decoding.plain(path, exact))
        mine = ours(path, ids)
        same("ours", mine, ours(exact, ids), 0.0)
        if family:
            return fails(family, lambda: same("plain", logits(load(exact), ids), mine, TOLERANCE))
        reference = logits(load(exact), ids)
        same("plain", reference, mine, TOLERANCE)
        if refused:
            return fails(refused, lambda: same("loaded", logits(widened(path), ids), mine, 0.01))
        if NEWER:
            decoding.plain(path, rounded, as_stored=True)
            reference = logits(widened(rounded), ids)
        same("loaded", logits(widened(path), ids), reference, CUT_BLOCKS if cut(path) and not NEWER else 0.0)


def fails(why, attempt):
    """`why`, if the attempt fails."""
    try:
        attempt()
    except Exception:
        return why
    raise AssertionError(f"works all the same, though: {why}")


def widened(path):
    """In the stored dtype, which is what transformers 5 can compute with, made float32 afterwards; `model.float()` refuses."""
    return torch.nn.Module.float(load(path, dtype="auto"))


def same(what, found, wanted, limit):
    largest, relative = difference(found, wanted)
    assert relative <= limit, f"{what}: max |Δ| {largest:.3e}, relative {relative:.3e}, limit {limit:.1e}"


def cut(path):
    """Whether its blocks of float8 don't divide its matrices."""
    tensors, config = decoding.read(path)
    (group,) = config["quantization_config"].get("config_groups", {"": {}}).values()
    block = group.get("weights", {}).get("block_structure")
    return bool(block) and any(tensors[f"{name}.weight"].shape[i] % block[i] for name in decoding.modules(tensors) for i in (0, 1))


def near_the_source(case, values):
    """Rounded to nearest: half a step off at most, and what the rounding of scales and zero points adds at the ends of a range."""
    if "--method rtn" not in case["scheme"]:
        return
    sources, _ = decoding.read(case["source"])
    stored, config = decoding.read(case["model"])
    steps = decoding.steps(stored, config)
    assert values, "nothing is quantized"
    for name, value in values.items():
        source = sources[f"{name}.weight"].float()
        if "asymmetric" in case["scheme"]:
            limit = 1.01 * steps[name]
        elif "fp8" in case["scheme"]:
            limit = source.abs() / 16 + steps[name] / 512
        else:
            limit = 0.501 * steps[name] + source.abs() / 256
        far = ((value - source).abs() > limit).sum().item()
        assert not far, f"source: {far} of {value.numel()} weights of {name} are too far from the source's"


main()
