#!/usr/bin/env python3
"""tokens.json, statistics.safetensors: sums and maxima of METHODS.md over two windows of each domain. See README.md."""
import json
import sys

import numpy as np
import torch
from transformers import AutoTokenizer

from model import DOMAINS, GOLDEN, HERE, WINDOW, Model, calibration, load, observe, save, save_json

MARGIN = 2e-5  # the least gap of router logits that decides a choice: float32 must choose the same
FOLDER = GOLDEN / "models" / "moe"
LAYER = 1  # whose large statistics are stored: [D, E, H or I]


def gaps(model, ids):
    """The least gap behind the k-th logit, and behind the k+1-th (that decides when one of the chosen is left out)."""
    least = np.inf
    for seen in model.forward(ids)[1]:
        z = seen["z"].sort(descending=True).values
        least = min(least, (z[:, model.k - 1 : model.k + 1] - z[:, model.k : model.k + 2]).min().item())
    return least


def choose_windows(model):
    """The first two windows of each domain's text without a near tie."""
    tokenizer, tokens = AutoTokenizer.from_pretrained(FOLDER), {}
    for domain in DOMAINS:
        path = GOLDEN / "text" / f"{domain}.calibration.txt"
        ids = tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        tokens[domain] = []
        for start in range(0, len(ids) - WINDOW + 1, WINDOW):
            gap = gaps(model, ids[start : start + WINDOW])
            print(domain, "window", start // WINDOW, "least gap", gap, "" if gap >= MARGIN else "- left out")
            if gap >= MARGIN:
                tokens[domain].append(ids[start : start + WINDOW])
            if len(tokens[domain]) == 2:
                break
    save_json("tokens.json", tokens)


def statistics(model, layer, seen):
    """One domain's sums for one layer."""
    E, z, y = model.E, seen["z"], seen["y"]
    p = torch.softmax(z, dim=-1)
    top = p.gather(1, seen["chosen"])
    assert torch.allclose(top / top.sum(1, keepdim=True), seen["g"], rtol=1e-12, atol=0), "the router's gates aren't its probabilities renormalised"
    out = {name: torch.zeros(E, dtype=torch.float64) for name in
           ["tokens", "gates", "gated_norms", "norms", "square_norms", "largest", "left_out_errors", "left_out_cosines"]}
    wide = {"gated_outputs": model.H, "activations": model.I, "gated_square_activations": model.I, "largest_gated_activations": model.I}
    out |= {name: torch.zeros(E, width, dtype=torch.float64) for name, width in wide.items()}
    out |= {"probabilities": p.sum(0), "logits": z.sum(0), "logit_products": z.T @ z, "output_square_norms": (y * y).sum()}
    rebuilt = torch.zeros_like(y)
    for j in range(E):
        token, place = (seen["chosen"] == j).nonzero(as_tuple=True)
        if len(token) == 0:
            continue
        x, g = seen["x"][token], seen["g"][token, place]
        phi, f = model.expert(layer, j, x)
        norm = f.norm(dim=1)
        rebuilt[token] += g[:, None] * f
        out["tokens"][j], out["gates"][j], out["gated_norms"][j] = len(token), g.sum(), (g * norm).sum()
        out["norms"][j], out["square_norms"][j], out["largest"][j] = norm.sum(), (norm**2).sum(), f.abs().max()
        out["gated_outputs"][j], out["activations"][j] = (g[:, None] * f).sum(0), phi.sum(0)
        gated = g[:, None] * phi
        out["gated_square_activations"][j], out["largest_gated_activations"][j] = (gated**2).sum(0), gated.abs().max(0).values
        model.mask(layer, [j])
        without, rerouted = model.block(layer, x)
        model.unmask()
        assert not (rerouted["chosen"] == j).any()
        out["left_out_errors"][j] = ((y[token] - without) ** 2).sum()
        out["left_out_cosines"][j] = (1 - torch.cosine_similarity(y[token], without, dim=1)).sum()
    assert torch.allclose(rebuilt, y, rtol=1e-10, atol=1e-12), "the sum of gated experts isn't the block's output"
    assert out["tokens"].sum() == len(y) * model.k
    return out


def check_against_reference(model):
    """float64 against the logits stored with the model, and the selections of the float32 model on the calibration windows."""
    reference = {key: torch.from_numpy(value) for key, value in load(FOLDER.parent / "moe.logits.safetensors").items()}
    runs = [model.forward(ids) for ids in json.loads((FOLDER.parent / "moe.tokens.json").read_text())]
    worst = (torch.cat([logits for logits, _ in runs]) - reference["logits"]).abs().max().item()
    for layer in range(len(model.blocks)):
        assert torch.equal(torch.cat([seen[layer]["chosen"] for _, seen in runs]), reference[f"selected.{layer}"])
    print("largest difference to the stored float32 logits", worst)
    assert worst < 1e-4
    single = Model(FOLDER, torch.float32)
    for windows in calibration().values():
        for ids in windows:
            for a, b in zip(model.forward(ids)[1], single.forward(ids)[1]):
                assert torch.equal(a["chosen"].sort().values, b["chosen"].sort().values), "float32 chooses other experts"


def main():
    model = Model(FOLDER)
    if "--windows" in sys.argv or not (HERE / "tokens.json").exists():
        choose_windows(model)
    tokens, tensors = calibration(), {}
    assert list(tokens) == DOMAINS and all(len(ids) == WINDOW for windows in tokens.values() for ids in windows)
    check_against_reference(model)
    seen = [observe(model, windows) for windows in tokens.values()]
    for layer in range(len(model.blocks)):
        domains = [statistics(model, layer, domain[layer]) for domain in seen]
        for name in domains[0]:
            value = torch.stack([domain[name] for domain in domains]).numpy()
            if value.ndim == 3 and name != "logit_products":
                if layer != LAYER:
                    continue
                value = value.astype(np.float32)
            if name == "logit_products" and layer != LAYER:
                value = value.astype(np.float32)
            tensors[f"layers.{layer}.{name}"] = value
    save("statistics.safetensors", tensors)


if __name__ == "__main__":
    main()
