"""Breaking good outputs, so that a check of stock loaders can be seen to find it."""
import json
import pathlib
import shutil
import subprocess
import sys


def broken_copy(case, spoil, out, reason):
    """`case` with a copy of its model whose tensors `spoil` has changed, and what the check must say of it."""
    source = pathlib.Path(case["model"])
    to = out / f"{source.parent.name}-{source.name}-{spoil.__name__}"
    shutil.copytree(source, to)
    rewrite(to / "model.safetensors", spoil)
    return case | {"model": str(to), "options": "broken", "reason": reason}


def must_find(check, broken, out):
    """Runs the script `check` on broken copies; ends the program unless it calls every one WRONG, for its reason."""
    (out / "cases.json").write_text(json.dumps(broken))
    command = [sys.executable, pathlib.Path(__file__).parent / check, "--cases", out / "cases.json"]
    run = subprocess.run(command, capture_output=True, text=True)
    reports = run.stdout.split("WRONG  ")[1:]
    missed = [case["model"] for case in broken if not any(found(case, report) for report in reports)]
    if run.returncode != 1 or missed:
        raise SystemExit(f"{run.stdout}{run.stderr}{check} should have found what is broken: {' '.join(missed)}")
    print(f"{len(broken)} broken copies found to be WRONG")


def found(case, report):
    return report.startswith(case["model"] + " ") and case["reason"] in report


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
