#!/usr/bin/env python3
"""Make the built-in models: a tokenizer, a dense Llama and a Qwen3-MoE.

To reproduce (CPU, versions in requirements.txt; first run ../text/make_text.py):

    python train.py tokenizer --text /tmp/train/text
    python train.py dense     --text /tmp/train/text --steps STEPS
    python train.py moe       --text /tmp/train/text --steps STEPS
    python evaluate.py        # reference.json, logits

README.md has the steps used, times and losses. Everything is seeded; weights agree
bit for bit only on the same CPU, thread count and PyTorch build.
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

HERE = Path(__file__).parent
MIX = {"english": 0.45, "code": 0.30, "spanish": 0.22, "arithmetic": 0.03}  # share of the training tokens
VOCAB, END, WINDOW = 2048, "<|endoftext|>", 256


def train_tokenizer(text):
    """Byte-level BPE, one token a digit, learnt on a sample in the mix's proportions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sample = [(text / f"{label}.train.txt").read_text(encoding="utf-8")[: int(6_000_000 * share)] for label, share in MIX.items()]
    tokenizer.train_from_iterator((line for part in sample for line in part.splitlines(keepends=True)), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=1024, clean_up_tokenization_spaces=False
    )
    wrapped.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # adds no tokens
    for name in ("dense", "moe"):
        wrapped.save_pretrained(HERE / name)
        path = HERE / name / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 knows too
        path.write_text(json.dumps(config, indent=2) + "\n")


COMMON = dict(
    vocab_size=VOCAB, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, tie_word_embeddings=True, max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip


def build(name):
    if name == "dense":
        return LlamaForCausalLM(LlamaConfig(**COMMON))
    config = Qwen3MoeConfig(**COMMON, num_experts=24, num_experts_per_tok=4, moe_intermediate_size=128, norm_topk_prob=True)
    return Qwen3MoeForCausalLM(config)


def fast_experts(self, hidden, chosen, weights):
    """What Qwen3MoeExperts.forward computes, with one gather, one scatter and no full-size gradient per expert."""
    order = chosen.reshape(-1).argsort(stable=True)
    counts = chosen.reshape(-1).bincount(minlength=self.num_experts).tolist()
    token = order // chosen.shape[1]
    out = []
    for x, up, down in zip(hidden.index_select(0, token).split(counts), self.gate_up_proj.unbind(0), self.down_proj.unbind(0)):
        gate, value = F.linear(x, up).chunk(2, dim=-1)
        out.append(F.linear(F.silu(gate) * value, down))
    out = torch.cat(out) * weights.reshape(-1).index_select(0, order)[:, None]
    return torch.zeros_like(hidden).index_add(0, token, out)


def balance_loss(router_logits, top_k):
    """Switch-style, per layer: experts x sum(share of selections x mean probability); 1 when even."""
    losses = []
    for logits in router_logits:
        probs = logits.softmax(-1)
        share = F.one_hot(probs.topk(top_k).indices, probs.shape[-1]).float().mean((0, 1))
        losses.append(probs.shape[-1] * (share * probs.mean(0)).sum())
    return torch.stack(losses).mean()


def batches(ids, size, steps, seed):
    """Random windows; each is of one domain, some start with the end-of-text token."""
    rng = torch.Generator().manual_seed(seed)
    labels, shares = list(MIX), torch.tensor(list(MIX.values()))
    for _ in range(steps):
        rows = []
        for domain in shares.multinomial(size, replacement=True, generator=rng).tolist():
            source = ids[labels[domain]]
            start = int(torch.randint(len(source) - WINDOW, (1,), generator=rng))
            row = source[start : start + WINDOW].clone()
            if torch.rand(1, generator=rng) < 0.125:
                row[0] = 0
            rows.append(row)
        yield torch.stack(rows)


def train(name, args):
    torch.backends.mkldnn.enabled = False  # oneDNN would compile kernels for every count of tokens per expert
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(HERE / name)
    ids = {}
    for label in MIX:
        text = (args.text / f"{label}.train.txt").read_text(encoding="utf-8")
        ids[label] = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        print(f"{label}: {len(ids[label]):,} training tokens", flush=True)
    model = build(name)
    original = Qwen3MoeExperts.forward
    Qwen3MoeExperts.forward = fast_experts
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    warmup, began = 100, time.time()
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for step, batch in enumerate(batches(ids, args.batch, args.steps, args.seed)):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min((step + 1) / warmup, 0.03 + 0.97 * cosine)
        outputs = model(batch, use_cache=False, **({"output_router_logits": True} if name == "moe" else {}))
        loss = F.cross_entropy(outputs.logits[:, :-1].reshape(-1, VOCAB), batch[:, 1:].reshape(-1))
        balance = balance_loss(outputs.router_logits, 4) if name == "moe" else torch.zeros(())
        (loss + args.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}")
        if step % 50 == 0 or step + 1 == args.steps:
            print(f"step {step} loss {loss.item():.3f} balance {balance.item():.3f} {time.time() - began:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save(model, args.out or HERE / name)
    Qwen3MoeExperts.forward = original


def save(model, folder):
    """bf16 weights; config.json carries the older names of its keys as well."""
    rounded = build(folder.name)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = 10000.0
    if "num_local_experts" in config:
        config["num_experts"] = config["num_local_experts"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", choices=["tokenizer", "dense", "moe"])
    args.add_argument("--text", type=Path, required=True, help="the folder make_text.py wrote the training text to")
    args.add_argument("--steps", type=int, default=3000)
    args.add_argument("--batch", type=int, default=8, help="windows of 256 tokens a step")
    args.add_argument("--lr", type=float, default=3e-3)
    args.add_argument("--balance", type=float, default=0.003, help="weight of the load-balancing loss")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--out", type=Path, help="another folder, still named dense or moe")
    args = args.parse_args()
    train_tokenizer(args.text) if args.what == "tokenizer" else train(args.what, args)


if __name__ == "__main__":
    main()
