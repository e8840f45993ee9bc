"""A random Qwen3-MoE with real text to calibrate it on, for comparing costs: OUT/model, OUT/windows.json (lists of token ids), OUT/windows.jsonl.

usage: random_qwen3_moe.py OUT [--hidden 512 --width 512 --experts 32 --top-k 4 --layers 4 --windows 64 --length 256]"""
import argparse
import json
import pathlib
import shutil

import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden"
DOMAINS = ("english", "code", "spanish", "arithmetic")

parser = argparse.ArgumentParser()
parser.add_argument("out", type=pathlib.Path)
for name, default in dict(hidden=512, width=512, experts=32, top_k=4, layers=4, windows=64, length=256).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
args = parser.parse_args()

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "models" / "moe")
model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
    vocab_size=len(tokenizer), hidden_size=args.hidden, intermediate_size=2 * args.hidden, moe_intermediate_size=args.width, num_experts=args.experts,
    num_experts_per_tok=args.top_k, num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, num_key_value_heads=args.hidden // 128,
    head_dim=64, norm_topk_prob=True, tie_word_embeddings=False, max_position_embeddings=2048)).to(torch.bfloat16)
shutil.rmtree(args.out, ignore_errors=True)
folder = args.out / "model"
model.save_pretrained(folder)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(GOLDEN / "models" / "moe" / name, folder)

windows = []
for domain in DOMAINS:
    ids = tokenizer((GOLDEN / "text" / f"{domain}.calibration.txt").read_text()).input_ids
    windows += [ids[start:start + args.length] for start in range(0, len(ids) - args.length + 1, args.length)][:-(-args.windows // len(DOMAINS))]
assert len(windows) >= args.windows, f"the text gives {len(windows)} windows"
windows = windows[:args.windows]
(args.out / "windows.json").write_text(json.dumps(windows))
(args.out / "windows.jsonl").write_text("".join(json.dumps(dict(input_ids=ids)) + "\n" for ids in windows))
