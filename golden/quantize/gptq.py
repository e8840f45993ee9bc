#!/usr/bin/env python3
"""gptq.safetensors, gptq.json: GPTQ (Frantar et al., 2210.17323, Algorithm 1) of the built-in model's experts in plain numpy float64. See README.md.

    python gptq.py            # 15 s
"""
import sys
from dataclasses import dataclass, replace

import numpy as np

from files import GOLDEN, save, save_json

sys.path.insert(0, str(GOLDEN / "pruning"))
from model import Model, calibration, observe  # noqa: E402

DAMPING = 0.01
TIE = 1e-6  # nearer to a border than this, in units of what is rounded, counts as a tie
MANTISSA = {"float32": 24, "bfloat16": 8, "float16": 11}  # bits, with the hidden one
EPSILON = {name: 2.0 ** (1 - bits) for name, bits in MANTISSA.items()}  # what compressed-tensors gives a group of zeros as its scale


@dataclass
class Problem:
    """Inputs [n, K] of an expert's matrix, float32 values, with the gates [n] that go with them; columns in `dead` are set to zero."""

    name: str
    domain: str
    layer: int
    expert: int
    inputs: str  # "block": what gate and up see, "down": silu(gate x) * (up x)
    dead: tuple = ()


PROBLEMS = [
    Problem("hot", "english", 1, 3, "block"),  # 220 tokens
    Problem("few", "spanish", 2, 8, "block"),  # 52 tokens, fewer than K
    Problem("dead", "english", 1, 6, "down", dead=(5, 77, 126)),  # 121 tokens
    Problem("unseen", "code", 0, 13, "block"),  # no token at all
]


@dataclass
class Case:
    problem: str
    matrix: str
    bits: int
    symmetric: bool
    group: int  # -1: the row
    scale_dtype: str
    act_order: bool = False
    gate_power: int = 0  # rho = g ** gate_power
    rows: int = 64  # the first ones; rows are independent
    wide: bool = False  # [128, 128] taken as [64, 256], inputs [220, 128] as [110, 256]
    zeroed: tuple = ()  # (row, first column, column after the last), set to zero
    clip: bool = False  # the range of a group may shrink

    @property
    def name(self):
        parts = ["wide" if self.wide else self.problem, self.matrix, f"w{self.bits}", "sym" if self.symmetric else "asym",
                 f"g{self.group}", self.scale_dtype, "act" if self.act_order else "", f"gates{self.gate_power}" if self.gate_power else "",
                 "clip" if self.clip else ""]
        return ".".join(part for part in parts if part)


ZEROS = ((5, 0, 128), (9, 0, 32))
CASES = [
    Case("hot", "gate", 4, True, -1, "float32"),
    Case("hot", "gate", 4, True, 32, "bfloat16"),
    Case("hot", "gate", 4, True, 64, "bfloat16", act_order=True),
    Case("hot", "gate", 4, True, 32, "bfloat16", gate_power=2),
    Case("hot", "gate", 8, True, -1, "bfloat16"),
    Case("hot", "gate", 2, False, 32, "float32"),
    Case("hot", "up", 4, False, 32, "bfloat16", zeroed=ZEROS),
    Case("hot", "up", 4, False, 32, "float16", act_order=True),
    Case("hot", "up", 3, True, 32, "float16", zeroed=ZEROS),
    Case("hot", "up", 2, True, 32, "bfloat16", act_order=True),
    Case("hot", "gate", 4, True, 128, "bfloat16", wide=True, rows=32),
    Case("hot", "gate", 4, True, 128, "float32", act_order=True, wide=True, rows=32),
    Case("few", "gate", 4, True, 32, "bfloat16"),
    Case("few", "up", 3, False, 64, "bfloat16", act_order=True),
    Case("few", "gate", 2, True, -1, "float32"),
    Case("dead", "down", 4, True, 32, "bfloat16"),
    Case("dead", "down", 3, False, 32, "bfloat16", act_order=True),
    Case("dead", "down", 8, False, -1, "float32"),
    Case("unseen", "gate", 4, True, 32, "bfloat16", zeroed=ZEROS),
    Case("unseen", "up", 4, False, 64, "float32", zeroed=ZEROS),
    Case("hot", "gate", 4, True, 128, "bfloat16", rows=32, clip=True),
    Case("hot", "gate", 3, True, 32, "bfloat16", act_order=True, rows=32, clip=True),
    Case("hot", "up", 2, False, 32, "float32", rows=32, clip=True, zeroed=ZEROS),
    Case("few", "up", 3, False, 64, "bfloat16", act_order=True, rows=32, clip=True),
    Case("dead", "down", 4, True, 32, "bfloat16", rows=32, clip=True),
    Case("unseen", "gate", 4, True, 32, "bfloat16", rows=32, clip=True),
]
SHARES = [1 - step / 20 for step in range(11)]  # of a group's range that clipping tries


