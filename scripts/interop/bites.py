#!/usr/bin/env python3
"""Does check.py bite? It must call broken copies of good outputs, some of each family, WRONG, each for its own reason.

usage: bites.py CASES.json      as check.py takes them; the copies are in broken/ next to it"""
import importlib.metadata
import json
import pathlib
import re
import shutil
import subprocess
import sys

from breaking import broken_copy

GATE = re.compile(r"(.+\.experts\.\d+\.)(w1|gate_proj)(\.weight)")
UP = {"w1": "w3", "gate_proj": "up_proj"}


def gates(tensors):
    return list(filter(None, map(GATE.fullmatch, sorted(tensors))))


def lacks_a_norm(tensors):
    del tensors["model.norm.weight"]


def lacks_a_tensor_of_an_expert(tensors):
    del tensors[gates(tensors)[0][0]]


def has_one_too_many(tensors):
    gate, expert, _, weight = gates(tensors)[0].group(0, 1, 2, 3)
    tensors[f"{expert}other{weight}"] = tensors[gate]


def swaps_gate_and_up_of_two_experts(tensors):
    for match in gates(tensors)[:2]:
        gate, up = match[0], match[1] + UP[match[2]] + match[3]
        tensors[gate], tensors[up] = tensors[up], tensors[gate]


def exchanges_gates_of_two_experts(tensors):
    first, second = (match[0] for match in gates(tensors)[:2])
    tensors[first], tensors[second] = tensors[second], tensors[first]


def exchanges_routers_of_two_layers(tensors):
    first, second = [name for name in sorted(tensors) if re.search(r"(mlp|moe)\.gate\.weight$", name)][:2]
    tensors[first], tensors[second] = tensors[second], tensors[first]


BREAKS = {
    lacks_a_norm: "missing_keys",
    lacks_a_tensor_of_an_expert: "",  # transformers 5 stops by itself: it can't stack the experts
    has_one_too_many: "unexpected_keys",
    swaps_gate_and_up_of_two_experts: "dense: ",
}

# What truth.py must find, in transformers 5: what is in a case's options, how it is broken, what is said.
LIES = [
    ("--expert-model ", exchanges_gates_of_two_experts, "mixture: "),
    ("--init drop", exchanges_gates_of_two_experts, "a neuron differs in some projections only"),
    ("--init partition", exchanges_gates_of_two_experts, "none of the dense network's"),
    ("--scale-placement nvidia", exchanges_gates_of_two_experts, "a neuron differs in some projections only"),
    ("--router prompts", exchanges_routers_of_two_layers, "router rows differ"),
    ("--router cheap-embed", exchanges_routers_of_two_layers, "entropy "),
]


def main(cases_json):
    out = pathlib.Path(cases_json).parent / "broken"
    shutil.rmtree(out, ignore_errors=True)
    broken = [broken_copy(case, spoil, out, why) for case in one_of_each_family(cases_json) for spoil, why in BREAKS.items()]
    if int(importlib.metadata.version("transformers").split(".")[0]) >= 5:
        cases = json.loads(pathlib.Path(cases_json).read_text())
        broken += [broken_copy(next(case for case in cases if option in case["options"]), spoil, out, why) for option, spoil, why in LIES]
    (out / "cases.json").write_text(json.dumps(broken))
    command = [sys.executable, pathlib.Path(__file__).parent / "check.py", "--cases", out / "cases.json"]
    run = subprocess.run(command, capture_output=True, text=True)
    reports = run.stdout.split("WRONG  ")[1:]
    missed = [case["model"] for case in broken if not any(found(case, report) for report in reports)]
    if run.returncode != 1 or missed:
        raise SystemExit(f"{run.stdout}{run.stderr}check.py should have found what is broken: {' '.join(missed)}")
    print(f"{len(broken)} broken copies found to be WRONG")


def found(case, report):
    return report.startswith(case["model"] + " ") and case["reason"] in report


def one_of_each_family(cases_json):
    chosen = {}
    for case in json.loads(pathlib.Path(cases_json).read_text()):
        path = pathlib.Path(case["model"])
        receipt = json.loads((path / "moe-convert.json").read_text())
        if receipt["identity"]["kind"] == "exact" and (path / "model.safetensors").exists() and not case.get("older_cannot"):
            chosen.setdefault(receipt["result"]["model_type"], case)
    return chosen.values()


main(*sys.argv[1:])
