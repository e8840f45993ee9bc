#!/usr/bin/env python3
"""merge-<method>.json and .safetensors: six ways to merge layer 1's 24 experts into 12. See METHODS.md, README.md."""
import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist, squareform

from model import Model, calibration, keep, load, observe, save, save_json
from prune import FOLDER, pooled

LAYER, M, CAP, TAU, RANK = 1, 12, 16, 0.3, 64
MARGIN = 1e-5  # relative, at every decision
STEP = 32  # of the merged neurons every 32nd is stored whole, and sums over rows and columns of all


class Layer:
    """The layer's weights, inputs and pooled statistics as float64 arrays."""

    def __init__(self, model, seen):
        parts = [model.weights(LAYER, j) for j in range(model.E)]
        self.gate, self.up, self.down = (np.stack([part[i].numpy() for part in parts]) for i in range(3))
        self.E, self.I, self.H = self.gate.shape
        self.x, self.chosen = seen["x"].numpy(), seen["chosen"].numpy()
        self.neurons = np.concatenate([self.gate, self.up, self.down.transpose(0, 2, 1)], axis=2)  # [E, I, 3H]
        statistics = load("statistics.safetensors")
        for name in ("tokens", "gates", "gated_norms", "gated_outputs", "activations", "logit_products"):
            setattr(self, name, pooled(statistics, LAYER, name))
        self.reap = self.gated_norms / np.maximum(self.tokens, 1)
        assert np.allclose(self.logit_products, seen["z"].numpy().T @ seen["z"].numpy(), rtol=1e-12)

    def phi(self, gate, up, x):
        a = x @ gate.T
        return a / (1 + np.exp(-a)) * (x @ up.T)

    def output(self, j, x):
        return self.phi(self.gate[j], self.up[j], x) @ self.down[j].T


# ---------------------------------------------------------------- groups


def cosines(rows):
    norm = np.linalg.norm(rows, axis=1)
    return rows @ rows.T / np.outer(norm, norm)


def gram_cosines(gram):
    norm = np.sqrt(np.diag(gram))
    return gram / np.outer(norm, norm)


def centroids_of(saliency):
    kept, margin = keep(saliency, M)
    whole = np.array_equal(saliency, np.round(saliency))  # counts: a tie is one for everybody
    assert whole or margin > MARGIN, margin
    return kept


def nearest(similarity, centroids, cap=10**9):
    groups, free = {c: [c] for c in centroids}, [j for j in range(len(similarity)) if j not in centroids]
    for j in free:
        best = np.sort(similarity[j, centroids])
        assert best[-1] - best[-2] > MARGIN
    pairs = sorted(((-similarity[j, c], j, c) for j in free for c in centroids))
    for _, j, c in pairs:
        if j in free and len(groups[c]) < cap:
            groups[c].append(j)
            free.remove(j)
    assert not free
    return [[c] + sorted(groups[c][1:]) for c in sorted(groups)]


def pseudo(similarity, saliency, centroids, cap):
    groups, free = {c: [c] for c in centroids}, [j for j in range(len(similarity)) if j not in centroids]
    for c in sorted(centroids, key=lambda c: (-saliency[c], c)):
        for j in sorted(free, key=lambda j: (-similarity[c, j], j))[: cap - 1]:
            groups[c].append(j)
            free.remove(j)
    assert not free
    return [[c] + sorted(groups[c][1:]) for c in sorted(groups)]


def check_average_linkage(distance, labels, m):
    """Plain agglomeration by mean distances; asserts that no merge is nearly tied and that scipy's labels are the same partition."""
    clusters = [[j] for j in range(len(distance))]
    while len(clusters) > m:
        pairs = sorted((distance[np.ix_(clusters[a], clusters[b])].mean(), a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters)))
        assert pairs[1][0] > pairs[0][0] * (1 + MARGIN)
        _, a, b = pairs[0]
        clusters[a] += clusters.pop(b)
    assert {frozenset(c) for c in clusters} == {frozenset(np.flatnonzero(labels == label)) for label in set(labels)}


def cluster(features, m):
    distance = pdist(features)
    labels = fcluster(linkage(distance, method="average"), m, criterion="maxclust")
    check_average_linkage(squareform(distance), labels, m)
    groups = []
    for label in set(labels):
        members = np.flatnonzero(labels == label)
        away = np.linalg.norm(features[members] - features[members].mean(0), axis=1)
        centroid = members[away.argmin()]
        if len(members) == 2:  # both are as far from their mean: the lower index, whatever rounding says
            centroid = members[0]
        else:
            assert len(members) == 1 or np.sort(away)[1] > np.sort(away)[0] * (1 + MARGIN)
        groups.append([int(centroid)] + sorted(int(j) for j in members if j != centroid))
    return sorted(groups)


def coefficients(groups, weights):
    result = []
    for group in groups:
        w = np.array([weights[j] for j in group], dtype=np.float64)
        result.append(w / w.sum() if w.sum() > 0 else np.full(len(group), 1 / len(group)))
    return result


