#!/usr/bin/env python3
"""saliencies.json, micro-experts.safetensors, masked.json and .safetensors, sequential.json, exhaustive.json. See METHODS.md, README.md."""
import itertools
import json

import numpy as np
import torch

from model import GOLDEN, Model, calibration, keep, load, observe, save, save_json

MARGIN = 1e-5  # of the largest saliency, between the last kept and the first dropped: float32 must decide the same
FOLDER = GOLDEN / "models" / "moe"
MIXTRAL = GOLDEN / "families" / "mixtral" / "base" / "model"


def pooled(statistics, layer, name):
    value = statistics[f"layers.{layer}.{name}"].astype(np.float64)
    return value.max(0) if name.startswith("largest") else value.sum(0)


def ranked_choice(ranking, k):
    """Round in which each expert falls, from each token's ranking [T, E]; whether any round was decided by a tie."""
    T, E = ranking.shape
    still, fell, ties = np.ones(E, dtype=bool), np.full(E, -1), []
    for round_ in range(E):
        votes = np.zeros(E, dtype=np.int64)
        for row in ranking:
            votes[row[still[row]][:k]] += 1
        least = votes[still].min()
        equal = [j for j in range(E) if still[j] and votes[j] == least]
        if len(equal) > 1 and E - round_ > k:
            ties.append((round_, equal))
        still[equal[-1]], fell[equal[-1]] = False, round_
    return fell, ties


def saliencies(model, statistics, seen):
    found = {}
    for layer in range(len(model.blocks)):
        n, T = pooled(statistics, layer, "tokens"), sum(len(domain[layer]["z"]) for domain in seen)
        some = np.maximum(n, 1)
        aimer = []
        for j in range(model.E):
            w = torch.cat([part.flatten() for part in model.weights(layer, j)])
            aimer.append(((w.abs().sum() / len(w)) / ((w * w).sum() / len(w)).sqrt()).item())
        ranking = torch.cat([domain[layer]["z"] for domain in seen]).argsort(dim=1, descending=True, stable=True).numpy()
        fell, ties = ranked_choice(ranking, model.k)
        print("layer", layer, "least tokens", n.min(), "ranked-choice ties", ties)
        entry = {
            "reap": pooled(statistics, layer, "gated_norms") / some,
            "ean": pooled(statistics, layer, "norms"),
            "man": pooled(statistics, layer, "norms") / some,
            "msan": pooled(statistics, layer, "square_norms") / some,
            "frequency": n,
            "soft-frequency": pooled(statistics, layer, "gates"),
            "aimer": np.array(aimer),
            "leave-one-out": pooled(statistics, layer, "left_out_errors") / (T * model.H),
            "leave-one-out-cosine": pooled(statistics, layer, "left_out_cosines") / T,
            "ranked-choice": fell.astype(np.float64),
        }
        for criterion, value in entry.items():
            assert np.isfinite(value).all()
            found.setdefault(criterion, []).append(value.tolist())
    return found


