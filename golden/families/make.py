#!/usr/bin/env python3
"""Forward-parity goldens of the model families, made by transformers.

    python3.11 -m venv /tmp/goldens && /tmp/goldens/bin/pip install -r requirements.txt
    /tmp/goldens/bin/python make.py                      # all cases, under two minutes on one CPU core
    /tmp/goldens/bin/python make.py llama mixtral/fused  # some families or cases (cases.md is left alone)

Each case becomes <model_type>/<case>/ with
    model/                  a checkpoint as it would lie on disk (config.json, safetensors, perhaps an index)
    tokens.json             [[ids], [ids], ...]: every sequence is run on its own, without padding
    reference.safetensors   logits [all tokens in order, vocab] f32 and, per MoE layer L,
                            router_logits.L [tokens, E] f32, selected.L [tokens, k] i64 (descending weight),
                            weights.L [tokens, k] f32 (the gates as applied); where experts are not chosen by
                            softmax(router_logits) alone, choice.L [tokens, E] f32: what they are chosen by, with the
                            bias, and -inf in groups that are dropped

How a case is made: a model is built from the case's config, EVERY tensor is randomised (also norms and biases), rounded
to the stored dtype and saved; the case's edits are made to the files; then the files are loaded afresh in float32 (eager
attention, eager experts), nothing may be missing, unexpected or mismatched, and the logits of THAT model are stored. They
must equal the logits of the model in memory bit for bit, which proves that an edit (old config keys, fused names, shards)
changes nothing. Further checks, so that a golden can tell right from wrong:
  - `differs`: config values which must CHANGE the logits (the naive misreading of the case's feature);
  - `same_as`: the case's weights and tokens are another case's, and so must be the logits;
  - shifting the elements of any one tensor by one place must change the logits;
  - every expert is chosen in every MoE layer, and adjacent probabilities p_1..p_k+1 are at least MIN_MARGIN apart
    (choice scores, where they are not the probabilities; also the last group that is kept and the first dropped).
The weights and tokens are drawn from a seed derived from the case's name and an attempt number; of ATTEMPTS attempts the
one with the widest least margin is taken, so a run is reproducible.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
ATTEMPTS = 300  # seeds tried for a case with routers
MIN_MARGIN = 0.003  # between adjacent router probabilities, up to the first one not chosen
MIN_EFFECT = 0.02  # on some logit, of a `differs` value (of a shifted tensor: a tenth of it)
LONG_MARGIN = 2e-5  # the same for sequences of BLOCKS: twice what parity.rs overlooks
SHORT, LONG, BLOCKS = (11, 6, 1), (21, 9), (600,)  # lengths of the sequences; attention works on 256 queries at a time


# ---------------------------------------------------------------- the cases


@dataclass
class Case:
    family: str
    name: str
    dtype: str  # as stored
    config: dict  # on top of the family's
    lengths: tuple = SHORT
    differs: list = field(default_factory=list)  # config values, each of which must change the logits
    same_as: str = ""  # a case with the same weights, tokens and therefore logits
    edit: list = field(default_factory=list)  # functions on config.json as a dict
    # or "fused" (names in memory), "sharded", "mixed" (norms and routers in f32), "fp8" (projections in e4m3 with a
    # scale for each block), "mtp" (layers for multi-token prediction behind the others, which transformers ignores)
    layout: str = "saved"
    margin: float = MIN_MARGIN  # of routing; many tokens have some close call

    @property
    def path(self):
        return HERE / self.family / self.name


# Odd sizes on purpose: head_dim is not hidden / heads, grouped queries, no powers of two.
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
BIG = dict(vocab_size=101, hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
           num_key_value_heads=2, max_position_embeddings=64, **TOKENS)
TINY = dict(vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1, max_position_embeddings=64, **TOKENS)
D12, D10, D16 = dict(head_dim=12), dict(head_dim=10), dict(head_dim=16)
SLOW = dict(vocab_size=17, max_position_embeddings=640, rope_parameters=dict(rope_type="default", rope_theta=1e5))  # for BLOCKS
TIED = dict(tie_word_embeddings=True)


def rope(rope_type="default", theta=20.0, **kw):
    return dict(rope_parameters=dict(rope_type=rope_type, rope_theta=theta, **kw))


DEFAULT = rope()
LINEAR = rope("linear", factor=2.5)
LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0, original_max_position_embeddings=16)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
YARN_FACTOR = rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.5)
YARN_MSCALE = rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.4, mscale_all_dim=0.4,
                   beta_fast=2.0, beta_slow=0.5, truncate=False)


def but(base, **kw):
    """The rope parameters `base` with some replaced (None: left out)."""
    p = dict(base["rope_parameters"], **kw)
    return dict(rope_parameters={k: v for k, v in p.items() if v is not None})


# Edits of config.json


def old_keys(type_key):
    """As transformers 4 wrote it: rope_theta and rope_scaling {type_key: ...} at the top, torch_dtype."""

    def edit(c):
        p = dict(c.pop("rope_parameters"))
        c["rope_theta"] = p.pop("rope_theta")
        kind = p.pop("rope_type")
        c["rope_scaling"] = None if kind == "default" else {type_key: kind, **p}
        c["torch_dtype"] = c.pop("dtype")
        c["transformers_version"] = "4.45.0"

    return edit


def both_keys(type_key):
    """New and old keys side by side, saying the same."""

    def edit(c):
        new = dict(rope_parameters=dict(c["rope_parameters"]), dtype=c["dtype"])
        old_keys(type_key)(c)
        c.update(new)

    return edit


def rename(old, new):
    def edit(c):
        c[new] = c.pop(old)

    return edit


def put(**kw):
    return lambda c: c.update(kw)


def drop(*keys):
    return lambda c: [c.pop(k) for k in keys]


FULL, SLIDING = "full_attention", "sliding_attention"
MIX_E5 = dict(num_local_experts=5, num_experts_per_tok=2)
MIXTRAL_TINY = dict(TINY, **D10, **MIX_E5, intermediate_size=10, **rope(theta=100.0))
QWEN2_MOE_TINY = dict(TINY, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=10,
                      shared_expert_intermediate_size=20, **rope(theta=100.0))
QWEN3_MOE_TINY = dict(TINY, **D10, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=10, norm_topk_prob=True,
                      **rope(theta=100.0))
OLMOE_TINY = dict(TINY, num_experts=5, num_experts_per_tok=2, intermediate_size=10, **rope(theta=100.0))
LATENT = dict(kv_lora_rank=10, q_lora_rank=9, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=7)
MLA_TINY = dict(TINY, **LATENT, num_key_value_heads=3, moe_intermediate_size=10, n_routed_experts=5, num_experts_per_tok=2,
                n_shared_experts=1, first_k_dense_replace=1, **rope(theta=100.0))
MLA_BIG = dict(BIG, kv_lora_rank=14, q_lora_rank=18, qk_rope_head_dim=6, qk_nope_head_dim=8, v_head_dim=9, num_key_value_heads=4,
               moe_intermediate_size=14, first_k_dense_replace=1, **rope(theta=100.0))
GROUPS = dict(n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2)
NO_GROUPS = dict(n_group=1, topk_group=1)
V3_TINY = dict(MLA_TINY, **NO_GROUPS, routed_scaling_factor=1.5, num_nextn_predict_layers=0)
GLM_TINY = dict(TINY, **D12, **NO_GROUPS, n_routed_experts=5, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=10,
                first_k_dense_replace=1, routed_scaling_factor=1.5, num_nextn_predict_layers=0,
                **rope(theta=100.0, partial_rotary_factor=0.5))
# 2.0 rather than the family's 1.0, so that forgetting mscale_all_dim shows.
YARN_LATENT = rope("yarn", theta=100.0, factor=4.0, original_max_position_embeddings=16, mscale=2.0, mscale_all_dim=2.0)


def partial_at_the_top(c):
    """partial_rotary_factor as GLM-4.5's own config has it."""
    c["partial_rotary_factor"] = c["rope_parameters"].pop("partial_rotary_factor")
    old_keys("type")(c)
    del c["rope_scaling"]


