#!/usr/bin/env python3
"""Does the installed transformers load these checkpoints as moe-convert means them?

usage: check.py [--cases CASES.json] MODEL_DIR...

For each: loads it with nothing missing, unexpected or mismatched; compares logits with `moe-convert logits`; stock attention
and experts, and decoding through the cache, must agree too. A case may also name the dense model's logits:
    [{"model": DIR, "tokens": IDS.json, "dense": LOGITS.safetensors or DIR, "source": DIR, "options": "…"}, …]
(a directory is read by transformers 5 only: 4.57 misreads newer dense configs). They are compared as strictly as the receipt
promises: 1e-4 of the largest logit where it says exact, four times what it measured where it says approximate. Where the function
was changed on purpose, and the case names the dense model's directory as "source", truth.py says what must have come out.
With "older_cannot": REASON, transformers 4 must fail: so the list of its limits stays true.
Exits with 1 if anything is wrong, after looking at everything. MOE_CONVERT names the binary."""
import argparse
import json
import logging
import pathlib
import traceback
import warnings

import torch
import transformers
import truth
from loading import TOLERANCE, difference, load, logits, ours, split_groups, stepped, versions
from safetensors.torch import load_file

PROBLEMS, NOTES = [], {}


class Notes(logging.Handler):
    """Collects what transformers grumbles about, a line for each complaint."""

    def emit(self, record):
        NOTES.setdefault(record.getMessage().splitlines()[0][:160], set()).add(self.model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL_DIR")
    parser.add_argument("--cases", metavar="CASES.json")
    args = parser.parse_args()
    cases = [{"model": model} for model in args.models]
    if args.cases:
        cases += json.loads(pathlib.Path(args.cases).read_text())
    notes = Notes(logging.WARNING)
    transformers.utils.logging.add_handler(notes)
    transformers.utils.logging.set_verbosity_warning()
    torch.set_num_threads(1)  # models this small lose time to waiting threads
    warnings.simplefilter("ignore")
    print(versions())
    for case in cases:
        notes.model = case["model"]
        cannot = None if NEWER else case.get("older_cannot")
        try:
            figures = check(case)
            if cannot:
                PROBLEMS.append(case["model"])
            print(f"{f'WRONG  expected: {cannot}:' if cannot else 'ok    '} {label(case)}  {figures}", flush=True)
        except Exception as error:
            if cannot:
                print(f"limit  {label(case)}  {cannot}", flush=True)
                continue
            PROBLEMS.append(case["model"])
            what = str(error) if isinstance(error, AssertionError) else traceback.format_exc(limit=-3)
            print(f"WRONG  {label(case)}\n       " + what.strip().replace("\n", "\n       "), flush=True)
    for note, models in sorted(NOTES.items()):
        print(f"note ({len(models)} of {len(cases)}): {note}")
    print(f"{len(cases) - len(PROBLEMS)} of {len(cases)} as expected; transformers {transformers.__version__}")
    raise SystemExit(bool(PROBLEMS))


def label(case):
    return f"{case['model']} {case.get('options', '')}".strip()


def check(case):
    path = pathlib.Path(case["model"])
    config = json.loads((path / "config.json").read_text())
    vocab = config["vocab_size"]
    drawn = [[(7 + 31 * i * i + 3 * s) % vocab for i in range(n)] for s, n in enumerate((21, 9, 1))]
    ids = json.loads(pathlib.Path(case["tokens"]).read_text()) if "tokens" in case else drawn
    figures, wrong = {}, []

    def compare(what, found, wanted, limit=TOLERANCE):
        largest, relative = difference(found, wanted)
        figures[what] = f"{relative:.1e}"
        if relative > limit:
            wrong.append(f"{what}: max |Δ| {largest:.3e}, relative {relative:.3e}, limit {limit:.1e}")

    model = load(path)
    assert [type(model).__name__] == config["architectures"], f"{type(model).__name__} is not {config['architectures']}"
    found = logits(model, ids)
    compare("ours", found, ours(path, ids))
    longest = max(range(len(ids)), key=lambda s: len(ids[s]))
    start = sum(map(len, ids[:longest]))
    rows = found[start : start + len(ids[longest])]
    compare("cache", stepped(model, ids[longest]), rows)
    compare("stock", logits(stock(path, config), ids), found)
    limit = promised(path) if "dense" in case else None
    if limit and (NEWER or case["dense"].endswith(".safetensors")):
        compare("dense", found, wanted(case["dense"], ids), limit)
    if "source" in case:
        made = truth.Case(case, json.loads((path / "moe-convert.json").read_text()), model)
        many = [[(31 * i * i + 7 * i * s + 11 * s) % vocab for i in range(32)] for s in range(64)]
        if made.granularity > 1 and (split := split_groups(model, many, made.granularity)) > made.allowed_splits:
            wrong.append(f"{split} times a token goes to some shards of a network but not to all")
        if NEWER:
            made.check(compare, ids)
    assert not wrong, "\n".join(wrong)
    return " ".join(f"{what} {figure}" for what, figure in figures.items())


def wanted(dense, ids):
    """A dense model's logits: stored ones, or those of a checkpoint as this transformers reads it."""
    return load_file(dense)["logits"] if dense.endswith(".safetensors") else logits(load(dense), ids)


def stock(path, config):
    """Loaded with transformers' own choices; grouped products want widths in multiples of 16 bytes."""
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    aligned = all(n * 4 % 16 == 0 for n in (width, config["hidden_size"]))
    return load(path, attn_implementation="sdpa", **({"experts_implementation": None} if aligned and NEWER else {}))


NEWER = int(transformers.__version__.split(".")[0]) >= 5


def promised(path):
    """How far the receipt lets logits be from the dense model's; None if it promises nothing."""
    receipt = json.loads((path / "moe-convert.json").read_text())
    kind, measured = receipt["identity"]["kind"], receipt.get("measured")
    if kind == "exact":
        return TOLERANCE
    if kind == "approximate" and measured:
        return max(TOLERANCE, 4 * measured["max_logit_difference"] / max(1.0, measured["max_logit"]))


main()
