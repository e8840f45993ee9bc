"""A family golden as transformers runs it, with gradients, its parameters under their names on disk, and the losses."""
import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func  # noqa: E402

from files import GOLDEN  # noqa: E402

sys.path.insert(0, str(GOLDEN / "pruning"))
from model import Exact  # noqa: E402

torch.set_grad_enabled(True)
torch.use_deterministic_algorithms(True)
PARTS = {"mixtral": ("w1", "w3", "w2")}


class Net:
    """weights in `dtype`; in float64 transformers' own casts to float32 become float64 ones."""

    def __init__(self, family, dtype):
        folder = GOLDEN / "families" / family / "base"
        self.family, self.dtype = family, dtype
        self.sequences = json.loads((folder / "tokens.json").read_text())
        self.net = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
        self.net = self.net.eval().to(dtype)
        # Otherwise torch leaves the row of pad_token_id out of the embedding's gradient, though it is a token like others here.
        self.net.get_input_embeddings().padding_idx = None
        self.routers = [m for m in self.net.modules() if type(m).__name__.lower().endswith("topkrouter")]
        self._same_as(load_file(folder / "model" / "model.safetensors"))

    def _same_as(self, stored):
        """The split into the names on disk gives the file back, bit for bit."""
        stored = {name: value for name, value in stored.items() if not name.endswith("e_score_correction_bias")}
        named = self.on_disk({name: value for name, value in self.net.named_parameters()})
        assert named.keys() == stored.keys(), named.keys() ^ stored.keys()
        for name, value in stored.items():
            assert torch.equal(named[name], value.to(self.dtype)), name

    def on_disk(self, tensors):
        """Tensors by parameter, under the names and in the shapes of the checkpoint."""
        gate, up, down = PARTS.get(self.family, ("gate_proj", "up_proj", "down_proj"))
        found = {}
        for name, value in tensors.items():
            value = value.detach()
            if self.family == "mixtral":
                name = name.replace(".mlp.", ".block_sparse_moe.")
            layer, fused, what = name.partition(".experts.")
            for e in range(len(value) if fused else 0):
                if what == "gate_up_proj":  # [E, 2I, H]
                    found[f"{layer}.experts.{e}.{gate}.weight"], found[f"{layer}.experts.{e}.{up}.weight"] = value[e].chunk(2)
                else:
                    assert what == "down_proj", name
                    found[f"{layer}.experts.{e}.{down}.weight"] = value[e]
            if not fused:
                found[name] = value
        return found

    def run(self, call):
        if self.dtype != torch.float64:
            return call()
        with Exact():
            return call()

    def forward(self, sequences):
        """Each sequence by itself, from position 0."""
        return Seen(self, sequences)

    def gradients(self, loss):
        """Of every parameter, under its name on disk, as numpy."""
        names, parameters = zip(*self.net.named_parameters())
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found = {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found)}
        return {name: g.numpy() for name, g in self.on_disk(found).items()}


class Seen:
    """logits [n, vocab] of all tokens in order; router_logits, a tensor [n, E] for each MoE layer; chosen, [n, k] likewise."""

    def __init__(self, net, sequences):
        self.net, self.sequences = net, sequences
        runs, hooks = [[] for _ in net.routers], []
        for router, seen in zip(net.routers, runs):
            hooks.append(router.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append((out[0], out[2]))))
        self.logits = torch.cat([net.run(lambda: net.net(torch.tensor([ids]), use_cache=False).logits[0]) for ids in sequences])
        for hook in hooks:
            hook.remove()
        self.router_logits = tuple(torch.cat([z for z, _ in seen]) for seen in runs)
        self.chosen = [torch.cat([chosen for _, chosen in seen]) for seen in runs]

    def _balance(self, layers):
        modeling = sys.modules[type(self.net.net).__module__]
        return self.net.run(lambda: modeling.load_balancing_loss_func(layers, self.net.net.num_experts, self.net.net.num_experts_per_tok))

    def ce(self):
        """Mean over all tokens that have a predecessor of -log p(token)."""
        sums, first = [], 0
        for ids in self.sequences:
            logits = self.logits[first : first + len(ids) - 1]
            sums.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], dtype=torch.long), reduction="sum"))
            first += len(ids)
        return sum(sums) / sum(len(ids) - 1 for ids in self.sequences)

    def balance(self):
        """transformers' own, over the router logits of all layers."""
        return self._balance(self.router_logits)

    def balance_by_layer(self):
        return sum(self._balance((z,)) for z in self.router_logits) / len(self.router_logits)

    def z(self):
        return sum(router_z_loss_func(z[None]) for z in self.router_logits) / len(self.router_logits)

    def kl(self, teacher):
        """Mean over all tokens of KL(teacher || student), from the teacher's logits [n, vocab]."""
        p, q = teacher.to(self.net.dtype).log_softmax(-1), self.logits.log_softmax(-1)
        loss = (p.exp() * (p - q)).sum(-1).mean()
        theirs = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
        assert torch.isclose(loss, theirs, rtol=1e-5), (loss, theirs)
        return loss