def no_partial(c):
    del c["rope_parameters"]["partial_rotary_factor"]


CASES = [
    # dense
    Case("llama", "base", "float32", {**BIG, **D12, **rope(theta=10000.0)}),
    Case("llama", "tied", "bfloat16", {**TINY, **D10, **TIED, **DEFAULT}),
    Case("llama", "bias", "float16", {**TINY, **D10, "attention_bias": True, "mlp_bias": True, **DEFAULT}),
    Case("llama", "linear", "bfloat16", {**TINY, **D10, **LINEAR}, LONG, [DEFAULT]),
    Case("llama", "llama3", "bfloat16", {**TINY, **D10, **LLAMA3}, LONG,
         [DEFAULT, but(LLAMA3, high_freq_factor=1.0001), but(LLAMA3, low_freq_factor=1.9999)]),
    Case("llama", "yarn", "bfloat16", {**TINY, **D16, **YARN}, LONG,
         [DEFAULT, but(YARN, attention_factor=1.0), but(YARN, truncate=False), but(YARN, beta_slow=0.5)]),
    Case("llama", "yarn_factor", "bfloat16", {**TINY, **D16, **YARN_FACTOR}, LONG, [but(YARN_FACTOR, attention_factor=None)]),
    Case("llama", "yarn_mscale", "bfloat16", {**TINY, **D16, **YARN_MSCALE}, LONG,
         [but(YARN_MSCALE, mscale=None), but(YARN_MSCALE, mscale_all_dim=None, mscale=None), but(YARN_MSCALE, truncate=True),
          but(YARN_MSCALE, beta_fast=None), but(YARN_MSCALE, beta_slow=None)]),
    Case("llama", "linear_old", "bfloat16", {**TINY, **D10, **LINEAR}, LONG, [DEFAULT], "linear", [old_keys("type")]),
    Case("llama", "llama3_old", "bfloat16", {**TINY, **D10, **LLAMA3}, LONG, [DEFAULT], "llama3", [old_keys("rope_type")]),
    Case("llama", "yarn_old", "bfloat16", {**TINY, **D16, **YARN}, LONG, [DEFAULT], "yarn", [old_keys("rope_type")]),
    Case("llama", "llama3_both", "bfloat16", {**TINY, **D10, **LLAMA3}, LONG, [DEFAULT], "llama3", [both_keys("rope_type")]),
    Case("llama", "tied_own_head", "bfloat16", {**TINY, **D10, **DEFAULT}, edit=[put(**TIED)]),  # the file's head wins
    Case("llama", "unknown_key", "bfloat16", {**TINY, "num_key_value_heads": 3, **DEFAULT},
         edit=[put(my_custom_key={"a": 1}), drop("head_dim")]),
    Case("mistral", "base", "bfloat16", {**BIG, **D12, "sliding_window": 6, **rope(theta=100.0)}, LONG,
         [{"sliding_window": None}, {"sliding_window": 5}, {"sliding_window": 7}]),
    Case("mistral", "full", "float16", {**TINY, **D10, "sliding_window": None, **rope(theta=100.0)}, LONG,
         [{"sliding_window": 6}]),
    Case("mistral", "old", "bfloat16", {**TINY, **D10, "sliding_window": 6, **rope(theta=100.0)}, LONG,
         [{"sliding_window": None}], edit=[old_keys("type"), drop("rope_scaling")]),
    Case("llama", "long", "bfloat16", {**TINY, **D10, **SLOW}, BLOCKS, [rope(theta=2e5)]),
    Case("mistral", "long_window", "bfloat16", {**TINY, **D10, **SLOW, "sliding_window": 100}, BLOCKS,
         [{"sliding_window": None}, {"sliding_window": 99}, {"sliding_window": 101}]),
    Case("qwen2", "base", "float32", {**TINY, **rope(theta=10000.0)}),
    Case("qwen2", "sliding", "bfloat16", {**TINY, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6,
                                          "max_window_layers": 1, **rope(theta=100.0)}, LONG,
         [{"layer_types": [FULL] * 3}, {"layer_types": [SLIDING] * 3}, {"layer_types": [SLIDING, FULL, FULL]}]),
    Case("qwen2", "sliding_old", "bfloat16", {**TINY, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6,
                                              "max_window_layers": 1, **rope(theta=100.0)}, LONG,
         [{"use_sliding_window": False}, {"max_window_layers": 2}], "sliding", [old_keys("type"), drop("layer_types")]),
    Case("qwen2", "tied", "bfloat16", {**BIG, **D12, **TIED, "use_sliding_window": False, **rope(theta=100.0)}),
    Case("qwen3", "base", "bfloat16", {**BIG, **D12, **rope(theta=100.0)}),
    Case("qwen3", "bias", "float16", {**TINY, **D10, **TIED, "attention_bias": True, **rope(theta=100.0)}),
    Case("qwen3", "layer_types", "bfloat16", {**TINY, **D10, "num_hidden_layers": 3, "use_sliding_window": True,
                                              "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING],
                                              **rope(theta=100.0)}, LONG,
         [{"layer_types": [FULL] * 3}, {"layer_types": [SLIDING] * 3}, {"layer_types": [FULL, SLIDING, SLIDING]}]),
    # mixture of experts
    Case("mixtral", "base", "bfloat16", {**BIG, **D12, "num_local_experts": 7, "num_experts_per_tok": 3,
                                         "intermediate_size": 14, **rope(theta=100.0)}),
    Case("mixtral", "sliding", "bfloat16", {**MIXTRAL_TINY, "sliding_window": 6}, LONG,
         [{"sliding_window": None}, {"sliding_window": 5}, {"sliding_window": 7}]),
    Case("mixtral", "sharded", "float16", {**MIXTRAL_TINY, **TIED}, layout="sharded"),
    Case("mixtral", "fused", "bfloat16", MIXTRAL_TINY, layout="fused"),
    Case("mixtral", "mixed", "bfloat16", MIXTRAL_TINY, layout="mixed"),
    Case("mixtral", "old", "float32", {**TINY, **MIX_E5, "intermediate_size": 10, **rope(theta=1e6)}, LONG,
         [rope(theta=1e4)], edit=[drop("rope_parameters", "head_dim"), rename("dtype", "torch_dtype")]),
    Case("qwen2_moe", "base", "bfloat16", {**BIG, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 14,
                                           "shared_expert_intermediate_size": 20, **rope(theta=100.0)},
         differs=[{"norm_topk_prob": True}]),
    Case("qwen2_moe", "norm", "float16", {**QWEN2_MOE_TINY, "norm_topk_prob": True}, differs=[{"norm_topk_prob": False}]),
    Case("qwen2_moe", "sparse_step", "bfloat16", {**QWEN2_MOE_TINY, **TIED, "num_hidden_layers": 3, "decoder_sparse_step": 2}),
    Case("qwen2_moe", "mlp_only", "bfloat16", {**QWEN2_MOE_TINY, "num_hidden_layers": 3, "mlp_only_layers": [1]}),
    Case("qwen2_moe", "no_bias", "float32", {**QWEN2_MOE_TINY, "qkv_bias": False, **D10}),
    Case("qwen2_moe", "sliding", "bfloat16", {**QWEN2_MOE_TINY, "num_hidden_layers": 3, "use_sliding_window": True,
                                              "sliding_window": 6, "max_window_layers": 2}, LONG,
         [{"layer_types": [FULL] * 3}, {"layer_types": [SLIDING, SLIDING, FULL]}, {"layer_types": [FULL, FULL, SLIDING]}]),
    Case("qwen2_moe", "sliding_old", "bfloat16", {**QWEN2_MOE_TINY, "num_hidden_layers": 3, "use_sliding_window": True,
                                                  "sliding_window": 6, "max_window_layers": 2}, LONG,
         [{"use_sliding_window": False}, {"max_window_layers": 3}], "sliding", [old_keys("type"), drop("layer_types")]),
    Case("qwen2_moe", "fused", "bfloat16", QWEN2_MOE_TINY, layout="fused"),
    Case("qwen3_moe", "base", "bfloat16", {**BIG, **D12, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 14,
                                           "norm_topk_prob": True, **rope(theta=100.0)}, differs=[{"norm_topk_prob": False}]),
    Case("qwen3_moe", "no_norm", "float16", {**QWEN3_MOE_TINY, "norm_topk_prob": False}, differs=[{"norm_topk_prob": True}]),
    Case("qwen3_moe", "mlp_only", "bfloat16", {**QWEN3_MOE_TINY, **TIED, "num_hidden_layers": 3, "mlp_only_layers": [0, 2]}),
    Case("qwen3_moe", "sparse_step", "bfloat16", {**QWEN3_MOE_TINY, "num_hidden_layers": 3, "decoder_sparse_step": 2}),
    Case("qwen3_moe", "bias", "bfloat16", {**QWEN3_MOE_TINY, "attention_bias": True}),
    Case("qwen3_moe", "sliding", "bfloat16", {**QWEN3_MOE_TINY, "use_sliding_window": True, "sliding_window": 6}, LONG,
         [{"use_sliding_window": False}, {"sliding_window": 5}, {"sliding_window": 7}]),
    # only num_local_experts: every case above, as transformers 5 saves it; only num_experts: as older writers did
    Case("qwen3_moe", "num_experts", "float32", {**QWEN3_MOE_TINY, **but(YARN, rope_theta=100.0)}, LONG,
         [rope(theta=100.0)], edit=[rename("num_local_experts", "num_experts"), old_keys("rope_type")]),
    Case("qwen3_moe", "both_names", "bfloat16", QWEN3_MOE_TINY, edit=[put(num_experts=5)]),
    Case("qwen3_moe", "fused", "bfloat16", QWEN3_MOE_TINY, layout="fused"),
    # experts get more than the 128 tokens up to which another kernel multiplies
    Case("qwen3_moe", "long", "bfloat16", {**QWEN3_MOE_TINY, **SLOW, "num_hidden_layers": 1}, BLOCKS, margin=LONG_MARGIN),
    Case("olmoe", "base", "bfloat16", {**BIG, "num_experts": 7, "num_experts_per_tok": 3, "intermediate_size": 14,
                                       **rope(theta=100.0)}, differs=[{"norm_topk_prob": True}]),
    Case("olmoe", "clip", "float32", {**OLMOE_TINY, "clip_qkv": 0.6}, differs=[{"clip_qkv": None}]),
    Case("olmoe", "norm", "float16", {**OLMOE_TINY, **TIED, "norm_topk_prob": True}, differs=[{"norm_topk_prob": False}]),
    Case("olmoe", "bias", "bfloat16", {**OLMOE_TINY, "attention_bias": True, "clip_qkv": 1.0}, differs=[{"clip_qkv": None}]),
    Case("olmoe", "fused", "bfloat16", OLMOE_TINY, layout="fused"),
    # latent attention, softmax: groups ranked by their best expert
    Case("deepseek_v2", "base", "bfloat16", {**MLA_TINY, **GROUPS, "topk_method": "group_limited_greedy", "n_shared_experts": 2,
                                             "routed_scaling_factor": 1.7},
         differs=[{"topk_method": "greedy"}, {"topk_group": 3}, {"routed_scaling_factor": 1.0}]),
    Case("deepseek_v2", "greedy", "float16", {**MLA_TINY, **TIED, "q_lora_rank": None, "first_k_dense_replace": 0,
                                              "rms_norm_eps": 0.05}),
    Case("deepseek_v2", "bias", "bfloat16", {**MLA_TINY, "attention_bias": True, "mlp_bias": True}),
    Case("deepseek_v2", "yarn", "bfloat16", {**MLA_TINY, "qk_rope_head_dim": 8, **but(YARN_LATENT, mscale=0.7)}, LONG,
         [but(YARN_LATENT), but(YARN_LATENT, mscale=0.7, mscale_all_dim=None), rope(theta=100.0)]),
    # as the hub has it; norm_topk_prob is ignored
    Case("deepseek_v2", "hub", "bfloat16", {**MLA_TINY, "qk_rope_head_dim": 8, **but(YARN_LATENT, mscale=0.7)}, LONG,
         [rope(theta=100.0)], "yarn", [old_keys("type"), put(scoring_func="softmax", moe_layer_freq=1, ep_size=1,
                                                             norm_topk_prob=True), drop("head_dim", "qk_head_dim")]),
    # latent attention, sigmoid and bias: groups ranked by their two best experts
    Case("deepseek_v3", "base", "bfloat16", {**MLA_BIG, **GROUPS, "num_nextn_predict_layers": 0, "n_shared_experts": 2},
         differs=[NO_GROUPS, {"topk_group": 3}, {"routed_scaling_factor": 1.0}, {"norm_topk_prob": False},
                  {"rope_interleave": False}]),
    Case("deepseek_v3", "halves", "float16", {**V3_TINY, **TIED, "q_lora_rank": None, "rope_interleave": False,
                                              "norm_topk_prob": False, "rms_norm_eps": 0.05},
         differs=[{"rope_interleave": True}, {"norm_topk_prob": True}]),
    Case("deepseek_v3", "yarn", "bfloat16", {**V3_TINY, "qk_rope_head_dim": 8, **YARN_LATENT}, LONG,
         [but(YARN_LATENT, mscale=1.0), but(YARN_LATENT, mscale_all_dim=None), rope(theta=100.0)]),
    Case("deepseek_v3", "hub", "bfloat16", {**V3_TINY, "qk_rope_head_dim": 8, **YARN_LATENT}, LONG,
         [rope(theta=100.0)], "yarn", [old_keys("type"), put(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1,
                                                             ep_size=1), drop("head_dim", "qk_head_dim", "rope_interleave")]),
    Case("deepseek_v3", "bias", "bfloat16", {**V3_TINY, "num_hidden_layers": 3, "first_k_dense_replace": 2,
                                             "attention_bias": True}),
    Case("deepseek_v3", "mixed", "bfloat16", {**V3_TINY, "first_k_dense_replace": 0}, layout="mixed"),
    Case("deepseek_v3", "fused", "bfloat16", V3_TINY, layout="fused"),
    # widths that are no multiples of 128: blocks at the end are cut off
    Case("deepseek_v3", "fp8", "bfloat16", {**V3_TINY, "hidden_size": 150, "intermediate_size": 130, "q_lora_rank": 20,
                                            "kv_lora_rank": 12, "qk_nope_head_dim": 30, "qk_rope_head_dim": 16,
                                            "v_head_dim": 26, "moe_intermediate_size": 14, "n_routed_experts": 4}, layout="fp8"),
    Case("deepseek_v3", "long", "bfloat16", {**V3_TINY, **SLOW, "first_k_dense_replace": 1}, BLOCKS, margin=LONG_MARGIN),
    Case("deepseek_v3", "mtp", "bfloat16", {**V3_TINY, "num_nextn_predict_layers": 2}, layout="mtp"),
    # ordinary attention, partly rotated; routing as deepseek_v3, bias in f32
    Case("glm4_moe", "base", "bfloat16", {**GLM_TINY, **GROUPS, "n_shared_experts": 2, "routed_scaling_factor": 2.5,
                                          "use_qk_norm": True},
         differs=[NO_GROUPS, {"routed_scaling_factor": 1.0}, {"norm_topk_prob": False},
                  rope(theta=100.0, partial_rotary_factor=1.0)]),
    Case("glm4_moe", "bias", "float16", {**GLM_TINY, **TIED, **D16, "attention_bias": True, "norm_topk_prob": False,
                                         "num_hidden_layers": 3, "first_k_dense_replace": 2,
                                         **rope(theta=100.0, partial_rotary_factor=0.25)},
         differs=[{"norm_topk_prob": True}, rope(theta=100.0, partial_rotary_factor=0.5)]),
    Case("glm4_moe", "yarn", "bfloat16", {**GLM_TINY, **D16, **but(YARN, rope_theta=100.0, partial_rotary_factor=0.5)}, LONG,
         [rope(theta=100.0, partial_rotary_factor=0.5), but(YARN, rope_theta=100.0, partial_rotary_factor=1.0)]),
    Case("glm4_moe", "hub", "bfloat16", {**GLM_TINY, "use_qk_norm": True}, edit=[partial_at_the_top]),
    Case("glm4_moe", "mtp", "bfloat16", {**GLM_TINY, "num_nextn_predict_layers": 1}, layout="mtp"),
    Case("glm4_moe", "no_partial", "bfloat16", {**GLM_TINY, "first_k_dense_replace": 0, **rope(theta=100.0)}, edit=[no_partial],
         differs=[rope(theta=100.0, partial_rotary_factor=1.0)]),
]


