#!/usr/bin/env python3
"""gradients/, gradients.json: losses of family goldens and the gradient of every parameter, by PyTorch. See README.md.

    python gradients.py            # 1 min
"""
import zlib

import numpy as np
import torch

from files import HERE, Sampled, save, save_json
from net import Net

ROUTED = ["mixtral", "qwen3_moe"]  # with router losses, KL and the whole gradient of ce
OTHERS = ["qwen2_moe", "olmoe", "deepseek_v3", "qwen3"]
BALANCE, Z = 0.01, 0.001
NOISE = 0.1  # of the teacher's router and head, relative to the RMS of the tensor
STEP = 1e-5  # of finite differences
ROUTER = {"mixtral": "model.layers.{}.block_sparse_moe.gate.weight", "qwen3_moe": "model.layers.{}.mlp.gate.weight"}


def teacher(family):
    """Logits [n, vocab] f32 of the same model with noise on routers and head."""
    net = Net(family, torch.float64)
    rng = np.random.default_rng(zlib.crc32(f"{family}/teacher".encode()))
    with torch.no_grad():
        for weight in [router.weight for router in net.routers] + [net.net.lm_head.weight]:
            noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape)))
            weight += NOISE * weight.square().mean().sqrt() * noise
        return net.forward(net.sequences).logits.float()


def losses(seen, logits):
    """The terms, each by itself."""
    found = {"ce": seen.ce()}
    if logits is not None:
        found |= {"balance": seen.balance(), "balance_by_layer": seen.balance_by_layer(), "z": seen.z(), "kl": seen.kl(logits)}
    return found


def totals(terms):
    if "z" not in terms:
        return {}
    ce = terms["ce"]
    return {"ce+balance": ce + BALANCE * terms["balance"], "ce+balance_by_layer": ce + BALANCE * terms["balance_by_layer"], "ce+z": ce + Z * terms["z"]}


def distance(exact, single):
    """The largest ||float32 - float64|| / ||float64|| of any parameter; what is zero is zero in both."""
    worst, where = 0.0, ""
    for name, g in exact.items():
        norm, off = np.linalg.norm(g), np.linalg.norm(single[name] - g)
        assert norm > 0 or off == 0, name
        if norm > 0 and off / norm > worst:
            worst, where = off / norm, name
    return worst, where


def as_stock(net, terms):
    """transformers' own forward on one padded batch with a mask and labels: the same loss and gradients as our sums over single sequences."""
    length = max(map(len, net.sequences))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in net.sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in net.sequences])
    net.net.router_aux_loss_coef = BALANCE
    stock = net.run(lambda: net.net(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), output_router_logits=True, use_cache=False))
    assert torch.isclose(stock.aux_loss, terms["balance"], rtol=1e-12)
    assert torch.isclose(stock.loss, totals(terms)["ce+balance"], rtol=1e-12)
    off, where = distance(net.gradients(totals(terms)["ce+balance"]), net.gradients(stock.loss))
    assert off < 1e-10, (off, where)


def finite_differences(net, logits, gradients, probes):
    """Central differences in float64 of (loss, parameter, flat index); the choice of experts must not change."""
    chosen, found = net.forward(net.sequences).chosen, []
    parameters = dict(net.net.named_parameters())
    for loss, name, index in probes:
        weight = parameters[name.replace(".block_sparse_moe.", ".mlp.")].data.view(-1)
        at, ends = weight[index].item(), []
        for sign in (1, -1):
            weight[index] = at + sign * STEP
            with torch.no_grad():
                seen = net.forward(net.sequences)
                ends.append(losses(seen, logits)[loss].item())
            assert all(torch.equal(a, b) for a, b in zip(seen.chosen, chosen))
        weight[index] = at
        difference, gradient = (ends[0] - ends[1]) / (2 * STEP), float(gradients[loss][name].reshape(-1)[index])
        assert abs(difference - gradient) < 1e-6 * np.abs(gradients[loss][name]).max(), (loss, name, index, difference, gradient)
        found.append({"loss": loss, "name": name, "index": int(index), "difference": difference, "gradient": gradient})
    return found


