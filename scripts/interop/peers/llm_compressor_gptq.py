#!/usr/bin/env python3
"""GPTQ by llm-compressor of the experts of a Mixture-of-Experts checkpoint, calibrated on given windows of token ids. Prints what it cost as JSON.

    python llm_compressor_gptq.py MODEL TOKENS.json OUT [--bits 4] [--group 128] [--routed | --all-experts] [--file-order]

Environment: `scripts/interop/venv llm-compressor`. With --attention released the calibration is what 0.14.0.1 does: its traced graph loses the attention
implementation, so that tokens see later ones (golden/pruning/README.md); causal, the default, mends that, at no cost.
"""
from stopwatch import Stopwatch, arguments, prepare, windows

IGNORE = ["lm_head", "re:.*self_attn.*", "re:.*gate$", "re:.*shared_expert.*", "re:.*mlp.(gate|up|down)_proj$"]


def causal(config):
    """The config that torch.fx rebuilds has no attention implementation of its own."""
    type(config)._attn_implementation = property(lambda _config: "eager", lambda _config, _value: None)


def main():
    parser = arguments(__doc__, damping=0.01)
    parser.add_argument("--attention", choices=["causal", "released"], default="causal")
    options, watch = parser.parse_args(), Stopwatch()
    torch = prepare(options)
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import load_quantizable_moe
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoConfig, AutoModelForCausalLM

    watch.lap("import")
    if options.attention == "causal":
        causal(AutoConfig.from_pretrained(options.model))
    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    watch.lap("load")
    ids = windows(options.tokens)
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(window) for window in ids]})
    group = {"strategy": "channel"} if options.group == -1 else {"strategy": "group", "group_size": options.group}
    scheme = {"targets": ["Linear"], "weights": {"num_bits": options.bits, "type": "int", "symmetric": True} | group}
    recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=IGNORE, dampening_frac=options.damping, actorder=None if options.file_order else "static")
    oneshot(model=model, dataset=data, recipe=[recipe], pipeline="sequential", batch_size=1, shuffle_calibration_samples=False,
            max_seq_length=max(map(len, ids)), num_calibration_samples=len(ids), moe_calibrate_all_experts=options.all_experts)
    watch.lap("quantize")
    model.save_pretrained(options.out)
    watch.lap("save")
    watch.report(options, ["llmcompressor", "compressed-tensors", "transformers", "torch"])


if __name__ == "__main__":
    main()