# ---------------------------------------------------------------- models

EAGER = dict(attn_implementation="eager", experts_implementation="eager")


def randomise(model, generator):
    """Every tensor: norms in 1 ± 0.3, biases N(0, 0.3), matrices N(0, gain² / fan-in) with gains that keep attention
    and routing far from uniform and the logits near a standard deviation of 1."""
    gains = {"q_proj": 1.6, "k_proj": 1.6, "gate_proj": 1.5, "gate": 1.8, "shared_expert_gate": 1.5,
             "q_b_proj": 1.8, "kv_a_proj_with_mqa": 1.5, "kv_b_proj": 1.5}
    for name, p in model.named_parameters():  # tied tensors come once
        module, kind = name.split(".")[-2:]
        if "norm" in name:
            value = 1 + 0.6 * (torch.rand(p.shape, generator=generator) - 0.5)
        else:
            value = torch.randn(p.shape, generator=generator)
            if kind == "bias":
                value *= 0.3
            elif module == "embed_tokens" and not model.config.tie_word_embeddings:
                pass  # N(0, 1)
            else:
                value *= gains.get(module, 1.3 if "expert" in name else 1.0) / math.sqrt(p.shape[-1])
        p.data.copy_(value)
    for _, bias in choice_biases(model):
        bias.copy_(0.2 * torch.randn(bias.shape, generator=generator))