# ---------------------------------------------------------------- the grid


def rounded(x, dtype):
    """x to the nearest value of dtype, halves to even, as float64. No scale here is subnormal."""
    mantissa, exponent = np.frexp(x)
    bits = MANTISSA[dtype]
    return np.ldexp(np.rint(mantissa * 2.0**bits), exponent - bits)


def scale_ties(x, dtype):
    """Which x lie near a border between values of dtype: a reader's last bit decides. float32 borders are too dense to be listed."""
    mantissa, _ = np.frexp(x)
    steps = mantissa * 2.0 ** MANTISSA[dtype]
    return (np.abs(steps - np.floor(steps) - 0.5) < TIE * steps) if dtype != "float32" else np.zeros(x.shape, bool)


class Grid:
    """Scale s and zero z (the code that stands for 0) of a group w [N, g]: compressed-tensors' calculate_qparams, codes counted from 0."""

    def __init__(self, case):
        self.case, self.top = case, 2**case.bits - 1
        self.scale_ties, self.zero_ties, self.clip_ties, self.clipped = [], [], [], 0

    def fit(self, w, group, energy):
        """energy [g]: diag(H) of the group's columns."""
        if not self.case.clip:
            return self.of_range(w, group, 1.0)
        tried = [self.of_range(w, group, share) for share in SHARES]
        error = np.stack([((w - (self.round(w, s[:, None], z[:, None])[0] - z[:, None]) * s[:, None]) ** 2 * energy).sum(1) for s, z in tried])
        best = error.argmin(0)  # of equal ones the widest
        first, second = np.sort(error, 0)[:2]
        self.clip_ties += [[int(row), group] for row in np.flatnonzero((second - first <= TIE * first) & (first > 0))]
        self.clipped += int((best > 0).sum())
        rows = np.arange(len(w))
        return tuple(np.stack(values)[best, rows] for values in zip(*tried))

    def of_range(self, w, group, share):
        low, high = share * np.minimum(w.min(1), 0), share * np.maximum(w.max(1), 0)
        exact = np.maximum(-low, high) / (self.top / 2) if self.case.symmetric else (high - low) / self.top
        self.scale_ties += [[int(row), group] for row in np.flatnonzero(scale_ties(exact, self.case.scale_dtype))]
        s = np.where(exact == 0, EPSILON[self.case.scale_dtype], rounded(exact, self.case.scale_dtype)).astype(w.dtype)
        middle = 2.0 ** (self.case.bits - 1)
        if self.case.symmetric:
            return s, np.full_like(s, middle)
        z = np.where(exact == 0, middle, -low / s).astype(s.dtype)
        self.zero_ties += [[int(row), group] for row in np.flatnonzero(np.abs(z - np.floor(z) - 0.5) < TIE)]
        return s, np.clip(np.rint(z), 0, self.top)

    def round(self, w, s, z):
        """Codes of w, and how far each value before rounding is from the nearest border between two codes, in steps."""
        v = w / s + z
        border = np.clip(np.floor(v), 0, self.top - 1) + 0.5
        return np.rint(np.clip(v, 0, self.top)), np.abs(v - border)


