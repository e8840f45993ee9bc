"""Where the goldens lie, and how they are written."""
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent


def save(name, tensors):
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    for key, value in tensors.items():
        assert np.isfinite(value).all(), key
    save_file(tensors, HERE / name)
    report(name)


def save_json(name, value):
    """One line for each element of a list at the top, so that a changed case is a changed line."""
    lines = json.dumps(value, allow_nan=False).replace('{"name": ', '\n{"name": ')
    (HERE / name).write_text(lines + "\n")
    report(name)


def report(name):
    data = (HERE / name).read_bytes()
    print(name, len(data), "bytes", hashlib.sha256(data).hexdigest()[:16])
