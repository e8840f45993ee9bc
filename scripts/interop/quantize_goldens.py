"""Quantizes MoE goldens and the built-in MoE, for quantized.py.

usage: quantize_goldens.py OUT_DIR      from the root of the repository; writes OUT_DIR/quantized.json

Goldens of every MoE family in every scheme, rounded to nearest (no group divides their widths), and the built-in model in every
format, with groups and by GPTQ."""
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

FAMILIES = pathlib.Path("golden/families")
BINARY = os.environ.get("MOE_CONVERT", "target/release/moe-convert")
INTEGERS = [f"--scheme {name} --group-size -1" for name in ("w8a16", "w4a16", "w3a16", "w2a16", "w4a16 --asymmetric")]
FLOATS = ["--scheme fp8", "--scheme fp8-block", "--scheme fp8-block --format compressed-tensors"]
SHARED = "--scheme w4a16 --group-size -1 --include shared"
ATTENTION = ["--scheme w8a16 --group-size -1 --include attention", "--scheme fp8-block --include attention"]
# Which schemes, by golden: each family in all of them, each dtype in some. The first is what a family's hub models look like.
GOLDENS = {
    "qwen3_moe/base": INTEGERS + FLOATS + ATTENTION,
    "qwen3_moe/num_experts": INTEGERS + FLOATS,  # float32
    "mixtral/sliding": INTEGERS + FLOATS,
    "mixtral/old": INTEGERS[:2],  # float32
    "qwen2_moe/base": INTEGERS + FLOATS + [SHARED],
    "qwen2_moe/no_bias": [f"{SHARED},attention"],  # float32
    "qwen2_moe/norm": INTEGERS[1:2],  # float16
    "olmoe/base": INTEGERS + FLOATS + ATTENTION[:1],
    "olmoe/clip": INTEGERS[1:2],  # float32
    "deepseek_v2/base": INTEGERS + FLOATS + [SHARED] + ATTENTION[:1],
    "deepseek_v2/greedy": INTEGERS[1:2],  # float16
    "deepseek_v3/base": INTEGERS + FLOATS + [SHARED] + ATTENTION,
    "glm4_moe/base": INTEGERS + FLOATS + [SHARED],
    "glm4_moe/bias": INTEGERS[1:2],  # float16
}
CALIBRATED = "--per-expert --data golden/text/english.calibration.txt --data-tokens 1024"
# Widths by layer and by projection, chosen on a few tokens; by names of modules that differ between families.
MIXED = "--group-size -1 --solver rtn --data {ids} --target-bits"
WIDTHS = {
    "qwen3_moe/base": [f"{MIXED} 7.5"],
    "mixtral/sliding": [f"{MIXED} 8", f"{MIXED} 5 --profile free"],
    "deepseek_v3/base": [f"{MIXED} 5.5 --profile free --include shared"],
}
BUILT_IN = [
    f"--target-bits 5.5 --group-size 32 {CALIBRATED}",
    f"--target-bits 4.2 --profile free --group-size 64 {CALIBRATED}",
    f"--target-bits 4.5 --profile free --group-size 32 --solver rtn {CALIBRATED.removeprefix('--per-expert ')}",
    f"--scheme w4a16 {CALIBRATED}",
    f"--scheme w4a16 --group-size 64 --include attention {CALIBRATED}",
    f"--scheme w3a16 --group-size 64 --act-order {CALIBRATED}",
    f"--scheme w2a16 --group-size 32 --clip-search {CALIBRATED}",
    "--scheme w8a16 --group-size 64 --solver rtn",
    "--scheme w4a16 --group-size 32 --asymmetric --solver rtn",
    "--scheme w8a16 --asymmetric --solver rtn",
    "--scheme fp8 --solver rtn",
    "--scheme fp8-block --solver rtn",
    "--scheme fp8-block --format compressed-tensors --solver rtn",
    f"--scheme w4a16 --format gptq --group-size 64 {CALIBRATED}",
    "--scheme w8a16 --format gptq --group-size -1 --solver rtn",
    "--scheme w3a16 --format gptq --group-size 32 --solver rtn",
    "--scheme w4a16 --format gptq --group-size 128 --asymmetric --solver rtn",
]


def quantize(source, tokens, out, options):
    run = subprocess.run([BINARY, "quantize", source, "-o", out, *options.split(), "--quiet"], capture_output=True, text=True)
    assert run.returncode == 0, f"{source} {options}\n{run.stderr}"
    return dict(model=str(out), source=str(source), tokens=str(tokens), scheme=options, options=options)


def main():
    out = pathlib.Path(sys.argv[1]) / "quantized"
    out.mkdir(parents=True)
    runs = []
    for name, schemes in GOLDENS.items():
        source = FAMILIES / name
        for index, options in enumerate(schemes):
            where = out / f"{name.replace('/', '-')}-{index}"
            runs.append((source / "model", source / "tokens.json", where, f"{options} --solver rtn"))
    for name, schemes in WIDTHS.items():
        source, ids = FAMILIES / name, out / f"{name.replace('/', '-')}.jsonl"
        sequences = json.loads((source / "tokens.json").read_text())
        ids.write_text("".join(json.dumps({"input_ids": sequence}) + "\n" for sequence in sequences))
        for index, options in enumerate(schemes):
            where = out / f"{name.replace('/', '-')}-widths-{index}"
            runs.append((source / "model", source / "tokens.json", where, options.format(ids=ids)))
    for index, options in enumerate(BUILT_IN):
        runs.append(("golden/models/moe", "golden/models/moe.tokens.json", out / f"built-in-{index}", options))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # mostly, they wait for the disk
        cases = list(pool.map(lambda run: quantize(*run), runs))
    (out.parent / "quantized.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} quantized results of {len(GOLDENS)} goldens and the built-in MoE")


main()