def kept_sets(found, E):
    """Kept experts of each layer by each criterion, for 18 and 12 of 24; how far each decision is from a tie."""
    sets, least = {}, {}
    for criterion, layers in found.items():
        sign = -1 if criterion == "aimer" else 1
        for m in (E * 3 // 4, E // 2):
            chosen = [keep(sign * np.array(values), m) for values in layers]
            sets.setdefault(criterion, {})[str(m)] = [kept for kept, _ in chosen]
            least[criterion, m] = min(margin for _, margin in chosen)
    for (criterion, m), margin in least.items():
        print(f"{criterion} {m}: least margin {margin:.1e}", "TIE" if margin == 0 else "")
        assert margin > MARGIN or margin == 0 and criterion == "frequency"
    return sets


def micro_experts(model, statistics, layer=1, alphas=(0.0, 0.3, 1.0)):
    square, largest = (pooled(statistics, layer, name) for name in ("gated_square_activations", "largest_gated_activations"))
    down = torch.stack([model.weights(layer, j)[2] for j in range(model.E)]).numpy()
    column = (down**2).sum(1)
    return {f"layers.{layer}.alpha_{alpha}": (column * ((1 - alpha) * square + alpha * largest**2)).astype(np.float32) for alpha in alphas}


def dropped(kept, E):
    return [j for j in range(E) if j not in kept]


def masked(model, sets):
    """Logits with the experts dropped by reap masked, every fourth word of the vocabulary."""
    sequences, tensors = json.loads((FOLDER.parent / "moe.tokens.json").read_text()), {}
    for m, layers in sets["reap"].items():
        for layer, kept in enumerate(layers):
            model.mask(layer, dropped(kept, model.E))
        runs = [model.forward(ids) for ids in sequences]
        model.unmask()
        for layer, kept in enumerate(layers):
            chosen = torch.cat([seen[layer]["chosen"] for _, seen in runs])
            assert set(chosen.flatten().tolist()) <= set(kept)
            z = torch.cat([seen[layer]["z"] for _, seen in runs]).sort(descending=True).values
            gap = (z[:, model.k - 1] - z[:, model.k]).min().item()
            assert gap > 2e-5, gap
            tensors[f"keep_{m}.selected.{layer}"] = chosen.to(torch.uint8).numpy()
        logits = torch.cat([logits for logits, _ in runs])
        tensors[f"keep_{m}.logits"] = logits[:, :: 4 if m == "18" else 16].float().numpy()
    save("masked.safetensors", tensors)
    save_json("masked.json", {"criterion": "reap", "kept": sets["reap"], "vocabulary_step": {"18": 4, "12": 16}})


def sequential(model, tokens):
    """reap decided layer by layer, each layer's inputs through the pruned layers before it."""
    result, found = {}, {}
    for m in (18, 12):
        layers, values = [], []
        for layer in range(len(model.blocks)):
            total, count = np.zeros(model.E), np.zeros(model.E)
            for windows in tokens.values():
                seen = observe(model, windows)[layer]
                for j in range(model.E):
                    token, place = (seen["chosen"] == j).nonzero(as_tuple=True)
                    _, f = model.expert(layer, j, seen["x"][token])
                    total[j] += (seen["g"][token, place] * f.norm(dim=1)).sum().item()
                    count[j] += len(token)
            saliency = total / np.maximum(count, 1)
            kept, margin = keep(saliency, m)
            print("sequential", m, "layer", layer, f"margin {margin:.1e}")
            assert margin > MARGIN
            model.mask(layer, dropped(kept, model.E))
            layers.append(kept)
            values.append(saliency.tolist())
        model.unmask()
        result[str(m)], found[str(m)] = layers, values
    return {"criterion": "reap", "kept": result, "saliencies": found}


def exhaustive():
    """Every subset of a seven-expert Mixtral's first layers."""
    model, rng = Model(MIXTRAL), np.random.default_rng(7)
    ids = [rng.integers(model.net.config.vocab_size, size=32).tolist() for _ in range(4)]
    runs = [model.forward(window)[1] for window in ids]
    layers = []
    for layer in range(len(model.blocks)):
        x, y = (torch.cat([run[layer][key] for run in runs]) for key in ("x", "y"))
        sizes = {}
        for m in range(model.k, model.E):
            errors = []
            for kept in itertools.combinations(range(model.E), m):
                model.mask(layer, dropped(kept, model.E))
                z, seen = model.block(layer, x)
                model.unmask()
                assert set(seen["chosen"].flatten().tolist()) <= set(kept)
                errors.append(((z - y).norm().item(), list(kept)))
            best, second = sorted(errors)[:2]
            assert second[0] > best[0] * (1 + MARGIN)
            sizes[str(m)] = {"best": best[1], "errors": [error for error, _ in errors]}
        layers.append(sizes)
    model.unmask()
    return {"model": "families/mixtral/base", "tokens": ids, "subsets": "lexicographic", "layers": layers}


def main():
    model, statistics, tokens = Model(FOLDER), load("statistics.safetensors"), calibration()
    seen = [observe(model, windows) for windows in tokens.values()]
    found = saliencies(model, statistics, seen)
    sets = kept_sets(found, model.E)
    save_json("saliencies.json", {"saliencies": found, "kept": sets})
    save("micro-experts.safetensors", micro_experts(model, statistics))
    masked(model, sets)
    once = sequential(model, tokens)
    assert [kept[0] for kept in once["kept"].values()] == [sets["reap"][m][0] for m in once["kept"]], "the first layer sees the same inputs"
    save_json("sequential.json", once)
    save_json("exhaustive.json", exhaustive())


if __name__ == "__main__":
    main()
