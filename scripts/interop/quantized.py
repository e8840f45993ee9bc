#!/usr/bin/env python3
"""Does the installed transformers load these quantized checkpoints as moe-convert means them?

usage: quantized.py --cases CASES.json      as quantize_goldens.py and quantized_bites.py write them

Each is decoded by compressed-tensors and torch into a plain checkpoint (decoding.py). `moe-convert logits` must compute the same from
both, bit for bit, and what was rounded to nearest must be as near to the source's weights as its scales allow. Loaded as it is, with
nothing missing, unexpected or misshapen, transformers must compute what it does from the plain checkpoint, bit for bit: transformers 5
with the values of routed experts in the model's dtype, 4.57 with exact ones, and then what we do.
What the receipt warns this transformers of must fail, and no others may. A case with "reason" is broken, and must be found WRONG for it.
Exits with 1 if anything is wrong, after looking at everything."""
import argparse
import contextlib
import io
import json
import logging
import os
import pathlib
import re
import tempfile
import traceback
import warnings

os.environ["LOGURU_LEVEL"] = "ERROR"

import decoding
import torch
import transformers
from caveats import older_cannot, refuses
from loading import TOLERANCE, difference, load, logits, ours, versions

NEWER = int(transformers.__version__.split(".")[0]) >= 5
# 4.57 multiplies blocks that are cut off at the edge in another order than compressed-tensors' own function does.
CUT_BLOCKS = 1e-6
# How far the rounding of weights to bfloat16 moves logits, for each unit of the largest one: 0.05 was seen with 3 bits, where a token goes to another
# expert for it. What is exact is told from what is not by the other comparisons.
ROUNDING = 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", metavar="CASES.json", required=True)
    cases = json.loads(pathlib.Path(parser.parse_args().cases).read_text())
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # models this small lose time to waiting threads
    warnings.simplefilter("ignore")
    print(versions())
    limits, problems = {}, 0
    for case in cases:
        found = wrong(case, limits)
        if "reason" in case:
            found = None if found and re.search(case["reason"], found) else f"is broken, but that was not found; instead: {found}"
        if found:
            problems += 1
            print(f"WRONG  {case['model']} {case['options']}\n       " + found.strip().replace("\n", "\n       "), flush=True)
    for cannot, limited in sorted(limits.items()):
        print(f"limit ({len(limited)}): {cannot}")
    broken = sum("reason" in case for case in cases)
    print(f"{len(cases) - problems} of {len(cases)} as expected, {broken} of them broken; transformers {transformers.__version__}")
    raise SystemExit(bool(problems))


def wrong(case, limits):
    """What is wrong with it; what this transformers is known not to take goes to `limits`."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress of compressed-tensors
            cannot = check(case)
    except AssertionError as error:
        return str(error)
    except Exception:
        return traceback.format_exc(limit=-3)
    if cannot:
        limits.setdefault(cannot, []).append(case)


def check(case):
    """What this transformers is known not to take, after seeing that it doesn't; empty where it takes the checkpoint."""
    path, ids = pathlib.Path(case["model"]), json.loads(pathlib.Path(case["tokens"]).read_text())
    receipt = json.loads((path / "moe-convert.json").read_text())
    family, refused = "" if NEWER else older_cannot(receipt), refuses(receipt, transformers.__version__)
    with tempfile.TemporaryDirectory() as scratch:
        exact, rounded = pathlib.Path(scratch, "exact"), pathlib.Path(scratch, "rounded")
        values, mine = decoding.plain(path, exact), ours(path, ids)
        near_the_source(case, values)
        same("ours", mine, ours(exact, ids), 0.0)
        loaded = lambda: logits(widened(path), ids)
        if family or refused:
            return fails(family or refused, lambda: same("loaded", loaded(), mine, ROUNDING))
        if NEWER:
            decoding.plain(path, rounded, as_stored=True)
        reference = logits(load(rounded if NEWER else exact), ids)
        same("plain", reference, mine, ROUNDING if NEWER else TOLERANCE)
        same("loaded", loaded(), reference, 0.0 if NEWER else ROUNDING if rounds_activations(path) else CUT_BLOCKS if cut(path) else 0.0)


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


def rounds_activations(path):
    """Whether it asks for activations in float8; 5.x has none where experts are."""
    groups = json.loads((path / "config.json").read_text())["quantization_config"].get("config_groups", {})
    return any(group["input_activations"] for group in groups.values())


def cut(path):
    """Whether its blocks of float8 don't divide its matrices."""
    tensors, config = decoding.read(path)
    groups = config["quantization_config"].get("config_groups", {}).values()
    block = next((group["weights"]["block_structure"] for group in groups if group["weights"].get("block_structure")), None)
    return bool(block) and any(tensors[f"{name}.weight"].shape[i] % block[i] for name in decoding.modules(tensors) for i in (0, 1))


def near_the_source(case, values):
    """Rounded to nearest: half a step off at most, and what the rounding of scales and zero points adds at the ends of a range."""
    if "--solver rtn" not in case["scheme"]:
        return
    sources, _ = decoding.read(case["source"])
    stored, config = decoding.read(case["model"])
    steps = decoding.steps(stored, config)
    assert values, "nothing is quantized"
    for name, value in values.items():
        source = sources[f"{name}.weight"].float()
        if "fp8" in case["scheme"]:
            limit = source.abs() / 16 + steps[name] / 512
        else:
            limit = (1.01 if "asymmetric" in case["scheme"] else 0.501) * steps[name] + source.abs() / 256
        far = ((value - source).abs() > limit).sum().item()
        assert not far, f"source: {far} of {value.numel()} weights of {name} are too far from the source's"


main()