def choice_biases(model):
    return [(n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]


def choice(router, logits):
    """What experts are chosen by, and how clear the choice of groups is; None for plain softmax. Written from the papers
    (2405.04434 §2.1.2, 2412.19437 §2.1.2), not from the module, which must choose the same."""
    bias = getattr(router, "e_score_correction_bias", None)
    if bias is None and getattr(router, "topk_method", "greedy") == "greedy":
        return None
    c = torch.softmax(logits, -1) if bias is None else torch.sigmoid(logits) + bias
    if router.num_group == 1:
        return c, torch.full((len(c), 1), math.inf)
    groups = c.unflatten(-1, (router.num_group, -1))
    score = groups.amax(-1) if bias is None else groups.sort(-1).values[..., -2:].sum(-1)
    ranked = score.sort(-1, descending=True).values
    last, first = ranked[:, router.topk_group - 1 : router.topk_group], ranked[:, router.topk_group : router.topk_group + 1]
    groups = groups.masked_fill((score < last).unsqueeze(-1), -math.inf)
    return groups.flatten(1), last - first


def forward(model, sequences):
    """The tensors of reference.safetensors."""
    found = {}

    def watch(name):
        layer = name.split(".")[2]

        def hook(module, _inputs, output):
            logits, weights, selected = output
            order = weights.argsort(dim=-1, descending=True, stable=True)
            output = dict(router_logits=logits, weights=weights.gather(-1, order), selected=selected.gather(-1, order))
            if (scores := choice(module, logits)) is not None:
                output["choice"], output["_groups"] = scores
                best = scores[0].topk(selected.shape[-1]).indices
                assert torch.equal(best.sort().values, selected.sort().values), f"layer {layer} chooses otherwise"
            for key, tensor in output.items():
                found.setdefault(f"{key}.{layer}", []).append(tensor.detach().clone())

        return hook

    hooks = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if type(m).__name__.lower().endswith("topkrouter")]
    with torch.no_grad():
        for ids in sequences:
            found.setdefault("logits", []).append(model(torch.tensor([ids]), use_cache=False).logits[0])
    for h in hooks:
        h.remove()
    found = {k: torch.cat(v).contiguous() for k, v in found.items()}
    assert all(v.dtype == (torch.int64 if k.startswith("selected") else torch.float32) for k, v in found.items())
    return found