def probes(family, gradients):
    """Router entries: the largest of each layer and three seeded ones for ce, the largest of the first layer for other losses; and the row of pad_token_id."""
    rng = np.random.default_rng(zlib.crc32(f"{family}/probes".encode()))
    found = []
    for layer in (0, 1):
        name = ROUTER[family].format(layer)
        g = gradients["ce"][name].reshape(-1)
        found += [("ce", name, i) for i in [np.abs(g).argmax(), *rng.choice(len(g), 3, replace=False)]]
    name = ROUTER[family].format(0)
    found += [(loss, name, np.abs(gradients[loss][name]).argmax()) for loss in gradients if loss != "ce"]
    row = gradients["ce"]["model.embed_tokens.weight"][0]
    return found + ([("ce", "model.embed_tokens.weight", np.abs(row).argmax())] if row.any() else [])


def golden(family):
    logits = teacher(family) if family in ROUTED else None
    runs = {}
    for dtype in (torch.float64, torch.float32):
        net = Net(family, dtype)
        seen = net.forward(net.sequences)
        terms = losses(seen, logits)
        values = {name: loss.item() for name, loss in (terms | totals(terms)).items()}
        runs[dtype] = net, seen, terms, values, {name: net.gradients(loss) for name, loss in (terms | totals(terms)).items()}
    exact, single = runs[torch.float64], runs[torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(exact[1].chosen, single[1].chosen))
    net, seen, terms, values, gradients = exact
    if logits is not None:
        as_stock(net, terms)
    float32 = []
    for loss, value in values.items():
        worst, where = distance(gradients[loss], single[4][loss])
        limit = 5e-5 if loss == "kl" else 1e-5  # a KL's gradient is the small difference of two distributions
        assert worst < limit and abs(single[3][loss] / value - 1) < limit, (family, loss, worst, where, single[3][loss] / value - 1)
        float32.append({"loss": loss, "value": abs(single[3][loss] / value - 1), "gradient": worst, "of": where})

    if family in ROUTED:
        save(f"gradients/{family}.ce.safetensors", {name: g.astype(np.float32) for name, g in gradients["ce"].items()})
    sampled = Sampled(family, [gradients[loss] for loss in terms])
    tensors = {"indices": sampled.index()}
    for loss in gradients:
        tensors[f"{loss}.sums"] = sampled.sums(gradients[loss])
        if loss in terms and not (loss == "ce" and family in ROUTED):
            tensors[f"{loss}.entries"] = sampled.entries(gradients[loss], experts=loss in ("ce", "kl"))
    if logits is not None:
        tensors["teacher_logits"] = logits.numpy()
    save(f"gradients/{family}.safetensors", tensors)

    found = {"losses": values, "float32": float32}
    if logits is not None:
        E = net.net.num_experts
        found["tokens_per_expert"] = [torch.bincount(c.reshape(-1), minlength=E).tolist() for c in seen.chosen]
        own = {loss: gradients[loss] for loss in terms}
        found["finite_differences"] = finite_differences(net, logits, own, probes(family, own))
    print(family, values)
    for row in float32:
        print("  float32", row)
    return found | {"parameters": sampled.parameters()}


def counts_right(experts):
    """Whether torch.histc, by which transformers counts, puts each of 0 .. E - 1 into its own bin (on the CPU it divides before it multiplies)."""
    return bool((torch.histc(torch.arange(experts, dtype=torch.float32), bins=experts, min=0, max=experts) == 1).all())


if __name__ == "__main__":
    (HERE / "gradients").mkdir(exist_ok=True)
    assert counts_right(7)
    print("histc miscounts for these numbers of experts, of 1 to 512:", [e for e in range(1, 513) if not counts_right(e)])
    save_json("gradients.json", {family: golden(family) for family in ROUTED + OTHERS})
