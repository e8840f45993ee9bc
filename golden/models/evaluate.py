#!/usr/bin/env python3
"""Reference numbers of the built-in models, computed by transformers in float32.

    python evaluate.py            # reference.json, <model>.tokens.json, <model>.logits.safetensors

The protocol, which `moe-convert eval` follows, is in README.md.
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
DOMAINS = ["english", "code", "spanish", "arithmetic"]
WINDOW = 256


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    return AutoTokenizer.from_pretrained(folder), model.eval()


def forward(model, ids):
    """Logits [tokens, vocab]; per layer the router's logits and its selection, by descending weight."""
    routers = {"output_router_logits": True} if hasattr(model.config, "num_experts") else {}
    selected = []
    hooks = [m.register_forward_hook(lambda _m, _i, out: selected.append(out[2])) for n, m in model.named_modules() if n.endswith("mlp.gate")]
    with torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=False, **routers)
    for hook in hooks:
        hook.remove()
    return out.logits[0], [x.reshape(len(ids), -1) for x in out.router_logits] if routers else [], selected


def evaluate(folder, text):
    tokenizer, model = load(folder)
    counts, report, total, predicted_total = {}, {}, 0.0, 0
    for domain in DOMAINS:
        ids = tokenizer((text / f"{domain}.heldout.txt").read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        loss, predicted = 0.0, 0
        for window in (ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)):
            if len(window) < 2:
                continue
            logits, _, selected = forward(model, window)
            loss += F.cross_entropy(logits[:-1].double(), torch.tensor(window[1:]), reduction="sum").item()
            predicted += len(window) - 1
            if selected:
                chosen = torch.stack([s.reshape(-1).bincount(minlength=model.config.num_experts) for s in selected])
                counts[domain] = counts.get(domain, 0) + chosen
        report[domain] = {"loss": loss / predicted, "predicted_tokens": predicted, "tokens": len(ids)}
        total, predicted_total = total + loss, predicted_total + predicted
    tokens = sum(entry["tokens"] for entry in report.values())
    result = {"domains": report, "total": {"loss": total / predicted_total, "predicted_tokens": predicted_total, "tokens": tokens}}
    if counts:
        result["expert_counts"] = {domain: layers.tolist() for domain, layers in counts.items()}
    return result


def parity(folder, text):
    """Two short sequences, 24 tokens of English and 17 of arithmetic, and what the model answers."""
    tokenizer, model = load(folder)
    sequences = []
    for domain, length in (("english", 24), ("arithmetic", 17)):
        whole = (text / f"{domain}.heldout.txt").read_text(encoding="utf-8")
        sequences.append(tokenizer(whole, add_special_tokens=False)["input_ids"][:length])
    outputs = [forward(model, ids) for ids in sequences]
    tensors = {"logits": torch.cat([logits for logits, _, _ in outputs])}
    for layer in range(len(outputs[0][1])):
        tensors[f"router_logits.{layer}"] = torch.cat([routers[layer] for _, routers, _ in outputs])
        tensors[f"selected.{layer}"] = torch.cat([selected[layer] for _, _, selected in outputs])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / f"{folder.name}.logits.safetensors")
    (HERE / f"{folder.name}.tokens.json").write_text(json.dumps(sequences) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--text", type=Path, default=HERE.parent / "text")
    args = args.parse_args()
    torch.backends.mkldnn.enabled = False
    result = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "window": WINDOW, "models": {}}
    for name in ("dense", "moe"):
        result["models"][name] = evaluate(HERE / name, args.text)
        parity(HERE / name, args.text)
    lines = json.dumps(result, indent=1)
    (HERE / "reference.json").write_text(lines + "\n")
    for name, entry in result["models"].items():
        for domain, row in {**entry["domains"], "total": entry["total"]}.items():
            print(f"{name} {domain}: loss {row['loss']:.4f} over {row['predicted_tokens']} of {row['tokens']} tokens")
        for domain, layers in entry.get("expert_counts", {}).items():
            for layer, row in enumerate(layers):
                print(domain, layer, " ".join(f"{100 * c / sum(row):.0f}" for c in row))


if __name__ == "__main__":
    main()
