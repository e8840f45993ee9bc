"""What scripts/bench-reap runs; needs no package itself."""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics

from machine import command, load, machine, timed

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "python", "scratch"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--runs", type=int, required=True)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    command(args.python, ROOT / "scripts/interop/random_qwen3_moe.py", args.scratch / "random")
    print(f"{datetime.date.today()}, {machine(args.scratch)}; {command('git', 'describe', '--always', '--dirty')}; load average before: {load()}\n")
    print("A quarter of the experts goes; the ways in turn, "
          f"{args.runs} times, every process whole: imports, loading and writing included. llm-compressor in the model's dtype, as released, on all cores.\n")
    print("| model, tokens | way | median s | all s | CPU s | peak memory MB | decided the same |")
    print("|---|---|---|---|---|---|---|")
    compare(args, "random Qwen3-MoE", args.scratch / "random" / "model", args.scratch / "random" / "windows.json")
    compare(args, "built-in MoE", ROOT / "golden/models/moe", builtin_windows(args.scratch))
    print(f"\nLoad average after: {load()}.")


def builtin_windows(scratch):
    path = scratch / "builtin.json"
    windows = [ids for domain in json.loads((ROOT / "golden/pruning/tokens.json").read_text()).values() for ids in domain]
    path.write_text(json.dumps(windows))
    return path


def compare(args, label, model, windows):
    ids = json.loads(windows.read_text())
    data = windows.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(dict(input_ids=window)) + "\n" for window in ids))
    config = json.loads((model / "config.json").read_text())
    experts, dtype = config.get("num_experts") or config["num_local_experts"], config.get("dtype") or config["torch_dtype"]
    out = args.scratch / "out"
    ours = [args.binary, "prune", model, "-o", out, "--criterion", "reap", "--data", data, "--sequence-length", str(len(ids[0])), "--experts",
            str(experts * 3 // 4), "-q"]
    peer = [args.python, ROOT / "golden/pruning/llm_compressor.py", "run", "0.25", dtype]
    ways = {
        "ours, `prune --criterion reap --data`": ours,
        "ours, without the guard's sweep": [*ours, "--no-super-expert-guard"],
        "llm-compressor, routed": [*peer, "routed", "released", out, model, windows],
        "llm-compressor, all experts (its default)": [*peer, "all", "released", out, model, windows],
    }
    found, kept = {way: [] for way in ways}, {}
    for _ in range(args.runs):
        for way, words in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            if way.startswith("llm"):
                out.mkdir()
            found[way].append(timed(words, args.scratch / "log.txt"))
            kept[way] = kept_sets(out, experts)
    reference = kept["ours, without the guard's sweep"]
    for way, runs in found.items():
        same = sum(len(a & b) for a, b in zip(kept[way], reference))
        cells = [f"{label}, {sum(map(len, ids)):,}", way, f"{statistics.median(run['seconds'] for run in runs):.1f}",
                 ", ".join(f"{run['seconds']:.1f}" for run in runs), f"{statistics.median(run['cpu'] for run in runs):.1f}",
                 f"{max(run['peak'] for run in runs) / 1e6:.0f}", f"{same} of {sum(map(len, reference))}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    shutil.rmtree(out)


def kept_sets(out, experts):
    """The experts that are left, by layer."""
    receipt = out / "moe-convert.json"
    if receipt.exists():
        return [{cluster[0] for cluster in layer["details"]["clusters"]} for layer in json.loads(receipt.read_text())["layers"]]
    retained = json.loads((out / "retained.json").read_text())
    return [set(retained[f"model.layers.{layer}.mlp"]) for layer in range(len(retained))]


main()