def margins(reference):
    """[tokens * layers, k]: the distances between adjacent probabilities among the k + 1 largest."""
    out = []
    for key, logits in reference.items():
        if key.startswith("router_logits."):
            k = reference[key.replace("router_logits", "selected")].shape[1]
            c = reference.get(key.replace("router_logits", "choice"), torch.softmax(logits, -1))
            p = c.sort(-1, descending=True).values[:, : k + 1]
            out.append(p[:, :-1] - p[:, 1:])
    return torch.cat(out) if out else None


def least_margin(reference):
    groups = [gap.min() for key, gap in reference.items() if key.startswith("_groups.")]
    return min([margins(reference).min(), *groups])


def every_expert_chosen(reference):
    return all(
        len(reference[key.replace("router_logits", "selected")].unique()) == logits.shape[1]
        for key, logits in reference.items() if key.startswith("router_logits.")
    )


def choice_dtypes(config, dtype):
    """The dtypes that transformers saves biases of a model of `dtype` in."""
    return {n: b.dtype for n, b in choice_biases(AutoModelForCausalLM.from_config(config, dtype=dtype))}


BLOCK = 128
CONFIG_FP8 = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[BLOCK, BLOCK])


def projections(model):
    """Names on disk and values of what is quantised: every projection but the head, and the router."""
    for name, p in model.named_parameters():
        if name.endswith("gate_up_proj"):
            for e, (gate, up) in enumerate(zip(*p.data.chunk(2, dim=1))):
                yield name.replace("gate_up_proj", f"{e}.gate_proj.weight"), gate
                yield name.replace("gate_up_proj", f"{e}.up_proj.weight"), up
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(p.data):
                yield name.replace("down_proj", f"{e}.down_proj.weight"), down
        elif "_proj" in name and name.endswith("weight"):
            yield name, p.data


