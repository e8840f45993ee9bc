"""What scripts/bench-mergekit runs; needs no package itself."""
import argparse
import datetime
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess

from machine import command, load, machine, timed

# What is compared. Ours: options of `moe-convert upcycle`. mergekit's: a gate mode.
CALIBRATION = [f"--data=golden/text/{domain}.calibration.txt" for domain in ("english", "code", "spanish", "arithmetic")]
OURS = {
    "ours, `--router normal`": ["--router", "normal"],
    "ours, `--router normal --probe-tokens 0`": ["--router", "normal", "--probe-tokens", "0"],
    "ours, `cheap-embed`": ["--router", "cheap-embed", "--prompts", "prompts.json"],
    "ours, `prompts`": ["--router", "prompts", "--prompts", "prompts.json"],
    "ours, `kmeans` on 4 × 2,048 tokens": ["--router", "kmeans", "--data-tokens", "2048", *CALIBRATION],
}
MERGEKIT = {
    "mergekit `random`": "random",
    "mergekit `cheap_embed`": "cheap_embed",
    "mergekit `hidden`": "hidden",
}
# A prompt for each expert, by the domain that it is meant to attract; repeated if there are more experts.
PROMPTS = [
    ("english", "The old house stood at the end of the street."),
    ("code", "def add(a, b):\n    return a + b"),
    ("spanish", "La casa vieja estaba al final de la calle."),
    ("arithmetic", "12 + 30 = 42"),
    ("english", "She looked out of the window and thought about her father"),
    ("code", "import os\nfor name in os.listdir(path):"),
    ("spanish", "El hombre le dijo que no sabía nada"),
    ("arithmetic", "What is 7 times 8? 7 * 8 = 56"),
]
TEXT = pathlib.Path(__file__).resolve().parents[2] / "golden" / "text"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    for name in ("binary", "mergekit", "scratch"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for name in ("runs", "experts", "top-k", "tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.date.today()}, {machine(args.scratch)}; {command('git', 'describe', '--always', '--dirty')}; mergekit "
          f"{version(args.mergekit)}; load average before: {load()}\n")
    out = args.scratch / "out"
    ways = {**{label: mergekit(args, mode, out) for label, mode in MERGEKIT.items()},
            **{label: ours(args, options, out) for label, options in OURS.items()}}
    found = {way: [] for way in ways}
    evaluated = {}
    for run in range(args.runs):
        for way, words in ways.items():
            found[way].append(into(words, out, args.scratch / "log.txt"))
            if run == 0 and args.tokens and "--probe-tokens" not in words:  # which changes no weight
                evaluated[way] = evaluate(args, out)
    shutil.rmtree(out)
    start = statistics.median(timed([args.mergekit, "--help"], args.scratch / "log.txt")["seconds"] for _ in range(3))
    print(f"`{args.model.name}` → {args.experts} experts, top-{args.top_k}; warm cache, the ways in turn, {args.runs} times; `sync` counted; "
          f"peak memory is ru_maxrss. `mergekit-moe --help` alone, the imports, takes {start:.1f} s.\n")
    print_speed(found)
    if evaluated:
        print(f"\nExpert load on held-out text, {args.tokens} tokens of each domain, mean over layers (Gini 0 and entropy 1 = even). Own share: of a "
              "domain's choices, those that went to the experts prompted with that domain. Information: between the chosen expert and the domain.\n")
        print_load(evaluated)
    print(f"\nLoad average after: {load()}.")


def ours(args, options, out):
    """`prompts.json` among the options is the file of PROMPTS."""
    path = args.scratch / "prompts.json"
    path.write_text(json.dumps([{"positive": [PROMPTS[e % len(PROMPTS)][1]]} for e in range(args.experts)], ensure_ascii=False))
    options = [path if word == "prompts.json" else word for word in options]
    return [args.binary, "upcycle", args.model, "-o", out, "--experts", str(args.experts), "--top-k", str(args.top_k), "-q", *options]


def mergekit(args, mode, out):
    model = str(args.model.resolve())
    prompts = [PROMPTS[e % len(PROMPTS)][1] for e in range(args.experts)]
    config = {"base_model": model, "gate_mode": mode, "experts_per_token": args.top_k,
              "experts": [{"source_model": model, "positive_prompts": [p]} for p in prompts]}
    path = args.scratch / f"{mode}.yml"
    path.write_text(json.dumps(config, indent=1) + "\n")  # JSON is YAML
    return [args.mergekit, path, out, "--random-seed", "0", "--i-understand-this-is-not-useful-without-training", "--quiet"]


def into(words, out, log):
    """What a command that writes `out` takes, its sync included, and how much it writes."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    found = timed(words, log)
    return found | dict(size=sum(f.stat().st_size for f in out.glob("*.safetensors")))


def print_speed(found):
    print("| way | median s | all s | CPU s | MB/s | peak memory MB | weights, bytes |")
    print("|---|---|---|---|---|---|---|")
    for way, runs in found.items():
        median = statistics.median(run["seconds"] for run in runs)
        cells = [way, f"{median:.2f}", ", ".join(f"{run['seconds']:.2f}" for run in runs),
                 f"{statistics.median(run['cpu'] for run in runs):.2f}", f"{runs[0]['size'] / median / 1e6:.0f}",
                 f"{max(run['peak'] for run in runs) / 1e6:.0f}", f"{runs[0]['size']:,}"]
        print(f"| {' | '.join(cells)} |")


def evaluate(args, out):
    """The report of `moe-convert eval`, or why there is none."""
    domains = list(dict.fromkeys(domain for domain, _ in PROMPTS))
    data = [word for d in domains for word in ("--data", f"{d}={TEXT / f'{d}.heldout.txt'}")]
    run = subprocess.run([args.binary, "eval", out, *data, "--data-tokens", str(args.tokens), "--json", "-q"], capture_output=True, text=True)
    return json.loads(run.stdout)["report"] if run.returncode == 0 else run.stderr.strip()


def print_load(evaluated):
    print("| router | loss | Gini, mean (worst layer) | entropy, mean (worst) | dead experts | own share | information, bits |")
    print("|---|---|---|---|---|---|---|")
    for way, report in evaluated.items():
        if isinstance(report, str):
            print(f"| {way} | {report} |")
            continue
        load, labels = report["load"], [d["label"] for d in report["domains"]]
        gini, entropy = ([layer[key] for layer in load] for key in ("gini", "entropy"))
        mean = lambda f: statistics.mean(f(layer["counts_by_domain"], labels) for layer in load)
        cells = [way, f"{report['all']['loss']:.4f}", f"{statistics.mean(gini):.3f} ({max(gini):.3f})",
                 f"{statistics.mean(entropy):.3f} ({min(entropy):.3f})",
                 f"{sum(layer['dead'] for layer in load)} of {sum(len(layer['counts']) for layer in load)}",
                 f"{mean(own_share):.0%}", f"{mean(information):.3f}"]
        print(f"| {' | '.join(cells)} |")


def own_share(counts, labels):
    """counts: [domains][experts]"""
    own = lambda row, label: sum(n for e, n in enumerate(row) if PROMPTS[e % len(PROMPTS)][0] == label) / sum(row)
    return statistics.mean(own(row, label) for row, label in zip(counts, labels))


def information(counts, _labels):
    total = sum(map(sum, counts))
    experts = [sum(column) for column in zip(*counts)]
    return sum(n / total * math.log2(n * total / (sum(row) * experts[e])) for row in counts for e, n in enumerate(row) if n)


def version(program):
    return command(program.parent / "python", "-c", "import importlib.metadata as m; print(m.version('mergekit'))")


main()
