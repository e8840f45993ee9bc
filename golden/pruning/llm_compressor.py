#!/usr/bin/env python3
"""llm-compressor's REAPPruningModifier on the built-in MoE and the windows of tokens.json: llm-compressor.json. See README.md.

    python llm_compressor.py                                # all runs, each in a process of its own; writes llm-compressor.json
    python llm_compressor.py run 0.25 float32 all released OUT [MODEL WINDOWS]     # one run; its checkpoint goes to OUT; prints times and peak memory as JSON

`released` attention is what these versions do: torch.fx rebuilds the config inside the traced graph from its dataclass fields, which have no
`_attn_implementation`; `create_causal_mask` then gives None, and eager attention without a mask looks at later tokens too.
`causal` gives the rebuilt config the "eager" that the pipeline asks for.
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "models" / "moe"
PACKAGES = ["llmcompressor", "compressed-tensors", "transformers", "torch", "accelerate", "datasets", "torchvision", "safetensors", "numpy"]


def run(sparsity, dtype, experts, attention, out, model_dir=FOLDER, windows=None):
    start = time.perf_counter()
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import load_quantizable_moe
    from llmcompressor.modifiers.pruning.reap import REAPPruningModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if attention == "causal":
        from transformers import Qwen3MoeConfig

        Qwen3MoeConfig._attn_implementation = property(lambda _config: "eager", lambda _config, _value: None)
    imported = time.perf_counter()
    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    loaded = time.perf_counter()
    if windows:
        windows = json.loads(Path(windows).read_text())
    else:
        windows = [ids for domain in json.loads((HERE / "tokens.json").read_text()).values() for ids in domain]
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]})
    report = Path(out) / "retained.json"
    oneshot(model=model, processor=AutoTokenizer.from_pretrained(model_dir), dataset=data, pipeline="sequential", batch_size=1,
            shuffle_calibration_samples=False, max_seq_length=len(windows[0]), num_calibration_samples=len(windows),
            moe_calibrate_all_experts=experts == "all", recipe=[REAPPruningModifier(sparsity=sparsity, report_path=str(report))])
    pruned = time.perf_counter()
    model.save_pretrained(out)
    saved = time.perf_counter()
    retained = json.loads(report.read_text())
    layers = [retained[f"model.layers.{layer}.mlp"] for layer in range(len(retained))]
    print(json.dumps({
        "kept": layers,
        "seconds": {"import": imported - start, "load": loaded - imported, "calibrate and prune": pruned - loaded, "save": saved - pruned},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }))


def measure(sparsity, dtype, experts, attention, m):
    """One run in a process of its own: its kept sets; prints what it cost and what it wrote."""
    with tempfile.TemporaryDirectory() as out:
        line = subprocess.run([sys.executable, __file__, "run", str(sparsity), dtype, experts, attention, out], check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout.splitlines()[-1]
        config = json.loads((Path(out) / "config.json").read_text())
        size = sum(path.stat().st_size for path in Path(out).glob("*.safetensors"))
    found = json.loads(line)
    assert config["num_experts"] == m and all(len(layer) == m for layer in found["kept"])
    print(f"{attention} attention, {dtype}, sparsity {sparsity}, {experts} experts run:",
          {name: round(value, 2) for name, value in found["seconds"].items()}, f"s, peak {found['peak_bytes'] / 2**20:.0f} MiB,",
          f"{size / 1e6:.2f} MB written; config: num_experts {config['num_experts']}, num_local_experts {config.get('num_local_experts')}")
    return found["kept"]


def main():
    from importlib.metadata import version

    peers = {name: json.loads((HERE / f"{name}.json").read_text())["kept"] for name in ("sequential", "saliencies")}
    peers["saliencies"] = peers["saliencies"]["reap"]
    result = {"versions": {name: version(name) for name in PACKAGES}, "runs": []}
    for attention in ("released", "causal"):
        for dtype in ("float32", "bfloat16"):
            for sparsity, m in ((0.25, "18"), (0.5, "12")):
                kept = [measure(sparsity, dtype, experts, attention, int(m)) for experts in ("all", "routed")]
                assert kept[0] == kept[1], "running idle experts changed the choice"
                for name, layers in peers.items():
                    print(f"    of {m} experts a layer, in {name}.json too:", [len(set(a) & set(b)) for a, b in zip(kept[0], layers[m])])
                if (attention, dtype) == ("causal", "float32"):
                    assert kept[0] == peers["sequential"][m], "two implementations differ"
                result["runs"].append({"attention": attention, "dtype": dtype, "sparsity": sparsity, "kept": kept[0]})
    (HERE / "llm-compressor.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(float(sys.argv[2]), *sys.argv[3:])
    else:
        main()