def spread(scale, shape):
    """[rows, columns]: every element's scale."""
    return scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]


def quantise(matrix):
    """Codes, and the scale of each block: its largest magnitude becomes 448, the largest of e4m3."""
    scale = torch.stack([torch.stack([b.abs().max() / 448 for b in row.split(BLOCK, 1)]) for row in matrix.split(BLOCK)])
    return (matrix / spread(scale, matrix.shape)).to(torch.float8_e4m3fn), scale


def dequantise(codes, scale):
    return codes.to(torch.float32) * spread(scale, codes.shape)


def build(case):
    """A model in memory, weights rounded to the stored dtype and held in f32; tokens; its forward."""
    config = AutoConfig.for_model(case.family, **json.loads(json.dumps(case.config)))
    dtype = getattr(torch, case.dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **EAGER).eval()
    kept = choice_dtypes(config, dtype) if choice_biases(model) else {}
    best = None
    for attempt in range(ATTEMPTS):
        seed = zlib.crc32(f"{case.family}/{case.same_as or case.name}/{attempt}".encode())
        generator = torch.Generator().manual_seed(seed)
        randomise(model, generator)
        for p in model.parameters():
            p.data = p.data.to(dtype).float()
        if case.layout == "fp8":
            for _, matrix in projections(model):
                matrix[:, BLOCK:] *= 1.5  # so that blocks differ in scale
                matrix[BLOCK:] *= 1.25
                matrix.copy_(dequantise(*quantise(matrix)))
        for name, bias in choice_biases(model):
            bias.copy_(bias.to(kept.get(name, dtype)))
        sequences = [torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in case.lengths]
        reference = forward(model, sequences)
        if margins(reference) is None:
            return model, sequences, reference
        gap = least_margin(reference)
        if every_expert_chosen(reference) and (best is None or gap > best[0]):
            best = gap, {k: v.clone() for k, v in model.state_dict().items()}, sequences, reference
    assert best and best[0] >= case.margin, f"{case.family}/{case.name}: no seed gives clear routing"
    model.load_state_dict(best[1])
    return model, *best[2:]


