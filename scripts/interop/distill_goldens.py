"""Distills MoE goldens and the built-in MoE to dense models, for check.py.

usage: distill_goldens.py OUT_DIR      from the root of the repository; writes OUT_DIR/distilled.json

Every golden of an MoE family becomes dense, in each family that can hold it; the built-in model by each way of starting. What cannot
become dense is refused, and counted."""
import json
import os
import pathlib
import subprocess
import sys

from caveats import older_cannot

FAMILIES = pathlib.Path("golden/families")
BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
TARGETS = {"mixtral": ["mistral", "llama"], "qwen2_moe": ["qwen2", "llama"]}
DATA = "--steps 0 --data text=golden/text/english.calibration.txt --data-tokens 4096 --sequence-length 128"
BUILT_IN = [
    DATA,
    f"--width 384 {DATA}",
    f"--select experts --criterion do-acp --down measured {DATA}",
    f"--init mean {DATA}",
    f"{DATA} --steps 4".replace("--steps 0 ", ""),
]
LEAST = 25  # dense models that must have come of goldens


def run(model, out, options):
    return subprocess.run([BINARY, "distill", model, "-o", out, *options.split(), "--quiet"], capture_output=True, text=True)


def case(model, tokens, options):
    receipt = json.loads((model / "moe-convert.json").read_text())
    return dict(model=str(model), tokens=str(tokens), options=f"distill {options}", older_cannot=older_cannot(receipt))


def main():
    out = pathlib.Path(sys.argv[1]) / "distilled"
    out.mkdir(parents=True)
    cases, refused = [], []
    for model in sorted(FAMILIES.glob("*/*/model")):
        config = json.loads((model / "config.json").read_text())
        if not any(key in config for key in ("n_routed_experts", "num_local_experts", "num_experts")):
            continue
        ids = [[(7 + 31 * i * i + 3 * s) % config["vocab_size"] for i in range(16)] for s in range(10)]
        data = out / "ids.jsonl"
        data.write_text("".join(json.dumps(dict(input_ids=sequence)) + "\n" for sequence in ids))
        for target in TARGETS.get(config["model_type"], [config["model_type"]]):
            name = "-".join([*model.parts[-3:-1], target])
            options = f"--steps 0 --down measured --data {data}" + (f" --target {target}" if target in sum(TARGETS.values(), []) else "")
            done = run(model, out / name, options)
            if done.returncode == 0:
                cases.append(case(out / name, model.parent / "tokens.json", options))
            else:
                refused.append((name, done.stderr.splitlines()[0]))
    distilled = len(cases)
    for index, options in enumerate(BUILT_IN):
        where = out / f"built-in-{index}"
        done = run("golden/models/moe", where, options)
        assert done.returncode == 0, f"{options}\n{done.stderr}"
        cases.append(case(where, "golden/models/moe.tokens.json", options))
    (out.parent / "distilled.json").write_text(json.dumps(cases, indent=1))
    print(f"{distilled} goldens became dense, {len(BUILT_IN)} dense models of the built-in MoE; {len(refused)} can't be held:")
    print("".join(f"  {name}: {why}\n" for name, why in refused), end="")
    assert distilled >= LEAST, distilled


main()
