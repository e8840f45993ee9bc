"""What scripts/bench-quantize runs; needs no package itself."""
import argparse
import datetime
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

from machine import command, load, machine, timed

ROOT = pathlib.Path(__file__).resolve().parents[2]
INTEROP, TRAINED = ROOT / "scripts/interop", ROOT / "golden/models/moe"
DOMAINS = ("english", "code", "spanish", "arithmetic")
# Random models, and how many of their windows nothing is calibrated on.
RANDOM = {
    "small": ("--hidden 512 --width 512 --experts 32 --top-k 4 --layers 4 --windows 80", 16),
    "layer": ("--hidden 2048 --width 768 --experts 128 --top-k 8 --layers 1 --windows 24", 8),
    "tiny": ("--hidden 128 --width 128 --experts 8 --top-k 2 --layers 2 --windows 12", 4),
}
# Of the trained model: bits, columns of a group, domains, tokens of each.
CASES = [(4, 128, DOMAINS, 4096), (3, 32, DOMAINS, 4096), (3, 32, DOMAINS[:2], 512)]
# Whose, what they are told, and whether that is for timing alone.
WAYS = {
    "ours, `--calibrate-on per-expert`": ("ours", "--calibrate-on per-expert", False),
    "ours, the same in file order, tokens weighed alike": ("ours", "--calibrate-on per-expert --act-order=false --gate-power 0", False),
    "ours, `--calibrate-on routed`": ("ours", "--calibrate-on routed", False),
    "ours, `--calibrate-on all-experts`": ("ours", "--calibrate-on all-experts", False),
    "ours, `--solver rtn`": ("ours", "--solver rtn", False),
    "llm-compressor, routed": ("llm_compressor", "--routed", False),
    "llm-compressor, routed, damping 0.1": ("llm_compressor", "--routed --damping 0.1", False),
    "llm-compressor, routed, oneDNN off": ("llm_compressor", "--routed --onednn off", True),
    "llm-compressor, all experts (its default)": ("llm_compressor", "--all-experts", False),
    "llm-compressor, all experts, damping 0.1": ("llm_compressor", "--all-experts --damping 0.1", False),
    "llm-compressor, all experts, oneDNN off": ("llm_compressor", "--all-experts --onednn off", True),
    "GPTQModel, routed (its default)": ("gptqmodel", "--routed", False),
    "GPTQModel, routed, damping 0.1": ("gptqmodel", "--routed --damping 0.1", False),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=[*RANDOM, "trained"])
    for name in ("binary", "llm-compressor", "gptqmodel", "scratch"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for name in ("runs", "draws", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--only", type=re.compile, required=True)
    args = parser.parse_args()
    folder = args.scratch / args.model
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.date.today()}, {machine(args.scratch)}; {command('git', 'describe', '--always', '--dirty')}; load average before: {load()}\n")
    print(f"Every process whole: imports, loading and writing included; the ways in turn; peers in bfloat16, {args.threads} threads, oneDNN on unless "
          "said; llm-compressor with a causal mask, which it lacks as released, its damping 0.01; GPTQModel's 0.05; both solve columns by energy. KL to the original, held out.\n")
    trained(args, folder) if args.model == "trained" else random(args, folder)
    print(f"\nLoad average after: {load()}.")


def random(args, folder):
    shape, held_out = RANDOM[args.model]
    command(args.llm_compressor, INTEROP / "random_qwen3_moe.py", folder, *shape.split())
    ids = json.loads((folder / "windows.json").read_text())
    # Windows come domain by domain; those held out are spread over all.
    held = set(range(0, len(ids), len(ids) // held_out))
    calibration = written(folder / "calibration.json", [window for i, window in enumerate(ids) if i not in held])
    against = [str(lines(written(folder / "held-out.json", [window for i, window in enumerate(ids) if i in held])))]
    print(f"{shape}: {(len(ids) - len(held)) * len(ids[0]):,} tokens, 4 bits, groups of 128; {args.runs} times.\n")
    found = compare(args, folder / "model", [calibration] * args.runs, against, (4, 128, len(ids[0])), [*WAYS])
    print("| way | median s | all s | CPU s | peak memory MB | KL | rare experts |\n|---|---|---|---|---|---|---|")
    for way, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        cells = [way, f"{statistics.median(seconds):.1f}", ", ".join(f"{s:.1f}" for s in seconds), f"{statistics.median(run['cpu'] for run in runs):.1f}",
                 f"{max(run['peak'] for run in runs) / 1e6:.0f}", f"{runs[0]['all']:.6f}", f"{runs[0]['rare']:.6f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def trained(args, folder):
    windows = lambda out, *words: command(args.llm_compressor, INTEROP / "text_windows.py", TRAINED, out, *map(str, words))
    against = []
    for domain in DOMAINS:
        out = folder / f"{domain}.json"
        windows(out, "--domains", domain, "--kind", "heldout", "--tokens", 2048, "--length", 256)
        against.append(f"{domain}={lines(out)}")
    for bits, group, domains, tokens in CASES:
        drawn = [folder / f"{len(domains)}-{tokens}-{draw}.json" for draw in range(args.draws)]
        for seed, out in enumerate(drawn):
            windows(out, "--domains", ",".join(domains), "--tokens", tokens, "--length", 128, "--seed", seed)
        print(f"{bits} bits, groups of {group}, {tokens:,} tokens each of {', '.join(domains)}; {args.draws} draws of them, mean ± standard deviation:\n")
        found = compare(args, TRAINED, drawn, against, (bits, group, 128), [way for way, (_, _, timing) in WAYS.items() if not timing])
        print(f"| way | median s | KL | rare experts | {' | '.join(DOMAINS)} |\n|---|---|---|---|---|---|---|---|")
        for way, runs in found.items():
            of = lambda key: [run[key] for run in runs]
            spread = lambda key: f"{statistics.mean(of(key)):.5f}" + (f" ± {statistics.stdev(of(key)):.5f}" if len(runs) > 1 else "")
            cells = [way, f"{statistics.median(of('seconds')):.1f}", spread("all"), spread("rare"), *(f"{statistics.mean(of(domain)):.5f}" for domain in DOMAINS)]
            print(f"| {' | '.join(cells)} |", flush=True)
        print()


def compare(args, model, calibrations, against, scheme, ways):
    """Of each way a measurement for each file of windows; a way that fails is left out and said on stderr."""
    found, out = {}, args.scratch / "out"
    for calibration in calibrations:
        for way in filter(args.only.search, ways):
            shutil.rmtree(out, ignore_errors=True)
            try:
                cost = timed(words(args, way, model, calibration, out, scheme), args.scratch / "log.txt")
            except SystemExit as failure:
                print(failure, file=sys.stderr)
                continue
            found.setdefault(way, []).append(cost | kl(args, model, out, against))
            print(json.dumps(dict(way=way, calibration=calibration.name, scheme=scheme) | found[way][-1]), file=sys.stderr, flush=True)
    shutil.rmtree(out, ignore_errors=True)
    return found


def words(args, way, model, calibration, out, scheme):
    (whose, told, _), (bits, group, length) = WAYS[way], scheme
    if whose == "ours":
        data = [] if "rtn" in told else ["--data", lines(calibration), "--sequence-length", length]
        return [args.binary, "quantize", model, "-o", out, "--scheme", f"w{bits}a16", "--group-size", group, "-q", *data, *told.split()]
    peer = [getattr(args, whose), INTEROP / f"peers/{whose}_gptq.py", model, calibration, out]
    return [*peer, "--bits", bits, "--group", group, "--threads", args.threads, *told.split()]


def kl(args, model, out, against):
    """Our own reading of what any of them wrote: over all tokens, over what rare experts serve, and of each label."""
    data = [word for spec in against for word in ("--data", spec)]
    report = json.loads(command(args.binary, "eval", out, "--original", model, *data, "--sequence-length", "256", "--json", "-q"))["report"]
    of_labels = {domain["label"]: domain["against"]["kl"] for domain in report["domains"]}
    return of_labels | {"all": report["all"]["against"]["kl"], "rare": report["all"]["against"]["rare_kl"]}


def written(path, windows):
    path.write_text(json.dumps(windows))
    return path


def lines(path):
    """The same windows as our `--data` reads them."""
    out = path.with_suffix(".jsonl")
    out.write_text("".join(json.dumps(dict(input_ids=window)) + "\n" for window in json.loads(path.read_text())))
    return out


main()
