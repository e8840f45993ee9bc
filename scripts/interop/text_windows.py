"""Windows of the built-in text as token ids, so that different programs read the same: JSON, a list of lists.

usage: text_windows.py MODEL OUT.json --domains english,code --tokens 512 [--kind calibration|heldout] [--length 128] [--seed 0]

--tokens of each domain: drawn by --seed, or without it the first."""
import argparse
import json
import pathlib
import random

from tokenizers import Tokenizer

TEXT = pathlib.Path(__file__).resolve().parents[2] / "golden" / "text"

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--domains", type=lambda names: names.split(","), required=True)
parser.add_argument("--tokens", type=int, required=True)
parser.add_argument("--kind", choices=["calibration", "heldout"], default="calibration")
parser.add_argument("--length", type=int, default=128)
parser.add_argument("--seed", type=int)
args = parser.parse_args()

tokenizer, drawn = Tokenizer.from_file(str(args.model / "tokenizer.json")), random.Random(args.seed)
windows = []
for domain in args.domains:
    ids = tokenizer.encode((TEXT / f"{domain}.{args.kind}.txt").read_text()).ids
    every, wanted = [ids[start:start + args.length] for start in range(0, len(ids) - args.length + 1, args.length)], args.tokens // args.length
    assert len(every) >= wanted, f"{domain} gives {len(every)} windows of {args.length}"
    windows += every[:wanted] if args.seed is None else drawn.sample(every, wanted)
args.out.write_text(json.dumps(windows))
