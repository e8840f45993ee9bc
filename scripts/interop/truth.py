"""What an output must be where its options change the function: made of the receipt's options and the dense models alone.

For check.py, in transformers 5. Weights are compared as the dense models store them, so noise is left out."""
import json
import math
import pathlib

import tokenizers
import torch
from loading import load, logits


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Case:
    """An output as loaded, and what it was made of."""

    def __init__(self, case, receipt, moe):
        self.source, self.moe, self.options = pathlib.Path(case["source"]), moe, receipt["options"]
        config = json.loads((self.source / "config.json").read_text())
        self.stored = DTYPES[config.get("dtype") or config.get("torch_dtype") or "float32"]
        self.normalized = getattr(moe.config, "norm_topk_prob", True)
        # A router that must be almost zero ties now and then in a model this narrow; what is exact must not.
        self.allowed_splits = 0 if receipt["identity"]["kind"] == "exact" else 4

    def check(self, compare, ids):
        """Compares weights, router rows and logits, as far as the options tell what they are."""
        plain = self.init == "copy" and self.scale_placement == "exact" and not self.prompts
        if plain and not self.expert_model:
            return
        self.base = load(self.source)
        self.lent = [load(path) for path in self.expert_model]
        self.layers = [at for at, layer in enumerate(self.moe.model.layers) if hasattr(layer.mlp, "experts")]
        weights(self)
        routers(self)
        if expected := mixture(self):
            compare("mixture", logits(self.moe, ids), logits(expected, ids))

    def __getattr__(self, name):
        return self.options[name.replace("_", "-")]

    def rounded(self, weights):
        return weights.to(self.stored).float()

    def shared_fraction_of(self, mlp):
        return self.shared_fraction if hasattr(mlp, "shared_expert") else 0.0


def mixture(case):
    """The dense model with a mixture of whole networks in each layer, where several models lend theirs; None elsewhere."""
    plain = case.init == "copy" and case.scale_placement == "exact" and case.noise_std == 0 and case.normalized
    if not case.lent or not plain:
        return None
    if case.rest == "average":
        states = [model.state_dict() for model in case.lent]
        case.base.load_state_dict({k: case.rounded(torch.stack([s[k].double() for s in states]).mean(0)) for k in states[0]})
    for at in case.layers:
        networks, mlp = [model.model.layers[at].mlp for model in case.lent], case.moe.model.layers[at].mlp
        rows, active = groups(case, mlp)[:, 0], case.top_k // case.granularity
        own = case.base.model.layers[at].mlp
        case.base.model.layers[at].mlp = Mixture(networks, own, rows, active, case.shared_fraction_of(mlp))
    return case.base


class Mixture(torch.nn.Module):
    """By definition: every network runs, and counts by its router row. The shared expert is the base's, or the mean."""

    def __init__(self, networks, own, rows, active, shared):
        super().__init__()
        self.networks, self.own, self.rows, self.active, self.shared = networks, own, rows, active, shared

    def forward(self, x):
        values, picked = (x @ self.rows.T).softmax(-1).topk(self.active, -1)
        gates = torch.zeros(*x.shape[:-1], len(self.rows)).scatter(-1, picked, values / values.sum(-1, keepdim=True))
        outputs = [self.networks[row % len(self.networks)](x) for row in range(len(self.rows))]
        routed = sum(gates[..., row, None] * output for row, output in enumerate(outputs))
        return self.shared * self.own(x) + (1 - self.shared) * routed


def groups(case, mlp):
    """[groups, shards, hidden]: a router's rows; those of a group are one."""
    rows = mlp.gate.weight.detach().unflatten(0, (-1, case.granularity))
    assert (rows == rows[:, :1]).all(), "shards of a group have other router rows"
    return rows