def prediction_layers(case, config):
    """The tensors of layers for multi-token prediction, as DeepSeek-V3 and GLM-4.5 name them."""
    first, count, hidden = config.num_hidden_layers, config.num_nextn_predict_layers, config.hidden_size
    longer = AutoConfig.for_model(case.family, **{**json.loads(json.dumps(case.config)), "num_hidden_layers": first + count})
    model = AutoModelForCausalLM.from_config(longer, dtype=torch.bfloat16, **EAGER)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.family}/{case.name}/prediction".encode()))
    randomise(model, generator)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        saved = load_file(Path(scratch) / "model.safetensors")
    tensors = {k: v for k, v in saved.items() if k.startswith("model.layers.") and int(k.split(".")[2]) >= first}
    table = (config.vocab_size, hidden)
    for layer in range(first, first + count):
        own = {"enorm": (hidden,), "hnorm": (hidden,), "eh_proj": (hidden, 2 * hidden), "embed_tokens": table,
               "shared_head.norm": (hidden,), "shared_head.head": table}
        for name, shape in own.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=generator).to(torch.bfloat16)
    return tensors


def save(case, model, directory):
    """Writes the checkpoint in the case's dtype and layout, and edits its config.json."""
    dtype = getattr(torch, case.dtype)
    saved = AutoModelForCausalLM.from_config(model.config, dtype=dtype, **EAGER)
    biases = dict(choice_biases(saved))
    saved.load_state_dict({k: v.to(biases[k].dtype if k in biases else dtype) for k, v in model.state_dict().items()})
    saved.config.dtype = dtype
    saved.save_pretrained(directory, max_shard_size="12KB" if case.layout == "sharded" else "1GB")
    file = directory / "model.safetensors"
    if case.layout == "fused":  # what mergekit 0.1.5 writes: the names in memory
        tensors = {k: v.contiguous() for k, v in saved.state_dict().items()}
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    elif case.layout == "mixed":
        tensors = load_file(file)
        f32 = {k: v.float() if "norm" in k or ".gate." in k else v for k, v in tensors.items()}
        save_file(f32, file, metadata={"format": "pt"})
    elif case.layout == "mtp":
        save_file({**load_file(file), **prediction_layers(case, model.config)}, file, metadata={"format": "pt"})
    elif case.layout == "fp8":
        tensors = load_file(file)
        for name, matrix in projections(model):
            # It is on the grid already, so that quantising again finds the same codes; the assertion on logits checks it.
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(matrix)
        save_file(tensors, file, metadata={"format": "pt"})
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), "quantization_config": CONFIG_FP8}
        path.write_text(json.dumps(config, indent=2) + "\n")
    if case.edit:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        for edit in case.edit:
            edit(config)
        path.write_text(json.dumps(config, indent=2) + "\n")


