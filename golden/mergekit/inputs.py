"""The dense models that the cases start from: tiny, and random in every tensor."""
import math
import shutil
import zlib

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            bos_token_id=0, eos_token_id=0, pad_token_id=None)
WINDOW = 6  # of the mistral model
LLAMA = dict(TINY, vocab_size=2048, tie_word_embeddings=True)  # the vocabulary of golden/models/dense
OTHERS = dict(TINY, vocab_size=64, tie_word_embeddings=False)  # never given text

MODELS = {
    **{name: ("llama", LLAMA) for name in ("a", "b", "c", "d")},
    "mistral": ("mistral", {**OTHERS, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", OTHERS),
    "qwen3": ("qwen3", {**OTHERS, "head_dim": 16}),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make(name, directory, tokenizer_from):
    family, settings = MODELS[name]
    config = AutoConfig.for_model(family, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(f"mergekit/{name}".encode()))
    for parameter, p in model.named_parameters():
        if "norm" in parameter:
            value = 1 + 0.6 * (torch.rand(p.shape, generator=generator) - 0.5)
        elif parameter.endswith("bias"):
            value = 0.3 * torch.randn(p.shape, generator=generator)
        else:
            value = 1.5 * torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1])
        p.data.copy_(value)
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    for tensor in load_file(directory / "model.safetensors").values():
        assert tensor.dtype == torch.bfloat16 and tensor.float().std() > 0.05
    if family == "llama":
        for file in TOKENIZER:
            shutil.copy(tokenizer_from / file, directory)
