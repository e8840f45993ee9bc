"""Prunes and merges MoE goldens and the built-in MoE, for check.py.

usage: fewer_experts.py OUT_DIR      from the root of the repository; writes OUT_DIR/fewer.json

Every golden of an MoE family loses as few experts as its router allows, at random; the built-in model is pruned and merged by
each way of deciding. What cannot be pruned (as many experts as top-k, or groups of the least size) is refused, and counted."""
import json
import os
import pathlib
import subprocess
import sys

from caveats import older_cannot

FAMILIES = pathlib.Path("golden/families")
BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
DATA = "--data text=golden/text/english.calibration.txt --data-tokens 1024"
BUILT_IN = [
    f"prune --experts 18 {DATA}",
    f"prune --keep 0.5 --criterion reap {DATA}",
    "prune --experts 5 --criterion aimer",
    f"merge --experts 18 {DATA}",
]
LEAST = 40  # goldens that must have been pruned


def merges():
    """The options of a merge by each algorithm."""
    schema = json.loads(subprocess.run([BINARY, "schema"], capture_output=True, check=True).stdout)
    algorithms = schema["$defs"]["merge"]["properties"]["algorithm"]["anyOf"][0]["enum"]
    return [f"merge --experts 12 --algorithm {name} {DATA}" for name in algorithms]


def run(model, out, options):
    command, *rest = options.split()
    return subprocess.run([BINARY, command, model, "-o", out, *rest, "--quiet"], capture_output=True, text=True)


def case(model, tokens, options):
    receipt = json.loads((model / "moe-convert.json").read_text())
    return dict(model=str(model), tokens=str(tokens), options=options, older_cannot=older_cannot(receipt))


def main():
    out = pathlib.Path(sys.argv[1]) / "fewer"
    out.mkdir(parents=True)
    cases, refused = [], []
    for model in sorted(FAMILIES.glob("*/*/model")):
        config = json.loads((model / "config.json").read_text())
        keys = ("n_routed_experts", "num_local_experts", "num_experts")
        experts = next((config[key] for key in keys if key in config), None)
        # check.py loads in float32, in which transformers 5 can't run fp8; quantized.py does otherwise.
        if experts is None or "quantization_config" in config:
            continue
        name = "-".join(model.parts[-3:-1])
        for count in range(experts - 1, 0, -1):
            options = f"prune --experts {count} --criterion random --mtp drop"
            done = run(model, out / name, options)
            if done.returncode == 0:
                cases.append(case(out / name, model.parent / "tokens.json", options))
                break
        else:
            refused.append((name, done.stderr.splitlines()[0]))
    pruned = len(cases)
    built_in = BUILT_IN + merges()
    for index, options in enumerate(built_in):
        where = out / f"built-in-{index}"
        done = run("golden/models/moe", where, options)
        assert done.returncode == 0, f"{options}\n{done.stderr}"
        cases.append(case(where, "golden/models/moe.tokens.json", options))
    (out.parent / "fewer.json").write_text(json.dumps(cases, indent=1))
    print(f"{pruned} goldens pruned, {len(built_in)} results from the built-in MoE; {len(refused)} goldens can't lose an expert:")
    print("".join(f"  {name}: {why}\n" for name, why in refused), end="")
    assert pruned >= LEAST, pruned


main()