def dequantised(directory, scratch):
    """A copy of the fp8 checkpoint in `directory` with plain f32 projections, from its files alone."""
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (scratch / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scale, weight = tensors.pop(name), name.removesuffix("_scale_inv")
        assert tensors[weight].dtype == torch.float8_e4m3fn
        tensors[weight] = dequantise(tensors[weight], scale)
    save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
    return tensors


def load(directory, **changes):
    """From disk, in f32; with config values changed if asked. Refuses anything that transformers would make up."""
    config = json.loads((directory / "config.json").read_text())
    for key in changes:  # a changed value replaces its old spelling too
        if key == "rope_parameters":
            config.pop("rope_scaling", None), config.pop("rope_theta", None)
        if key in ("use_sliding_window", "max_window_layers"):
            config.pop("layer_types", None)
    config.update(json.loads(json.dumps(changes)))
    kind = config.pop("model_type")
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, config=AutoConfig.for_model(kind, **config) if changes else None,
        dtype=torch.float32, output_loading_info=True, **EAGER,
    )
    last = model.config.num_hidden_layers + getattr(model.config, "num_nextn_predict_layers", 0)
    ours = {f"model.layers.{layer}" for layer in range(model.config.num_hidden_layers, last)}
    info["unexpected_keys"] = [k for k in info["unexpected_keys"] if ".".join(k.split(".")[:3]) not in ours]
    bad = {k: v for k, v in info.items() if v}
    assert not bad, f"{directory}: {bad}"
    for p in model.parameters():  # f32 tensors lie unaligned in the mapped file, which alters the last bit of a product
        p.data = p.data.clone()
    return model.eval()


def effect(a, b):
    return (a["logits"] - b["logits"]).abs().max().item()


def attention_peak(model, sequences):
    """Mean largest attention weight of the rows with at least four keys: 0.25 or less would be uniform."""
    with torch.no_grad():
        maps = model(torch.tensor([sequences[0]]), output_attentions=True, use_cache=False).attentions
    return torch.cat([a[..., 3:, :].amax(-1).flatten() for a in maps]).mean().item()


def make(case):
    label = f"{case.family}/{case.name}"
    model, sequences, expected = build(case)
    shutil.rmtree(case.path, ignore_errors=True)
    directory = case.path / "model"
    directory.mkdir(parents=True)
    save(case, model, directory)
    (case.path / "tokens.json").write_text(json.dumps(sequences) + "\n")

    if case.layout == "fp8":
        plain = case.path / "plain"
        plain.mkdir()
        values = dequantised(directory, plain)
        loaded = load(plain)
        shutil.rmtree(plain)
        # [138, 20] in 2 x 1 blocks, [28, 150] in 1 x 2
        names = [f"model.layers.0.self_attn.{name}.weight" for name in ("q_b_proj", "kv_a_proj_with_mqa")]
        e4m3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
        save_file({"e4m3": e4m3, **{name: values[name] for name in names}}, case.path / "dequantised.safetensors")
    else:
        loaded = load(directory)
    reference = forward(loaded, sequences)
    assert reference.keys() == expected.keys()
    for key in reference:
        assert torch.equal(reference[key], expected[key]), f"{label}: {key} differs between memory and disk"
    if case.same_as:
        other = HERE / case.family / case.same_as
        assert json.loads((other / "tokens.json").read_text()) == sequences
        assert torch.equal(load_file(other / "reference.safetensors")["logits"], reference["logits"]), label
    for change in case.differs:
        d = effect(forward(load(directory, **change), sequences), reference)
        assert d > MIN_EFFECT, f"{label}: {change} moves the logits by only {d}"
    for name, p in [*loaded.named_parameters(), *choice_biases(loaded)]:
        before = p.data.clone()
        p.data = before.flatten().roll(1).view_as(before)
        d = effect(forward(loaded, sequences), reference)
        assert d > MIN_EFFECT / 10, f"{label}: shifting {name} by one moves the logits by only {d}"
        p.data = before
    save_file({k: v for k, v in reference.items() if not k.startswith("_")}, case.path / "reference.safetensors")

    m = margins(reference)
    row = [
        label, case.dtype, case.layout, "+".join(map(str, case.lengths)),
        f"{reference['logits'].std():.2f}", f"{attention_peak(loaded, sequences):.2f}",
        "" if m is None else " / ".join(f"{q:.3f}" for q in (m[:, -1].min(), m[:, -1].quantile(0.1), m[:, -1].median())),
        "" if m is None else f"{least_margin(reference):.3f}",
        str(sum(f.stat().st_size for f in case.path.rglob("*") if f.is_file())),
    ]
    print(" | ".join(row), flush=True)
    return row


def main():
    torch.set_num_threads(1)
    assert transformers.__version__ == "5.23.0" and torch.__version__.startswith("2.13.0"), "see requirements.txt"
    wanted = sys.argv[1:]
    chosen = [c for c in CASES if not wanted or c.family in wanted or f"{c.family}/{c.name}" in wanted]
    rows = [make(c) for c in chosen]
    if not wanted:
        head = ["case", "stored", "layout", "tokens", "logits std", "attention peak",
                "p_k − p_k+1: min / 10% / median", "least gap in p_1..p_k+1", "bytes"]
        lines = ["# The cases (written by make.py)", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        (HERE / "cases.md").write_text("\n".join(lines) + "\n")
    print(len(rows), "cases,", sum(int(r[-1]) for r in rows), "bytes")


main()
