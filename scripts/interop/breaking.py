"""Breaking good outputs, so that checks of stock loaders can be seen to find it."""
import json
import pathlib
import shutil


def broken_copy(case, spoil, out, reason):
    """`case` with a copy of its model whose tensors `spoil` has changed, and what a check must say of it."""
    source = pathlib.Path(case["model"])
    to = out / f"{source.parent.name}-{source.name}-{spoil.__name__}"
    shutil.copytree(source, to)
    rewrite(to / "model.safetensors", spoil)
    return case | {"model": str(to), "options": "broken", "reason": reason}


def rewrite(file, change):
    """Changes a safetensors file's tensors: {name: (dtype, shape, bytes)}."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    span = lambda tensor: slice(*(start + offset for offset in tensor["data_offsets"]))
    tensors = {name: (tensor["dtype"], tensor["shape"], data[span(tensor)]) for name, tensor in header.items()}
    change(tensors)
    header, end = {"__metadata__": metadata}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[end, end := end + len(content)])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values()))