def weights(case):
    """Raises if an expert's neurons are not those of the dense network that they should be."""
    nvidia = case.scale_placement == "nvidia"
    if case.noise_std > 0 or (case.init == "copy" and not nvidia):
        return
    for at in case.layers:
        mlp = case.moe.model.layers[at].mlp
        networks = [neurons(model.model.layers[at].mlp) for model in case.lent or [case.base]]
        experts = [torch.cat([*gate_up.chunk(2), down.T], 1) for gate_up, down in zip(mlp.experts.gate_up_proj, mlp.experts.down_proj)]
        if case.init == "partition":
            partition(case, networks[0], experts, mlp)
            continue
        gates = 1 if case.normalized else case.top_k / case.experts
        scale, size = case.granularity / gates, len(networks[0]) // case.granularity
        inner, outer = (scale ** (1 / 3),) * 2 if nvidia else (1, scale)
        outer *= 1 - case.shared_fraction_of(mlp)
        for number, expert in enumerate(experts):
            shard = networks[number // case.granularity % len(networks)].split(size)[number % case.granularity]
            hidden = shard.shape[1] // 3
            factors = torch.tensor([inner, inner, outer]).repeat_interleave(hidden)
            near = ((expert - shard * factors).abs() <= torch.finfo(case.stored).eps * (shard * factors).abs()).unflatten(1, (3, hidden))
            kept = near.all(-1)
            assert (kept == kept[:, :1]).all(), f"layer {at}, expert {number}: a neuron differs in some projections only"
            drawn = round(case.drop_fraction * size) if case.init == "drop" else 0
            found = int((~kept[:, 0]).sum())
            assert found == drawn, f"layer {at}, expert {number}: {found} neurons of {size} differ, not {drawn}"


def partition(case, network, experts, mlp):
    """Every neuron of the dense network in one expert, or the shared one."""
    scale = case.top_k if case.normalized else case.experts
    sets = [(expert, scale) for expert in experts]
    if hasattr(mlp, "shared_expert"):
        sets.append((neurons(mlp.shared_expert), 2))
        assert case.shared_width in (None, len(sets[-1][0])), "the shared expert has another width"
    inner = network.shape[1] // 3 * 2
    where = {tuple(neuron[:inner].tolist()): index for index, neuron in enumerate(network)}
    seen = []
    for expert, scale in sets:
        indices = [where.get(tuple(neuron[:inner].tolist())) for neuron in expert]
        assert None not in indices, "a neuron is none of the dense network's"
        assert torch.equal(expert[:, inner:], case.rounded(network[indices][:, inner:] * scale)), "a down projection is another"
        seen += indices
    assert sorted(seen) == list(range(len(network))), "a neuron is lost or stands in two experts"


def neurons(mlp):
    """[width, 3 · hidden]: gate row, up row and down column of each."""
    return torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T], 1).detach()


def routers(case):
    """Raises if router rows don't point where prompts do, or have another scale."""
    if not case.prompts:
        return
    sets, (bos, encode) = json.loads(pathlib.Path(case.prompts).read_text()), encoder(case.source)
    ids = [(set_, sign, bos + encode(text)) for set_, entry in enumerate(sets)
           for sign, kind in ((1, "positive"), (-1, "negative")) for text in entry.get(kind, [])]
    model, seen = load(case.source), {at: [] for at in case.layers}
    for at in case.layers:
        model.model.layers[at].post_attention_layernorm.register_forward_hook(lambda _, __, x, at=at: seen[at].append(x[0]))
    with torch.no_grad():
        for _, _, prompt in ids:
            model(torch.tensor([prompt]))
        embedded = [model.model.embed_tokens(torch.tensor(prompt)) for _, _, prompt in ids]
    for at in case.layers:
        found = groups(case, case.moe.model.layers[at].mlp)[:, 0]
        words = [x[len(bos):] for x in seen[at]]  # what BOS becomes says nothing of a prompt
        states = embedded if case.router == "cheap-embed" else words if case.router_entropy == 0 else own_directions(words)
        rows = torch.stack([row(case, [(sign, x) for (of, sign, _), x in zip(ids, states) if of == number]) for number in range(len(sets))])
        lost = (1 - torch.cosine_similarity(found, rows)).max().item()
        assert lost < 1e-3, f"layer {at}: router rows differ from what the prompts give, 1 − cosine is {lost:.1e}"
        if case.router_entropy > 0:
            entropy = torch.distributions.Categorical(logits=torch.cat(words) @ found.T).entropy().mean().item()
            share = entropy / math.log(len(found))
            assert abs(share - case.router_entropy) < 0.02, f"layer {at}: entropy {share:.3f} of the maximum"
        elif case.router == "prompts":
            assert torch.allclose(found, rows, rtol=1e-2, atol=1e-3), f"layer {at}: rows of another length"


def encoder(source):
    """The ids of BOS, if there is one, and what encodes a text without special tokens."""
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    config = source / "tokenizer_config.json"
    token = json.loads(config.read_text()).get("bos_token") if config.exists() else None
    token = token["content"] if isinstance(token, dict) else token
    return [tokenizer.token_to_id(token)] if token else [], lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def own_directions(states):
    """Without the mean of all, and without any component along it."""
    mean = torch.cat(states).mean(0)
    unit = mean / mean.norm()
    return [(x - mean) - ((x - mean) @ unit)[:, None] * unit for x in states]


def row(case, states):
    """A router's row: what is common to the states of positive prompts less what is common to those of negative ones."""
    total = 0
    for sign in (1, -1):
        of = [x for s, x in states if s == sign]
        if of and case.router == "cheap-embed":  # mergekit's, but for its last normalisation
            total = total + sign * torch.nn.functional.normalize(torch.cat(of).sum(0), dim=0)
        elif of:
            total = total + sign * torch.stack([x.mean(0) for x in of]).mean(0)
    return total
