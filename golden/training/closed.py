#!/usr/bin/env python3
"""do-acp.json, ridge.json, ridge.safetensors: the closed forms of distillation in numpy float64. See README.md.

    python closed.py            # 1 s
"""
import numpy as np

from files import save, save_json

# ---------------------------------------------------------------- DO-ACP


def problem(seed, experts, directions, width, tokens):
    """Importances I [E] (acp) and E<f_i, f_j> [E, E] of experts that share a few directions, so that near copies are dear to acp alone."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((directions, tokens, width))
    f = np.stack([rng.uniform(0.5, 2) * (shared[e % directions] + rng.uniform(0.05, 0.6) * rng.standard_normal((tokens, width))) for e in range(experts)])
    products = np.einsum("itd,jtd->ij", f, f) / tokens
    products = (products + products.T) / 2
    cp = rng.uniform(0.08, 0.5, experts)
    return cp * np.sqrt(np.diag(products)), products


def objective(K, chosen, lam):
    return np.linalg.slogdet(K[np.ix_(chosen, chosen)] + lam * np.eye(len(chosen)))[1]


def greedy(K, k, lam):
    """Each step's argmax over all experts left of log det(K_S + lam I), evaluated anew; and by how much the second best is behind."""
    chosen, values, margins = [], [], []
    while len(chosen) < k:
        tried = sorted(((objective(K, [*chosen, e], lam), e) for e in range(len(K)) if e not in chosen), reverse=True)
        values.append(tried[0][0])
        margins.append(tried[0][0] - tried[1][0] if len(tried) > 1 else 1.0)
        chosen.append(tried[0][1])
    return chosen, values, margins


def greedy_by_schur(K, k, lam):
    """The same by what is left of each diagonal entry when those chosen are eliminated: log det grows by its logarithm."""
    left, chosen = K + lam * np.eye(len(K)), []
    for _ in range(k):
        diagonal = np.diag(left).copy()
        diagonal[chosen] = -np.inf
        j = int(diagonal.argmax())
        chosen.append(j)
        left = left - np.outer(left[:, j], left[j]) / left[j, j]
    return chosen


def do_acp_case(seed, experts, directions, width, tokens):
    importance, products = problem(seed, experts, directions, width, tokens)
    K = np.sqrt(np.outer(importance, importance)) * products
    selections = []
    for k in range(1, experts + 1):
        lam = np.diag(K).mean() / k
        chosen, values, margins = greedy(K, k, lam)
        assert chosen == greedy_by_schur(K, k, lam) and min(margins) > 1e-6
        selections.append({"k": k, "lambda": lam, "order": chosen, "log_det": values, "least_margin": min(margins)})
    by_acp = [int(e) for e in np.argsort(-importance)]
    different = sum(set(s["order"]) != set(by_acp[: s["k"]]) for s in selections)
    shifts = sum(s["order"] != selections[-1]["order"][: s["k"]] for s in selections)
    print("do-acp:", different, "of", experts, "sets are not acp's;", shifts, "orders are not the last one's beginning; least margin", min(s["least_margin"] for s in selections))
    assert different > 0
    return {"importance": importance.tolist(), "products": products.tolist(), "by_importance": by_acp, "selections": selections}


# ---------------------------------------------------------------- ridge

SHRINKAGE = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]  # lambda / mean diagonal of H^T H
W, D, RANK, HELD = 14, 5, 6, 40
TOKENS = {"enough": 48, "few": 9}  # "few": fewer than the width, H^T H is singular


def hidden(rng, mix, n):
    """H [n, w]: few directions and a little noise, so that its columns are nearly dependent."""
    return (rng.standard_normal((n, RANK)) @ mix + 0.05 * rng.standard_normal((n, W))).astype(np.float32)


def solve(H, Y, W0, lam):
    """argmin ||Y - H W^T||^2 + lam ||W - W0||^2, [d, w]: W0 + (Y - H W0^T)^T H (H^T H + lam I)^-1."""
    return W0 + np.linalg.solve(H.T @ H + lam * np.eye(H.shape[1]), H.T @ (Y - H @ W0.T)).T


def solve_stacked(H, Y, W0, lam):
    """The same as ordinary least squares of [H; sqrt(lam) I] on [Y; sqrt(lam) W0^T]."""
    rows, values = np.vstack([H, np.sqrt(lam) * np.eye(H.shape[1])]), np.vstack([Y, np.sqrt(lam) * W0.T])
    return np.linalg.lstsq(rows, values, rcond=None)[0].T


def ridge_golden():
    rng = np.random.default_rng(11)
    mix, truth = rng.standard_normal((RANK, W)), rng.standard_normal((D, W))
    W0 = (truth + 0.3 * rng.standard_normal((D, W))).astype(np.float32)
    outputs = lambda H, noise: (H.astype(np.float64) @ truth.T + noise * rng.standard_normal((len(H), D))).astype(np.float32)
    held = hidden(rng, mix, HELD)
    tensors, found = {"W0": W0, "H_held": held, "Y_held": outputs(held, 0.5)}, {}
    for case, tokens in TOKENS.items():
        H = hidden(rng, mix, tokens)
        tensors |= {f"{case}.H": H, f"{case}.Y": outputs(H, 0.5)}
        H, Y, Hh, Yh, start = (tensors[key].astype(np.float64) for key in (f"{case}.H", f"{case}.Y", "H_held", "Y_held", "W0"))
        diagonal, solutions, rows = np.diag(H.T @ H).mean(), [], []
        for relative in SHRINKAGE:
            lam = relative * diagonal
            solution = solve(H, Y, start, lam)
            off = np.abs(solution - solve_stacked(H, Y, start, lam)).max()
            assert off < 1e-8, off
            solutions.append(solution)
            fit, shrinkage = ((Y - H @ solution.T) ** 2).sum(), ((solution - start) ** 2).sum()
            error = ((Yh - Hh @ solution.T) ** 2).sum() / (Yh**2).sum()
            rows.append({"relative": relative, "lambda": lam, "square_error": fit, "square_distance": shrinkage, "objective": fit + lam * shrinkage, "held_out_error": error})
        best = int(np.argmin([row["held_out_error"] for row in rows]))
        assert 0 < best < len(rows) - 1, [row["held_out_error"] for row in rows]
        tensors[f"{case}.W"] = np.stack(solutions)
        found[case] = {"mean_diagonal": diagonal, "start_held_out_error": ((Yh - Hh @ start.T) ** 2).sum() / (Yh**2).sum(), "best": best, "solutions": rows}
        print("ridge", case, "start", found[case]["start_held_out_error"], "held-out", [round(row["held_out_error"], 5) for row in rows], "best", best)
    save("ridge.safetensors", tensors)
    save_json("ridge.json", found)


if __name__ == "__main__":
    save_json("do-acp.json", {"clusters": do_acp_case(3, 12, 4, 6, 40), "spread": do_acp_case(4, 8, 8, 5, 30)})
    ridge_golden()