# ---------------------------------------------------------------- the algorithm


def damped(H):
    """H with DAMPING * mean(diag) on the live diagonal and 1 on the dead one; which columns are dead."""
    dead = np.diag(H) == 0
    assert not H[dead].any() and not H[:, dead].any()
    live = np.diag(H)[~dead]
    return H + np.diag(np.where(dead, 1.0, DAMPING * live.mean() if live.size else 0.0)), dead


def gptq(W, H, case, dtype=np.float64):
    """Codes [N, K], scales and zeros [N, K/g] and the grid, which knows the ties among them; `near`: [row, column, distance]."""
    N, K = W.shape
    g = K if case.group == -1 else case.group
    grid, original = Grid(case), W.astype(dtype)
    W = original.copy()
    A, dead = damped(H)
    order = np.argsort(-np.diag(H), kind="stable") if case.act_order else np.arange(K)
    place = np.argsort(order)
    U = np.linalg.cholesky(np.linalg.inv(A[np.ix_(order, order)].astype(dtype))).T
    codes, scales, zeros, near = np.zeros((N, K), dtype), np.zeros((N, K // g), dtype), np.zeros((N, K // g), dtype), []
    if case.act_order:
        for group in range(K // g):
            scales[:, group], zeros[:, group] = grid.fit(original[:, group * g : (group + 1) * g], group, np.diag(H)[group * g : (group + 1) * g].astype(dtype))
    for j in order:
        group, i, later = int(j) // g, place[j], order[place[j] + 1 :]
        if not case.act_order and j % g == 0:
            scales[:, group], zeros[:, group] = grid.fit(W[:, j : j + g], group, np.diag(H)[j : j + g].astype(dtype))
        s, z = scales[:, group], zeros[:, group]
        codes[:, j], distance = grid.round(W[:, j], s, z)
        near += [[int(row), int(j), float(distance[row])] for row in np.flatnonzero(distance < TIE)]
        error = (W[:, j] - (codes[:, j] - z) * s) / U[i, i]
        assert not dead[j] or not U[i, i + 1 :].any(), "a dead column gives feedback"
        W[:, later] -= np.outer(error, U[i, i + 1 :])
        assert W.dtype == error.dtype == dtype
    return codes, scales, zeros, grid, near


def nearest(W, case):
    """The same grid without feedback, nor clipping."""
    codes, scales, zeros, _, _ = gptq(W, np.zeros((W.shape[1],) * 2), replace(case, clip=False))
    return codes, scales, zeros


def values(codes, scales, zeros):
    g = codes.shape[1] // scales.shape[1]
    return (codes - np.repeat(zeros, g, 1)) * np.repeat(scales, g, 1)


def trace(A, H):
    """tr(A H A^T)."""
    return float(((A @ H) * A).sum())


# ---------------------------------------------------------------- problems and cases


def inputs(problem, model, seen):
    """X [n, K] and gates [n] in float32."""
    layer = seen[problem.layer]
    token, k = (layer["chosen"] == problem.expert).nonzero(as_tuple=True)
    x = layer["x"][token]
    if problem.inputs == "down":
        x, _ = model.expert(problem.layer, problem.expert, x)
    x, gates = x.numpy().astype(np.float32), layer["g"][token, k].numpy().astype(np.float32)
    x[:, list(problem.dead)] = 0
    return x, gates


def hessian(X, rho):
    """H = sum of rho_t x_t x_t^T [K, K]."""
    X = X.astype(np.float64)
    return (X * rho[:, None].astype(np.float64)).T @ X


def task(case, problems, model):
    """W [N, K] and H of a case."""
    problem = next(p for p in PROBLEMS if p.name == case.problem)
    W = model.weights(problem.layer, problem.expert)[["gate", "up", "down"].index(case.matrix)].numpy().copy()
    X, gates = problems[case.problem]
    if case.wide:
        W, X, gates = W.reshape(64, 256), X.reshape(-1, 256), gates[::2]
        assert case.gate_power == 0
    W = W[: case.rows]
    for row, start, end in case.zeroed:
        W[row, start:end] = 0
    return W, hessian(X, gates.astype(np.float64) ** case.gate_power)


def single(W, H, case, codes, tied):
    """How many codes a float32 run of the same lines changes, in how many rows without a tie, and its objective."""
    other, scales, zeros, _, _ = gptq(W, H, case, np.float32)
    changed = other != codes
    untied = {int(row) for row in changed.any(1).nonzero()[0]} - tied
    assert changed.sum() <= 0.02 * codes.size
    return {"codes_changed": int(changed.sum()), "rows_changed_without_tie": len(untied), "objective": trace(W - values(other, scales, zeros).astype(np.float64), H)}


def solved(case, problems, model, tensors):
    """Adds a case's tensors and returns its entry."""
    W, H = task(case, problems, model)
    codes, scales, zeros, grid, near = gptq(W, H, case)
    plain = values(*nearest(W, case))
    tensors |= {f"{case.name}.codes": codes.astype(np.uint8), f"{case.name}.zeros": zeros.astype(np.uint8), f"{case.name}.scales": scales.astype(np.float32)}
    assert (scales.astype(np.float32) == scales).all()
    problem = next(p for p in PROBLEMS if p.name == case.problem)
    error, size, rounding = (trace(A, H) for A in (W - values(codes, scales, zeros), W, W - plain))
    alike = single(W, H, case, codes, {tie[0] for tie in near + grid.scale_ties + grid.zero_ties + grid.clip_ties})
    print(f"{case.name:45} {error / size if size else 0:.3e} of the output, nearest {rounding / size if size else 0:.3e};",
          f"ties {len(near)}, {len(grid.scale_ties)}, {len(grid.zero_ties)}; float32 changes {alike['codes_changed']} of {codes.size} codes,",
          f"{alike['rows_changed_without_tie']} rows without a tie")
    assert error <= rounding
    if case.clip and size:  # a search that nothing comes of would prove nothing
        assert grid.clipped >= scales.size / 4, f"{case.name}: {grid.clipped} of {scales.size} ranges shrink"
    return {"name": case.name, "problem": case.problem, "layer": problem.layer, "expert": problem.expert, "matrix": case.matrix, "rows": case.rows,
            "wide": case.wide, "zeroed": case.zeroed, "bits": case.bits, "symmetric": case.symmetric, "group": case.group,
            "act_order": case.act_order, "scale_dtype": case.scale_dtype, "gate_power": case.gate_power, "clip": case.clip,
            "objective": error, "square_output": size, "nearest_objective": rounding, "float32": alike,
            "code_ties": near, "scale_ties": grid.scale_ties, "zero_ties": grid.zero_ties, "clip_ties": grid.clip_ties}


def main():
    model = Model(GOLDEN / "models" / "moe")
    windows = calibration()
    seen = {domain: observe(model, windows[domain]) for domain in {p.domain for p in PROBLEMS}}
    problems = {p.name: inputs(p, model, seen[p.domain]) for p in PROBLEMS}
    tensors, entries = {}, []
    for p in PROBLEMS:
        X, gates = problems[p.name]
        entries.append({"name": p.name, "domain": p.domain, "layer": p.layer, "expert": p.expert, "inputs": p.inputs, "tokens": len(X), "dead": p.dead})
        tensors[f"{p.name}.inputs"] = X
    X, gates = problems["hot"]
    lower = np.tril_indices(X.shape[1])
    tensors |= {"hot.gates": gates, "hot.hessian": hessian(X, np.ones(len(X)))[lower], "hot.weighted_hessian": hessian(X, gates.astype(np.float64) ** 2)[lower]}
    cases = [solved(case, problems, model, tensors) for case in CASES]
    assert len({case["name"] for case in cases}) == len(cases)
    save("gptq.safetensors", tensors)
    save_json("gptq.json", {"damping": DAMPING, "tie": TIE, "problems": entries, "cases": cases})


if __name__ == "__main__":
    main()
