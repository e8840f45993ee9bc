"""What scripts/bench-quantize runs; needs no package itself."""
import argparse
import datetime
import json
import pathlib
import shutil
import statistics
import subprocess

from machine import command, load, machine, timed

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "scripts/interop/peers"
MODELS = {
    "small": ["--hidden", "512", "--width", "512", "--experts", "32", "--top-k", "4", "--layers", "4", "--windows", "80"],
    "layer": ["--hidden", "2048", "--width", "768", "--experts", "128", "--top-k", "8", "--layers", "1", "--windows", "24"],
}
HELD_OUT = {"small": 16, "layer": 8}  # windows that nothing is calibrated on


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    for name in ("binary", "python", "gptqmodel", "scratch"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=name != "gptqmodel")
    parser.add_argument("--runs", type=int, required=True)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    folder = args.scratch / args.model
    command(args.python, ROOT / "scripts/interop/random_qwen3_moe.py", folder, *MODELS[args.model])
    ids = json.loads((folder / "windows.json").read_text())
    # Windows come domain by domain; those held out are spread over all.
    held = set(range(0, len(ids), len(ids) // HELD_OUT[args.model]))
    (folder / "calibration.json").write_text(json.dumps([window for i, window in enumerate(ids) if i not in held]))
    for name, chosen in (("calibration", lambda i: i not in held), ("held-out", lambda i: i in held)):
        lines = [json.dumps(dict(input_ids=window)) for i, window in enumerate(ids) if chosen(i)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokens = sum(len(window) for i, window in enumerate(ids) if i not in held)
    print(f"{datetime.date.today()}, {machine(args.scratch)}; {command('git', 'describe', '--always', '--dirty')}; load average before: {load()}\n")
    print(f"{' '.join(MODELS[args.model])}: {tokens:,} tokens; every process whole: imports, loading and writing included; the ways in turn, "
          f"{args.runs} times; peers in bfloat16 on all cores, oneDNN on.\n")
    print("| way | median s | all s | CPU s | peak memory MB | KL, held out |\n|---|---|---|---|---|---|")
    compare(args, folder)
    print(f"\nLoad average after: {load()}.")


def compare(args, folder):
    out = args.scratch / "out"
    model, data = folder / "model", folder / "calibration.jsonl"
    ours = [args.binary, "quantize", model, "-o", out, "--scheme", "w4a16", "--group-size", "128", "-q"]
    gptq = [*ours, "--data", data, "--sequence-length", "256"]
    peer = lambda python, script: [python, PEERS / script, model, folder / "calibration.json", out, "--bits", "4", "--group", "128"]
    ways = {
        "ours, `--samples per-expert`": [*gptq, "--samples", "per-expert"],
        "ours, `--samples routed`": [*gptq, "--samples", "routed"],
        "ours, `--samples all-experts`": [*gptq, "--samples", "all-experts"],
        "ours, `--method rtn`": [*ours, "--method", "rtn"],
        "llm-compressor, routed": [*peer(args.python, "llm_compressor_gptq.py"), "--routed"],
        "llm-compressor, all experts (its default)": [*peer(args.python, "llm_compressor_gptq.py"), "--all-experts"],
    }
    if args.gptqmodel:
        ways["GPTQModel, routed (its default)"] = [*peer(args.gptqmodel, "gptqmodel_gptq.py"), "--routed"]
    found, divergence = {way: [] for way in ways}, {}
    for _ in range(args.runs):
        for way, words in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            found[way].append(timed(words, args.scratch / "log.txt"))
            divergence.setdefault(way, kl(args, model, out, folder / "held-out.jsonl"))
    for way, runs in found.items():
        cells = [way, f"{statistics.median(run['seconds'] for run in runs):.1f}", ", ".join(f"{run['seconds']:.1f}" for run in runs),
                 f"{statistics.median(run['cpu'] for run in runs):.1f}", f"{max(run['peak'] for run in runs) / 1e6:.0f}", divergence[way]]
        print(f"| {' | '.join(cells)} |", flush=True)
    shutil.rmtree(out)


def kl(args, model, out, data):
    """Our own reading of what any of them wrote."""
    words = [args.binary, "eval", out, "--against", model, "--data", data, "--sequence-length", "256", "--json", "-q"]
    run = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    return f"{json.loads(run.stdout)['report']['all']['against']['kl']:.5f}" if run.returncode == 0 else run.stderr.strip().splitlines()[0]


main()
