"""transformers' own models in float64 throughout, with what their routers and expert modules saw, and with experts masked.

transformers casts to float32 inside (norms, softmax, rotary angles) whatever the weights are. `Exact` turns these casts into
float64 ones while its modules run, and sets chosen router logits to -inf; the modules themselves are used as they are.
"""
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
DOMAINS = ["english", "code", "spanish", "arithmetic"]
WINDOW = 256

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False
torch.set_grad_enabled(False)


class Exact(TorchFunctionMode):
    """float64 where the code asks for float32; `masked` maps id(router weight) to a bool tensor [E] of experts that can't be chosen."""

    def __init__(self):
        super().__init__()
        self.masked = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {key: torch.float64 if a is torch.float32 else a for key, a in kwargs.items()}
        out = func(*args, **kwargs)
        if func is torch.nn.functional.linear and id(args[1]) in self.masked:
            out = out.masked_fill(self.masked[id(args[1])], -torch.inf)
        return out


class Model:
    def __init__(self, folder, dtype=torch.float64):
        self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
        self.net = self.net.eval().to(dtype)
        self.exact = dtype == torch.float64
        self.mode = Exact()
        self.blocks = [layer.mlp for layer in self.net.model.layers]
        experts = self.blocks[0].experts
        self.E, self.I = experts.num_experts, experts.intermediate_dim
        self.k, self.H = self.blocks[0].gate.top_k, experts.hidden_dim

    def mask(self, layer, dropped):
        mask = torch.zeros(self.E, dtype=torch.bool)
        mask[list(dropped)] = True
        self.mode.masked[id(self.blocks[layer].gate.weight)] = mask

    def unmask(self):
        self.mode.masked.clear()

    def _run(self, call):
        if not self.exact:
            assert not self.mode.masked
            return call()
        with self.mode:
            return call()

    def forward(self, ids):
        """Logits [T, vocab] and for each layer what its router and experts saw: x [T,H], z [T,E], g [T,k], chosen [T,k], y [T,H]."""
        seen, hooks = [{} for _ in self.blocks], []
        for entry, block in zip(seen, self.blocks):
            hooks.append(block.gate.register_forward_hook(lambda _m, _i, out, e=entry: e.update(z=out[0])))
            hooks.append(block.experts.register_forward_hook(
                lambda _m, i, out, e=entry: e.update(x=i[0], chosen=i[1], g=i[2].to(i[0].dtype), y=out)))
        logits = self._run(lambda: self.net(torch.tensor([ids]), use_cache=False).logits[0])
        for hook in hooks:
            hook.remove()
        assert torch.isfinite(logits).all()
        return logits, seen

    def block(self, layer, x):
        """The routed output [n, H] of a layer's block, with the masks in force, and its logits and choice."""
        seen = {}
        hook = self.blocks[layer].gate.register_forward_hook(lambda _m, _i, out: seen.update(z=out[0], chosen=out[2]))
        y = self._run(lambda: self.blocks[layer](x[None])[0])
        hook.remove()
        return y, seen

    def weights(self, layer, j):
        """gate, up [I, H] and down [H, I] of an expert."""
        experts = self.blocks[layer].experts
        gate, up = experts.gate_up_proj[j].chunk(2)
        return gate, up, experts.down_proj[j]

    def expert(self, layer, j, x):
        """phi [n, I] and f [n, H], from the module's own weights."""
        gate, up, down = self.weights(layer, j)
        phi = self.blocks[layer].experts.act_fn(x @ gate.T) * (x @ up.T)
        return phi, phi @ down.T


def observe(model, windows):
    """Windows of one domain, one after the other: for each layer x, z, g, chosen, y over all their tokens."""
    runs = [model.forward(ids)[1] for ids in windows]
    return [{key: torch.cat([run[layer][key] for run in runs]) for key in runs[0][layer]} for layer in range(len(model.blocks))]


def calibration():
    return json.loads((HERE / "tokens.json").read_text())


def save(name, tensors):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    for key, value in tensors.items():
        assert np.isfinite(value).all(), key
    save_file(tensors, HERE / name)
    report(name)


def save_json(name, value):
    (HERE / name).write_text(json.dumps(value, allow_nan=False) + "\n")
    report(name)


def report(name):
    data = (HERE / name).read_bytes()
    print(name, len(data), "bytes", hashlib.sha256(data).hexdigest()[:16])


def load(name):
    return load_file(HERE / name)


def keep(saliency, m):
    """The m largest, ascending; of equals the lower index. Also how much nearer the border could come (relative)."""
    saliency = np.asarray(saliency, dtype=np.float64)
    order = sorted(range(len(saliency)), key=lambda j: (-saliency[j], j))
    margin = (saliency[order[m - 1]] - saliency[order[m]]) / np.abs(saliency).max()
    return sorted(order[:m]), margin
