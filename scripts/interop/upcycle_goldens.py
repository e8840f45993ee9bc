"""Upcycles every dense golden with several options, for check.py.

usage: upcycle_goldens.py OUT_DIR      writes OUT_DIR/cases.json"""
import json
import os
import pathlib
import subprocess
import sys

BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
EIGHT, FIVE = "--experts 8 --top-k 2", "--experts 5 --top-k 3"
NOT_NORMALISED = f"{EIGHT} --norm-topk-prob false --router zeros"
OPTIONS = {
    "llama": [EIGHT, FIVE],
    "mistral": [EIGHT, FIVE],
    "qwen2": [f"{e} --shared-fraction {s}" for e in (EIGHT, FIVE) for s in (0, 0.5, 1)]
    + [NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros --shared-fraction 0"],
    "qwen3": [EIGHT, FIVE, NOT_NORMALISED, f"{FIVE} --norm-topk-prob false --router zeros"],
}
# What the target family cannot hold.
REFUSED = {"llama/bias", "qwen3/layer_types"}


def main(out):
    out = pathlib.Path(out)
    golden = pathlib.Path("golden")
    sources = [(d.relative_to(golden / "families").as_posix(), d / "model", d / "tokens.json", d / "reference.safetensors")
               for family in OPTIONS for d in sorted((golden / "families" / family).iterdir())]
    models = golden / "models"
    sources.append(("llama/trained", models / "dense", models / "dense.tokens.json", models / "dense.logits.safetensors"))
    cases, wrong = [], []
    for name, source, tokens, reference in sources:
        family = name.split("/")[0]
        for number, options in enumerate(OPTIONS[family]):
            to = out / name.replace("/", "-") / str(number)
            to.parent.mkdir(parents=True, exist_ok=True)
            command = [BINARY, "upcycle", str(source), "-o", str(to), *options.split(), "--json", "--quiet", "--overwrite"]
            run = subprocess.run(command, capture_output=True, text=True)
            if name in REFUSED or run.returncode:
                if (run.returncode == 1) != (name in REFUSED):
                    wrong.append(f"{' '.join(command)}: exit code {run.returncode}: {run.stderr.strip()}")
                continue
            receipt = json.loads(run.stdout)["receipt"]
            options = f"[{options}: {receipt['identity']['kind']}, measured {receipt['measured']['max_logit_difference']:.1e}]"
            cases.append({"model": str(to), "tokens": str(tokens), "dense": str(reference), "options": options})
            verify = subprocess.run([BINARY, "verify", str(to), "--json"], capture_output=True, text=True)
            if verify.returncode:
                wrong.append(f"verify {to}: exit code {verify.returncode}: {verify.stderr.strip()}")
    (out / "cases.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} results from {len(sources) - len(REFUSED)} dense models; refused as they should be: {sorted(REFUSED)}")
    if wrong:
        raise SystemExit("\n".join(wrong))


main(*sys.argv[1:])
