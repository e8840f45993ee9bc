"""Writes a llama checkpoint of random, small bf16 weights without any package, for measuring memory.

usage: random_llama.py OUT_DIR --hidden 512 --ffn 1536 --layers 6"""
import argparse
import json
import os
import pathlib

# Bytes of bf16 ±2^-7…2^-8: the high byte keeps its sign, the low one is free.
SMALL = bytes((byte & 0x80) | 0x3C for byte in range(256))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    for name in ("hidden", "ffn", "layers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--vocab", type=int, default=8192)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    heads = args.hidden // 64
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=args.hidden, intermediate_size=args.ffn,
                  num_hidden_layers=args.layers, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=args.vocab,
                  hidden_act="silu", max_position_embeddings=2048, rms_norm_eps=1e-6, rope_theta=10000.0,
                  tie_word_embeddings=True, torch_dtype="bfloat16")
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    shapes = {"model.embed_tokens.weight": [args.vocab, args.hidden], "model.norm.weight": [args.hidden]}
    for layer in range(args.layers):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = [args.hidden, args.hidden]
        for name in ("gate", "up"):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = [args.ffn, args.hidden]
        shapes[f"{prefix}mlp.down_proj.weight"] = [args.hidden, args.ffn]
        for name in ("input", "post_attention"):
            shapes[f"{prefix}{name}_layernorm.weight"] = [args.hidden]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[end, end + size])
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(args.out / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while end:
            block = bytearray(os.urandom(min(end, 1 << 20)))
            block[1::2] = block[1::2].translate(SMALL)
            file.write(block)
            end -= len(block)


main()
