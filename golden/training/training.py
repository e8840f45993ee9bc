#!/usr/bin/env python3
"""adamw.json, adamw.safetensors, run.json, run.safetensors: AdamW by torch, and six steps of training. See README.md.

    python training.py            # 30 s
"""
import math

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from files import Sampled, save, save_json
from net import Net

BETAS, EPS = (0.9, 0.95), 1e-8

# ---------------------------------------------------------------- AdamW on given gradients

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 3, 2)}
SCALES = [0.5, 0.02, 1.0, 0.1, 2.0, 0.05, 0.3, 0.01]  # of each step's gradients: clipped and not, in turns
WARMUP, LR = 2, 1e-2
CASES = {"clipped": dict(weight_decay=0.1, clip=1.0), "plain": dict(weight_decay=0.0, clip=None)}


def adamw(start, gradients, dtype, weight_decay, clip):
    """By torch: parameters after each step, its learning rate, and the norm of its gradients before clipping."""
    parameters = {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, len(SCALES))
    after, rates, norms = {name: [] for name in start}, [], []
    for step in range(len(SCALES)):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][step], dtype=dtype)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), clip if clip else math.inf).item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        for name, parameter in parameters.items():
            after[name].append(parameter.detach().numpy().copy())
    return {name: np.stack(value) for name, value in after.items()}, rates, norms


def adamw_by_hand(start, gradients, weight_decay, clip):
    """README.md's formulas in numpy float64."""
    p = {name: value.astype(np.float64) for name, value in start.items()}
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    after = {name: [] for name in p}
    for step in range(len(SCALES)):
        progress = (step - WARMUP) / (len(SCALES) - WARMUP)
        lr = LR * (step / WARMUP if step < WARMUP else (1 + math.cos(math.pi * progress)) / 2)
        g = {name: value[step].astype(np.float64) for name, value in gradients.items()}
        norm = math.sqrt(sum((value**2).sum() for value in g.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        for name in p:
            grad = factor * g[name]
            m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * grad
            v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * grad**2
            m_hat, v_hat = (x[name] / (1 - beta ** (step + 1)) for x, beta in zip((m, v), BETAS))
            p[name] = p[name] * (1 - lr * weight_decay) - lr * m_hat / (np.sqrt(v_hat) + EPS)
            after[name].append(p[name].copy())
    return {name: np.stack(value) for name, value in after.items()}


def optimizer_golden():
    rng = np.random.default_rng(5)
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    gradients = {name: np.stack([s * rng.standard_normal(shape) for s in SCALES]).astype(np.float32) for name, shape in SHAPES.items()}
    tensors = {f"start.{name}": value for name, value in start.items()} | {f"gradients.{name}": value for name, value in gradients.items()}
    found = {}
    for case, options in CASES.items():
        after, rates, norms = adamw(start, gradients, torch.float64, **options)
        single = adamw(start, gradients, torch.float32, **options)[0]
        hand = adamw_by_hand(start, gradients, **options)
        assert all(np.abs(hand[name] - after[name]).max() < 1e-14 for name in SHAPES)
        float32 = float(max(np.abs(single[name] - after[name]).max() for name in SHAPES))
        assert float32 < 1e-6, float32
        tensors |= {f"{case}.{name}": value for name, value in after.items()}
        found[case] = dict(lr=LR, betas=BETAS, eps=EPS, warmup_steps=WARMUP, steps=len(SCALES), **options, learning_rates=rates, norms=norms, float32=float32)
        print(case, found[case])
    save("adamw.safetensors", tensors)
    save_json("adamw.json", found)


# ---------------------------------------------------------------- a run

FAMILY, STEPS, RUN_LR, RUN_WARMUP, DECAY, CLIP, BALANCE = "qwen3_moe", 6, 1e-3, 1, 0.01, 1.0, 0.01


def train(dtype):
    net = Net(FAMILY, dtype)
    parameters = list(net.net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RUN_LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, RUN_WARMUP, STEPS)
    batches = [ids for ids in net.sequences if len(ids) > 1]  # a single token predicts nothing
    start, steps, chosen = net.on_disk({name: p.detach().clone() for name, p in net.net.named_parameters()}), [], []
    for step in range(STEPS):
        seen = net.forward([batches[step % len(batches)]])
        ce, balance = seen.ce(), seen.balance_by_layer()
        loss = ce + BALANCE * balance
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP).item()
        steps.append({"sequence": step % len(batches), "loss": loss.item(), "ce": ce.item(), "balance": balance.item(), "norm": norm, "learning_rate": schedule.get_last_lr()[0]})
        chosen += seen.chosen
        optimizer.step()
        schedule.step()
    after = net.on_disk(dict(net.net.named_parameters()))
    return steps, chosen, {name: value.numpy() for name, value in start.items()}, {name: value.numpy() for name, value in after.items()}


def run_golden():
    steps, chosen, start, after = train(torch.float64)
    single, chosen_single, _, after_single = train(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(chosen, chosen_single))
    change = {name: after[name] - start[name] for name in start}
    off = {name: after_single[name] - after[name] for name in start}
    float32 = {key: max(abs(other[key] / step[key] - 1) for step, other in zip(steps, single)) for key in ("loss", "norm")}
    float32["parameters"] = float(max(np.abs(value).max() for value in off.values()))
    float32["change"] = float(max(np.linalg.norm(off[name]) / np.linalg.norm(c) for name, c in change.items()))
    assert max(float32["loss"], float32["norm"], float32["parameters"]) < 1e-6 and float32["change"] < 1e-3, float32
    sampled = Sampled("run", [change])
    save("run.safetensors", {"indices": sampled.index(), "final.entries": sampled.entries(after), "change.sums": sampled.sums(change)})
    options = dict(family=FAMILY, lr=RUN_LR, betas=BETAS, eps=EPS, weight_decay=DECAY, clip=CLIP, warmup_steps=RUN_WARMUP, balance=BALANCE)
    print(*steps, float32, sep="\n")
    save_json("run.json", {"options": options, "steps": steps, "float32": float32, "parameters": sampled.parameters()})


if __name__ == "__main__":
    optimizer_golden()
    run_golden()