# ---------------------------------------------------------------- permutations


def assign(cost, maximize=False):
    """The permutation, its total, and how much worse (of the total) the nearest other one is."""
    rows, columns = linear_sum_assignment(cost, maximize=maximize)
    total, sign, least = cost[rows, columns].sum(), -1 if maximize else 1, np.inf
    for row, column in zip(rows, columns):
        forbidden = cost.copy()
        forbidden[row, column] += sign * np.abs(cost).max() * 1e3
        least = min(least, sign * (forbidden[linear_sum_assignment(forbidden, maximize=maximize)].sum() - total))
    return columns, total, least / abs(total)


def weight_permutation(layer, c, j):
    return assign(layer.neurons[c] @ layer.neurons[j].T, maximize=True)


def unit(rows):
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def principal(layer):
    """rho [E, I, r] of METHODS.md."""
    rows = unit(layer.neurons).reshape(layer.E * layer.I, -1)
    rows = rows - rows.mean(0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    values, vectors = values[::-1], vectors[:, ::-1]
    print(f"PCA: eigenvalues {RANK} and {RANK + 1}: {values[RANK - 1]:.4f} {values[RANK]:.4f}, of all {values[:RANK].sum() / values.sum():.3f}")
    assert values[RANK - 1] - values[RANK] > 1e-4 * values[0]
    assert np.allclose(np.linalg.svd(rows, compute_uv=False) ** 2, values)
    return unit(rows @ vectors[:, :RANK]).reshape(layer.E, layer.I, RANK)


def ream_permutation(layer, alpha, rho):
    def find(c, j):
        return assign(np.abs(alpha[c][:, None] - alpha[j][None, :]) + cdist(rho[c], rho[j]))

    return find


# ---------------------------------------------------------------- merging


def merged(layer, group, w, permutations):
    total = [np.zeros_like(part[0]) for part in (layer.gate, layer.up, layer.down)]
    for j, weight in zip(group, w):
        pi = permutations.get(j, np.arange(layer.I))
        for sum_, part in zip(total, (layer.gate[j][pi], layer.up[j][pi], layer.down[j][:, pi])):
            sum_ += weight * part
    return total


def check_permutation(layer, j, pi):
    x = layer.x[:32]
    assert np.allclose(layer.phi(layer.gate[j][pi], layer.up[j][pi], x) @ layer.down[j][:, pi].T, layer.output(j, x), rtol=1e-9, atol=1e-12)


def parts(centroid, gate, up, down):
    """What is stored of a merged expert: every STEP-th neuron, and all sums over rows and over columns."""
    out = {"gate": gate[::STEP], "up": up[::STEP], "down": down[:, ::STEP]}
    for name, value in (("gate", gate), ("up", up), ("down", down)):
        out |= {f"{name}.row_sums": value.sum(1), f"{name}.column_sums": value.sum(0)}
    return {f"experts.{centroid}.{name}": value.astype(np.float32) for name, value in out.items()}


def largest_groups(groups):
    return sorted((g for g in groups if len(g) > 1), key=lambda g: (-len(g), g[0]))[:2]


def write(name, layer, groups, w, permute=None, extra=None, facts=None, make=None):
    assert sorted(j for group in groups for j in group) == list(range(layer.E)) and len(groups) == M
    tensors, margins, totals, permutations = dict(extra or {}), {}, {}, {}
    for group in groups if permute else []:
        for j in group[1:]:
            permutations[j], totals[j], margins[j] = permute(group[0], j)
            check_permutation(layer, j, permutations[j])
            tensors[f"permutations.{j}"] = permutations[j].astype(np.uint8)
    make = make or (lambda group, weights: merged(layer, group, weights, permutations))
    for group, weights in zip(groups, w):
        if group in largest_groups(groups):
            tensors |= parts(group[0], *make(group, weights))
    save(f"merge-{name}.safetensors", tensors)
    entry = {"layer": LAYER, "groups": groups, "coefficients": [[float(v) for v in weights] for weights in w]} | (facts or {})
    if permute:
        entry["assignment_totals"] = {str(j): float(v) for j, v in totals.items()}
        entry["assignment_margins"] = {str(j): float(v) for j, v in margins.items()}
        print("least assignment margin", min(margins.values()))
        assert min(margins.values()) > 1e-7
    save_json(f"merge-{name}.json", entry)
    print(name, groups)


def m_smoe_groups(layer):
    return nearest(gram_cosines(layer.logit_products), centroids_of(layer.tokens))


def m_smoe(layer):
    groups = m_smoe_groups(layer)
    write("m-smoe", layer, groups, coefficients(groups, layer.tokens), lambda c, j: weight_permutation(layer, c, j))


def hc_smoe(layer):
    features = np.stack([layer.output(j, layer.x).mean(0) for j in range(layer.E)])
    groups = cluster(features, M)
    write("hc-smoe", layer, groups, coefficients(groups, layer.tokens), extra={"features": features.astype(np.float32)},
          facts={"groups_by_count": {str(m): cluster(features, m) for m in (4, 8, 16, 18, 23)}})
    write("average", layer, groups, coefficients(groups, np.ones(layer.E)))


def ream(layer):
    s = layer.reap
    similarity = (cosines(layer.gated_outputs) + gram_cosines(layer.logit_products)) / 2
    mean = layer.activations / np.maximum(layer.tokens, 1)[:, None]
    alpha = mean / np.sqrt((mean**2).mean(1, keepdims=True))
    permute = ream_permutation(layer, alpha, principal(layer))
    centroids = centroids_of(s)
    extra = {"similarities": similarity}
    write("ream", layer, (g := pseudo(similarity, s, centroids, CAP)), coefficients(g, s), permute, extra, {"grouping": "pseudo", "cap": CAP})
    write("ream-nearest", layer, (g := nearest(similarity, centroids, CAP)), coefficients(g, s), permute, None, {
        "grouping": "nearest", "cap": CAP,
        "groups_by_cap": {grouping: {str(cap): find(cap) for cap in (2, 3, 4, 8)} for grouping, find in (
            ("pseudo", lambda cap: pseudo(similarity, s, centroids, cap)), ("nearest", lambda cap: nearest(similarity, centroids, cap)))}})


def mergemoe(layer):
    def make(group, w):
        gate, up, _ = merged(layer, group, w, {})
        x = layer.x[np.isin(layer.chosen, group).any(1)]
        p = layer.phi(gate, up, x)  # [tokens, I], P transposed
        y = sum(weight * layer.output(j, x) for j, weight in zip(group, w))
        singular = np.linalg.svd(p, compute_uv=False)
        print("mergemoe", group, "tokens", len(x), "condition of P", singular[0] / singular[-1])
        assert singular[-1] > 1e-5 * singular[0]
        down = np.linalg.lstsq(p, y, rcond=1e-6)[0].T
        q = np.concatenate([weight * layer.phi(layer.gate[j], layer.up[j], x) for j, weight in zip(group, w)], axis=1).T
        t = np.concatenate([layer.down[j] for j in group], axis=1) @ (q @ np.linalg.pinv(p.T, rcond=1e-6))
        assert np.allclose(t, down, rtol=1e-7, atol=1e-9)
        mean = merged(layer, group, w, {})[2]
        errors[group[0]] = [float(np.linalg.norm(p @ d.T - y) / np.linalg.norm(y)) for d in (mean, down)]
        return gate, up, down

    errors, groups = {}, m_smoe_groups(layer)
    write("mergemoe", layer, groups, coefficients(groups, layer.tokens), make=make,
          facts={"relative_errors_of_mean_and_fit": errors})


def dern(layer):
    s = layer.gates
    kept = centroids_of(s)
    gone = [j for j in range(layer.E) if j not in kept]
    rows = unit(layer.neurons)
    flat = rows[kept].reshape(-1, rows.shape[2])
    target, cosine, least = np.full((len(gone), layer.I), -1, dtype=np.int16), [], np.inf
    sums, weights = {c: s[c] * layer.neurons[c] for c in kept}, {c: np.full(layer.I, s[c]) for c in kept}
    for row, d in enumerate(gone):
        found = rows[d] @ flat.T
        for q in range(layer.I):
            best = int(found[q].argmax())
            second = np.partition(found[q], -2)[-2]
            cosine.append(found[q, best])
            if found[q, best] < TAU:
                continue
            least = min(least, found[q, best] - second)
            c, p = kept[best // layer.I], best % layer.I
            target[row, q] = c * layer.I + p
            sums[c][p] += s[d] * layer.neurons[d, q]
            weights[c][p] += s[d]
    cosine = np.array(cosine)
    print("dern: placed", int((target >= 0).sum()), "of", target.size, "cosines' quantiles", np.quantile(cosine, [0.1, 0.5, 0.9, 1]),
          "margins", least, np.abs(cosine - TAU).min())
    assert least > 1e-7 and np.abs(cosine - TAU).min() > 1e-7
    received = {c: int((target // layer.I == c)[target >= 0].sum()) for c in kept}
    tensors = {"targets": target}
    for c in sorted(kept, key=lambda c: (-received[c], c))[:2]:
        v = sums[c] / weights[c][:, None]
        tensors |= parts(c, v[:, : layer.H], v[:, layer.H : 2 * layer.H], v[:, 2 * layer.H :].T)
    save("merge-dern.safetensors", tensors)
    save_json("merge-dern.json", {"layer": LAYER, "threshold": TAU, "kept": kept, "dropped": gone, "received": [received[c] for c in kept]})


def main():
    model = Model(FOLDER)
    domains = [observe(model, windows)[LAYER] for windows in calibration().values()]
    layer = Layer(model, {key: torch.cat([domain[key] for domain in domains]) for key in domains[0]})
    for method in (m_smoe, hc_smoe, ream, mergemoe, dern):
        method(layer)


if __name__ == "__main__":
    main()
