"""What both peers' scripts share: their arguments, windows of tokens, and what a run cost."""
import argparse
import json
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")


def arguments(description, damping):
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path, help="[[ids of a window], …], or {label: [[ids], …]}")
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128, help="-1: a scale for each row")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--routed", dest="all_experts", action="store_false", help="an expert sees the tokens that chose it (default)")
    which.add_argument("--all-experts", dest="all_experts", action="store_true", help="every expert sees every token")
    parser.add_argument("--file-order", action="store_true", help="columns as they are in the file; by default both peers solve them in the order of their energy")
    parser.add_argument("--damping", type=float, default=damping, help="share of the mean diagonal; by default what the peer takes")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--onednn", choices=["on", "off"], default="on", help="off: no kernel is compiled for each new number of tokens")
    parser.set_defaults(all_experts=False)
    return parser


def windows(path):
    tokens = json.loads(path.read_text())
    return [ids for group in tokens.values() for ids in group] if isinstance(tokens, dict) else tokens


class Stopwatch:
    def __init__(self):
        self.seconds, self.user, self.last = {}, {}, self.now()

    @staticmethod
    def now():
        return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime

    def lap(self, stage):
        now = self.now()
        self.seconds[stage], self.user[stage] = (round(b - a, 2) for a, b in zip(self.last, now))
        self.last = now

    def report(self, options, packages):
        import torch

        print(json.dumps({
            "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "seconds": self.seconds, "user_cpu_seconds": self.user, "total_seconds": round(sum(self.seconds.values()), 2),
            "total_user_cpu_seconds": round(sum(self.user.values()), 2),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "written_bytes": sum(path.stat().st_size for path in options.out.glob("*.safetensors")),
            "onednn": torch.backends.mkldnn.enabled, "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        }))


def prepare(options):
    """Before the first tensor; torch is imported here so that it counts as import."""
    import torch

    torch.set_num_threads(options.threads)
    torch.backends.mkldnn.enabled = options.onednn == "on"
    return torch
