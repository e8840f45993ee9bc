"""A dense model and the MoE it was upcycled to answer alike: loading, logits, text.

usage: prompts.py DENSE MOE      in a process of its own, which has never seen the weights"""
import sys

import torch
from transformers import AutoTokenizer

from loading import TOLERANCE, difference, load, logits, ours, stepped, versions

QUESTION, ANSWER, NEW_TOKENS = "The capital of France is", "Paris", 12
PROMPTS = [
    QUESTION,
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\nPrime numbers are",
]


def answer(model, tokenizer):
    prompt = tokenizer(QUESTION, return_tensors="pt")
    return tokenizer.decode(model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0])


def main(dense_path, moe_path):
    print(versions())
    wrong = []

    def compare(what, found, wanted, limit=TOLERANCE):
        largest, relative = difference(found, wanted)
        print(f"{what:58} max |Δ| {largest:.3e}, relative {relative:.3e} {'' if relative <= limit else '  <-- WRONG'}")
        if relative > limit:
            wrong.append(what)

    dense, moe = load(dense_path), load(moe_path)
    assert type(moe).__name__ == "MixtralForCausalLM", type(moe)
    print(f"{type(dense).__name__} -> {type(moe).__name__}: nothing missing, unexpected or mismatched")
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (dense_path, moe_path)]
    ids = tokenizers[1](PROMPTS)["input_ids"]
    assert ids == tokenizers[0](PROMPTS)["input_ids"], "the two tokenizers differ"

    wanted = logits(dense, ids)
    compare("MoE and dense model, both in transformers", logits(moe, ids), wanted)
    compare("moe-convert logits of the dense model, and transformers", ours(dense_path, ids), wanted)
    compare("moe-convert logits of the MoE, and transformers", ours(moe_path, ids), logits(moe, ids))
    compare("MoE through the cache, token by token", stepped(moe, ids[1]), wanted[len(ids[0]):])

    texts = [answer(dense, tokenizers[0]), answer(moe, tokenizers[1])]
    print(f"dense: {texts[0]!r}\nMoE:   {texts[1]!r}")
    assert texts[0] == texts[1] and ANSWER in texts[1], "the texts differ or lack the answer"

    # As users load it: stock attention and experts, the stored dtype.
    del moe
    from transformers import AutoModelForCausalLM
    stock = AutoModelForCausalLM.from_pretrained(moe_path, dtype="auto")
    assert stock.dtype == torch.bfloat16, stock.dtype
    text = answer(stock, tokenizers[1])
    print(f"bf16:  {text!r}")
    assert ANSWER in text, "in bfloat16 the answer is lost"
    assert not wrong, f"differ: {'; '.join(wrong)}"


main(*sys.argv[1:])
