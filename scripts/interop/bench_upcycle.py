"""What scripts/bench-upcycle runs; needs no package."""
import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

from machine import command, load, machine

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    for name in ("binary", "scratch"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for name in ("runs", "experts", "top-k"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--pause", type=float, required=True)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.date.today()}, {machine(args.scratch)}; {command('git', 'describe', '--always', '--dirty')}; "
          f"load average before: {load()}\n")
    speed(args)
    memory(args)
    print(f"\nLoad average after: {load()}.")


def speed(args):
    original, copy, bare, probed = (args.scratch / name for name in ("original", "copy", "bare", "probed"))
    options = ["--experts", str(args.experts), "--top-k", str(args.top_k), "--timings"]
    Bench(args.binary, original).upcycle(args.model, *options)  # warms the cache and makes the file to copy
    weights = sorted(original.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    ways = {
        "`cp --reflink=never && sync`": lambda: copied(weights, copy),
        "`upcycle --probe-tokens 0`": lambda: Bench(args.binary, bare).upcycle(args.model, *options, "--probe-tokens", "0"),
        "`upcycle`, with the default probe": lambda: Bench(args.binary, probed).upcycle(args.model, *options),
    }
    found = {way: [] for way in ways}
    for _ in range(args.runs):
        for way, run in ways.items():
            # None pays for what another has just written and removed: the disks of cloud machines are slow for a while
            # after large writes and discards.
            for out in (copy, bare, probed):
                shutil.rmtree(out, ignore_errors=True)
            os.sync()
            time.sleep(args.pause)
            found[way].append(run())
    for out in (original, copy, bare, probed):
        shutil.rmtree(out, ignore_errors=True)
    print(f"`moe-convert upcycle {args.model.name} -o OUT {' '.join(options)}`: {size / 1e9:.3f} GB of weights written, all of "
          f"it hashed and synced; warm cache, one disk, the ways in turn, {args.runs} times, "
          f"{args.pause:g} s of rest before each.\n")
    print("| way | median s | all s | MB/s | speed ÷ cp's | peak memory MB | hashing thread busy s (share of writing) |")
    print("|---|---|---|---|---|---|---|")
    median = {way: statistics.median(run["seconds"] for run in runs) for way, runs in found.items()}
    baseline = next(iter(median.values()))
    for way, runs in found.items():
        peak = max((run["peak"] for run in runs if "peak" in run), default=None)
        hashing = [run["hashing"] for run in runs if "hashing" in run]
        share = [run["hashing"] / run["write"] for run in runs if "hashing" in run]
        cells = [
            way,
            f"{median[way]:.2f}",
            ", ".join(f"{run['seconds']:.2f}" for run in runs),
            f"{size / median[way] / 1e6:.0f}",
            f"{baseline / median[way]:.2f}",
            f"{peak / 1e6:.1f}" if peak else "",
            f"{statistics.median(hashing):.2f} ({statistics.median(share):.0%})" if hashing else "",
        ]
        print(f"| {' | '.join(cells)} |")
    print()
    stages = {}
    for run in [run for runs in list(found.values())[1:] for run in runs]:
        for stage in run["stages"]:
            stages.setdefault(stage["name"], []).append(stage["seconds"])
    print("Median seconds of the stages: " + ", ".join(f"{name} {statistics.median(s):.2f}" for name, s in stages.items()) + ".\n")


def memory(args):
    bench = Bench(args.binary, args.scratch / "out")
    small, large = args.scratch / "llama-6", args.scratch / "llama-24"
    for model, layers in ((small, 6), (large, 24)):
        shutil.rmtree(model, ignore_errors=True)
        subprocess.run([sys.executable, HERE / "random_llama.py", model, "--hidden", "512", "--ffn", "1536",
                        "--layers", str(layers)], check=True)
    print("Peak memory (VmHWM, MB), random llama with hidden 512, FFN 1536, vocabulary 8,192, upcycled to top-2:\n")
    print("| command | 6 layers, 8 experts | 24 layers, 8 experts | ratio | 6 layers, 32 experts | ratio to 8 |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for model, experts in ((small, 8), (large, 8), (small, 32)):
        for name, peak in bench.peaks(model, experts).items():
            rows.setdefault(name, []).append(peak / 1e6)
    for name, (few, deep, wide) in rows.items():
        print(f"| {name} | {few:.1f} | {deep:.1f} | {deep / few:.2f} | {wide:.1f} | {wide / few:.2f} |")
    shutil.rmtree(small)
    shutil.rmtree(large)
    shutil.rmtree(bench.out)


def copied(files, to):
    to.mkdir()
    start = time.monotonic()
    for file in files:
        subprocess.run(["sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh", file, to / file.name], check=True)
    return dict(seconds=time.monotonic() - start)


class Bench:
    def __init__(self, binary, out):
        self.binary, self.out = binary, out

    def upcycle(self, model, *options):
        shutil.rmtree(self.out, ignore_errors=True)
        start = time.monotonic()
        run = subprocess.run([self.binary, "upcycle", model, "-o", self.out, *options, "--json"], check=True, capture_output=True)
        seconds = time.monotonic() - start
        report = json.loads(run.stdout)
        write = next(stage["seconds"] for stage in report["timings"] if stage["name"] == "write")
        peak = json.loads((self.out / "run.json").read_text())["peak_memory_bytes"]
        return dict(seconds=seconds, hashing=report["hashing_seconds"], write=write, peak=peak, stages=report["timings"])

    def peaks(self, model, experts):
        peaks = {}
        for name, probe in (("upcycle --probe-tokens 0", ["--probe-tokens", "0"]), ("upcycle", [])):
            peaks[name] = self.upcycle(model, "--experts", str(experts), "--top-k", "2", *probe)["peak"]
        for name in ("verify", "inspect"):
            peaks[name] = self.peak_of(name)
        return peaks

    def peak_of(self, name):
        run = subprocess.run([self.binary, name, self.out, "--timings"], check=True, capture_output=True, text=True)
        value, unit = re.search(r"peak memory ([\d.]+) (\w+)", run.stderr).groups()
        return float(value) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


main()
