"""Where the goldens lie, how they are written, and which entries of a large tensor are kept."""
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
ENTRIES, OTHERS = 64, 8  # of a tensor, and how many of those may be zero everywhere


def save(name, tensors):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    for key, value in tensors.items():
        assert np.isfinite(value).all(), key
    save_file(tensors, HERE / name)
    report(name)


def save_json(name, value):
    """Two levels deep a line for each value, and a line for each dict or list in a list: a changed case is a changed line."""

    def inside(value):
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            return "[\n   " + ",\n   ".join(json.dumps(v, allow_nan=False) for v in value) + "]"
        return json.dumps(value, allow_nan=False)

    def member(value):
        if not isinstance(value, dict):
            return inside(value)
        return "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {inside(v)}" for k, v in value.items()) + "}"

    text = "{\n" + ",\n".join(f" {json.dumps(k)}: {member(v)}" for k, v in value.items()) + "\n}\n"
    assert json.loads(text) == json.loads(json.dumps(value))
    (HERE / name).write_text(text)
    report(name)


def report(name):
    data = (HERE / name).read_bytes()
    print(name, len(data), "bytes", hashlib.sha256(data).hexdigest()[:16])


class Sampled:
    """Up to 64 seeded entries of each tensor, the same ones for every set of tensors under these names: most of them where some set isn't zero. Experts come last."""

    def __init__(self, seed, sets):
        self.names = sorted(sets[0], key=lambda name: (".experts." in name, name))
        self.indices = {}
        for name in self.names:
            alive = np.any([s[name].reshape(-1) != 0 for s in sets], axis=0)
            self.indices[name] = self._choose(zlib.crc32(f"{seed}/{name}".encode()), alive)

    @staticmethod
    def _choose(seed, alive):
        if len(alive) <= ENTRIES:
            return np.arange(len(alive))
        rng = np.random.default_rng(seed)
        first = rng.permutation(np.flatnonzero(alive))[: ENTRIES - OTHERS]
        rest = rng.permutation(np.setdiff1d(np.arange(len(alive)), first))[: ENTRIES - len(first)]
        return np.sort(np.concatenate([first, rest]))

    def index(self):
        return np.concatenate([self.indices[name] for name in self.names]).astype(np.int16)

    def entries(self, tensors, experts=True):
        """Of all, or of those before the experts."""
        names = [name for name in self.names if experts or ".experts." not in name]
        return np.concatenate([tensors[name].reshape(-1)[self.indices[name]] for name in names]).astype(np.float32)

    def parameters(self):
        """For the JSON file: how many of `indices` and `entries` are whose, in this order."""
        return [[name, len(self.indices[name])] for name in self.names]

    def sums(self, tensors):
        """[tensors, 3] f64: Frobenius norm, sum, and sum of g_i cos(i) over the flat index i, which notices any permutation."""
        rows = []
        for name in self.names:
            g = tensors[name].astype(np.float64).reshape(-1)
            rows.append([np.sqrt((g * g).sum()), g.sum(), (g * np.cos(np.arange(len(g)))).sum()])
        return np.array(rows)
