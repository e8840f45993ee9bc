"""Writes what transformers makes of edited goldens, version by version, to verdicts.json.

Each case is a golden checkpoint, config keys that are set or removed (`/` leads into objects), and other files that are written, or
keys of theirs, and texts that take the place of others in the header of model.safetensors. A version's verdict is null where plain from_pretrained loads it with all its weights and runs, else what it says. A
tokenizer must load and tokenize a text: where either fails, the verdict says so.

    python verdicts.py            # once with transformers==5.23.0, once with 4.57.6, each with compressed-tensors==0.20.0
"""
import json
import os
import pathlib
import shutil
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TRANSFORMERS_VERBOSITY="error")
import torch
import transformers

# Experts of goldens are too narrow for the grouped products that version 5 has otherwise.
EAGER = {"attn_implementation": "eager"}
if transformers.__version__.startswith("5."):
    EAGER["experts_implementation"] = "eager"
HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent
DENSE = "models/dense"
LLAMA, MISTRAL, QWEN2, QWEN3 = (f"families/{name}/base/model" for name in ("llama", "mistral", "qwen2", "qwen3"))
QWEN2_MOE, QWEN3_MOE = "families/qwen2_moe/base/model", "families/qwen3_moe/base/model"
MIXTRAL, OLMOE = "families/mixtral/base/model", "families/olmoe/base/model"
DEEPSEEK2, DEEPSEEK3 = "families/deepseek_v2/base/model", "families/deepseek_v3/base/model"
GLM = "families/glm4_moe/base/model"
FAMILIES = [LLAMA, MISTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, MIXTRAL, OLMOE, DEEPSEEK2, DEEPSEEK3, GLM]
W4, FP8, W8 = (f"quantize/checkpoints/{name}" for name in ("qwen3_moe.w4", "qwen3_moe.fp8", "mixtral.w8"))
FULL, SLIDING = "full_attention", "sliding_attention"


def values(golden, key, values):
    return [(golden, {key: value}, {}) for value in values]


def cases():
    """(golden, keys of the config, other files)"""
    found = [(golden, {}, {}) for golden in FAMILIES + [W4, FP8, W8, DENSE]]
    # Windows.
    found += values(MISTRAL, "layer_types", [[FULL, FULL], [FULL, SLIDING], [SLIDING, SLIDING], None, [FULL], ["conv", FULL], [7, 7]])
    found.append((MISTRAL, {"layer_types": [FULL, SLIDING], "sliding_window": None}, {}))
    for golden in (QWEN2, QWEN3, QWEN2_MOE):
        window = {"use_sliding_window": True, "sliding_window": 4}
        for types in ([SLIDING, FULL], [FULL], ["x", FULL]):
            found.append((golden, {"layer_types": types, **window}, {}))
        found.append((golden, {"layer_types": [SLIDING, SLIDING], "use_sliding_window": False, "sliding_window": 4}, {}))
        found.append((golden, {"layer_types": [SLIDING, FULL], "use_sliding_window": True, "sliding_window": None}, {}))
        found.append((golden, {"layer_types": [FULL, FULL], "use_sliding_window": False, "sliding_window": 4}, {}))
    for golden in (QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE):
        for window in (None, 4, 0, -1):
            found.append((golden, {"-layer_types": 0, "use_sliding_window": True, "sliding_window": window}, {}))
    for types in ([FULL, FULL], [SLIDING, SLIDING], None):
        for window in (None, 0, -1):
            found.append((MISTRAL, {"layer_types": types, "sliding_window": window}, {}))
    for golden in FAMILIES:
        found += values(golden, "layer_types", [[FULL], ["x", FULL], [FULL, FULL], [FULL, FULL, FULL], "x", 3])
        found += values(golden, "sliding_window", [-1, 0, "x"])
    # Types of values.
    of_any = {
        "use_cache": [None, 0, 1], "max_position_embeddings": [64.0], "bos_token_id": [[1], 1.0, "1", True],
        "eos_token_id": ["2", 2.0, [2.0], [[2]], [1, 2], None], "pad_token_id": [1.0, True, [0], 5000, "0", -1],
        "initializer_range": [None, "0.02", 1], "attention_dropout": [None, "0", 0, 0.0], "rms_norm_eps": [None, "1e-6"],
        "auto_map": [None, [], {}], "id2label": [["a"], {}], "num_labels": ["3", 3], "num_hidden_layers": [2.0],
        "vocab_size": [101.0], "tie_word_embeddings": [0, None], "hidden_act": [None, "gelu"], "head_dim": [None, 12.0],
        "num_key_value_heads": [None], "sliding_window": [4.0], "torch_dtype": [], "architectures": [["X"], "X", [], None],
        "transformers_weights": [3, None], "quantization_config": [None], "rope_theta": ["50", None, 50],
        "pretraining_tp": [None, 1.0], "attention_bias": [None, 0], "use_sliding_window": [None, 0],
    }
    for golden in (LLAMA, QWEN3_MOE, DEEPSEEK3):
        for key, tried in of_any.items():
            found += values(golden, key, tried)
    # Keys that every config has a place for, and names of what every config can do.
    nothing = [None, True, 0, "x", [], {}]
    plan = [None, False, True, 1.5, "x", "", [], ["x"], {}, {"a": 1}]
    of_base = {
        "return_dict": [None, False, True, 0, "x", [], {}, 1], "use_return_dict": nothing, "sub_configs": nothing, "to_dict": nothing,
        "to_json_string": nothing, "get_text_config": nothing, "is_heterogeneous": nothing, "per_layer_attributes": nothing,
        "output_hidden_states": [None, True, 0, 3, 1.5, "x", "", [], ["x"], {}, {"a": 1}],
        "attribute_map": [None, False, 3, "x", [], {}, {"a": "b"}],
        "_attn_implementation": [None, True, 3, "x", "", [], {}, {"a": 1}, "eager", "sdpa"],
        "_experts_implementation": [True, 3, "x", "", [], {}, {"a": 1}, "eager", "batched_mm"],
        "base_model_tp_plan": plan, "base_model_pp_plan": plan, "base_model_ep_plan": plan, "base_model_fsdp_plan": plan,
        "fusion_config": plan, "text_config": [None, {}, "x", []], "decoder": [None, {}, 3], "generator": [None, {}],
        "text_encoder": [None, {}], "ignore_keys_at_rope_validation": [None, 3, True, "x", [], {}],
        "per_layer_config": [None, {}, [], 3, "x", {"a": 1}, {"0": {}}, {"0": {"rms_norm_eps": 0.5}}, {"1": {"sliding_window": 3}}],
        "attention_chunk_size": [None, 3, 0, -1, 1.5, "x"], "num_labels": [None, True, -1, 0, 1.5, "x", []],
        "id2label": [None, {"a": "x"}, {"0": "x"}, {" 1 ": "x"}, {"1.0": "x"}, 3, "x", []], "auto_map": ["x", ["x"], 3, True],
        "rope_scaling": [False, 0, "", [], 3, "x", True], "label2id": [None, 3, "x", {}], "problem_type": [None, "x", "regression"],
        "sliding_window": [0, -1, True, "4"], "is_encoder_decoder": [True, None, 0], "chunk_size_feed_forward": [None, 3, "x"],
        "transformers_version": [None, 3, "x"], "name_or_path": [None, 3], "pruned_heads": [None, 3, {}, {"0": [1]}],
        "torchscript": [True, None], "tokenizer_class": [3, None, "X"], "is_decoder": [True, None], "prefix": [3],
    }
    for golden in (LLAMA, QWEN3_MOE):
        for key, tried in of_base.items():
            found += values(golden, key, tried)
    for golden in (OLMOE, DEEPSEEK2, DEEPSEEK3, GLM):
        found += values(golden, "attribute_map", [{}])
    found.append((LLAMA, {"num_labels": None, "id2label": {"0": "x"}}, {}))
    moe = {
        "output_router_logits": [None, 0], "router_aux_loss_coef": [None, 0], "mlp_only_layers": [["0"], [0.0], [0.5], None, [True]],
        "num_experts": [None, 7.0], "num_local_experts": [None], "num_experts_per_tok": [None, 3.0], "norm_topk_prob": [None, 1],
        "decoder_sparse_step": [None, 1.0], "moe_intermediate_size": [None], "max_window_layers": [1.0, None],
    }
    for golden in (QWEN3_MOE, QWEN2_MOE):
        for key, tried in moe.items():
            found += values(golden, key, tried)
    found += values(OLMOE, "head_dim", [None]) + values(MIXTRAL, "num_local_experts", [None]) + values(OLMOE, "clip_qkv", ["3", 3, None])
    found += values(QWEN2, "max_window_layers", [1.0, None])
    latent = {
        "head_dim": [14, 4], "topk_method": [None], "topk_group": [None], "n_group": [None], "num_experts_per_tok": [None],
        "norm_topk_prob": [None], "rope_interleave": [None], "scoring_func": [None], "n_shared_experts": [None],
        "first_k_dense_replace": [None], "routed_scaling_factor": [None, 1], "q_lora_rank": [8.0], "moe_layer_freq": [None],
    }
    for golden in (DEEPSEEK2, DEEPSEEK3):
        for key, tried in latent.items():
            found += values(golden, key, tried)
    for golden in (DEEPSEEK2, DEEPSEEK3, GLM, QWEN3_MOE, MIXTRAL, OLMOE):
        found += [(golden, {f"-{key}": 0}, {}) for key in ("num_experts_per_tok", "topk_group", "n_group", "norm_topk_prob")]
    # Element types.
    for dtype in ("torch.bfloat16", "bf16", "BFloat16", "auto", "int8", "float", "half", "double", "float64", "float16", "bfloat16",
                  "float32", "complex64", "float8_e4m3fn", "long", "fp16", 16, ["float32"], {"": "float32"}, "", None):
        for keys in (("dtype", "torch_dtype"), ("torch_dtype",), ("dtype",)):
            found.append((LLAMA, {**dict.fromkeys(("-dtype", "-torch_dtype"), 0), **dict.fromkeys(keys, dtype)}, {}))
    for dtype, older in (("float32", 3), ("float32", "x"), ("float32", None), (3, "float32"), ("x", "float32"), (None, "float32"), (None, 3)):
        found.append((LLAMA, {"dtype": dtype, "torch_dtype": older}, {}))
    found += values(LLAMA, "dtype", [{"a": 1}, {"": 3}, {"a": "x"}, {"": "x"}, {"": "float16"}])
    # Rotary embeddings.
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    linear = {"rope_type": "linear", "factor": 2.0}
    def rope(**keys):
        return (LLAMA, {"-rope_parameters": 0, "-rope_scaling": 0, "-rope_theta": 0, **keys}, {})
    without = {key: value for key, value in yarn.items() if key != "factor"}
    found += [
        rope(rope_theta=50.0, rope_scaling=yarn), rope(rope_theta=50.0, rope_scaling=without),
        rope(rope_theta=50.0, rope_scaling={**yarn, "factor": None}), rope(rope_theta=50.0, rope_scaling={**yarn, "original_max_position_embeddings": None}),
        rope(rope_theta=50.0, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        rope(rope_theta=50.0, rope_parameters={"rope_type": "default", "rope_theta": None}),
        rope(rope_theta=50.0, rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
        rope(rope_theta=50.0, rope_parameters={"rope_type": "default", "rope_theta": 50}),
        rope(rope_theta=50.0, rope_scaling={**linear, "rope_theta": 70.0}), rope(rope_theta=50.0, rope_scaling=linear),
        rope(rope_theta=50.0, rope_scaling={"rope_type": "linear", "type": "yarn", "factor": 2.0}),
        rope(rope_theta=50.0, rope_scaling={"rope_type": "default", "type": "linear", "factor": 2.0}),
        rope(rope_theta=50.0, rope_scaling={"rope_type": "linear", "type": "linear", "factor": 2.0}),
        rope(rope_theta=50.0, original_max_position_embeddings=8, rope_scaling=yarn),
        rope(rope_theta=50.0, original_max_position_embeddings=16, rope_scaling=yarn),
        rope(rope_theta=50.0, rope_scaling={}), rope(rope_theta=50.0, rope_scaling=None), rope(rope_theta=50.0),
        rope(rope_theta=50.0, rope_parameters={}), rope(rope_theta=50.0, rope_scaling={"factor": 2.0}),
    ]
    # Quantization.
    q, group = "quantization_config", "quantization_config/config_groups/group_0"
    found += [(W4, {f"-{q}/ignore": 0}, {})] + values(W4, f"{q}/ignore", [None, [], ["Linear"], ["re:.*"], ["lm_head"]])
    found += [(W8, {f"-{q}/ignore": 0}, {})]
    for golden in (W4, W8):
        found += [(golden, {f"-{q}/quantization_status": 0}, {})]
        found += values(golden, f"{q}/quantization_status", [None, "frozen", "initialized", "compressed"])
        found += values(golden, f"{q}/format", [None, "int-quantized", "dense"]) + [(golden, {f"-{q}/format": 0}, {})]
        found += values(golden, f"{group}/format", [None, "int-quantized", "float-quantized", "pack-quantized"])
        found += values(golden, f"{group}/weights/dynamic", [True, None])
        found += values(golden, f"{q}/kv_cache_scheme", [{"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}])
        transform = {"config_groups": {"u": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_input"}]}}}
        found += values(golden, f"{q}/transform_config", [transform, None]) + values(golden, f"{q}/sparsity_config", [None])
    # Files beside the model, of the wrong kind.
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
                 "chat_template.json"):
        found += [(DENSE, {}, {name: text}) for text in ("{}", "[]", "null", "3", "\"x\"")]
    for key, value in (("version", "2.0"), ("version", None), ("model", None), ("model", {}), ("added_tokens", None), ("model", {"type": "X"})):
        found.append((DENSE, {}, {"tokenizer.json": {key: value}}))
    for key, value in (("tokenizer_class", 3), ("padding_side", "middle"), ("model_max_length", "x"), ("tokenizer_class", "NoSuch"),
                       ("truncation_side", "up"), ("padding_side", "left"), ("clean_up_tokenization_spaces", "x"), ("model_max_length", None)):
        found.append((DENSE, {}, {"tokenizer_config.json": {key: value}}))
    of_tokenizer = {
        "model_max_length": [True, -1, 1.5, [], {}, "64"], "auto_map": [None, 3, "x", [], ["x"], {}, {"a": 1}],
        "chat_template": [None, 3, "", [], {}, ["x"], [3], [{"name": "a", "template": "x"}]],
        "model_input_names": [None, True, 3, "x", [], {}, ["input_ids"]], "split_special_tokens": [None, True, False, 0, "x"],
        "fast_tokenizer_files": [None, 3, "x", [], ["x"], [3], {}], "init_inputs": [None, 3, "", [], {}], "tokenizer_object": [None, False, 0, "", {}],
        "model_specific_special_tokens": [None, False, "x", [], {}], "post_processor": [None, False, 0, "", [], {}, True, "x", {"a": 1}],
        "chat_control_tokens": [None, False, 3, "x", [], ["x"], {}], "all_special_ids": [None, [], 3],
        "extra_special_tokens": [None, False, 3, "x", [], ["x"], {}], "additional_special_tokens": [None, False, 3, "x", [], ["x"], {}],
        "bos_token": [None, 3, True, "", [], {}, {"content": "<s>"}, {"__type": "AddedToken", "content": "<s>"}], "pad_token": [3, [], {}],
        "added_tokens_decoder": [None, 3, [], {}, {"x": {"content": "y"}}, {"5": "y"}], "tokenizer_class": [False, 0, "", [], {}, None],
        "add_bos_token": [None, 3, "x", True], "add_special_tokens": [None, True, "x"], "clean_up_tokenization": [True], "decode": [None],
        "padding_side": [None, ""], "name_or_path": [3], "max_len": ["x"], "legacy": ["x"], "use_fast": ["x", False], "errors": [3],
        "processor_class": [3], "backend": [3], "_encode_plus": [None], "tokenize": [True], "get_vocab": [1], "pad": [True],
    }
    for key, tried in of_tokenizer.items():
        found += [(DENSE, {}, {"tokenizer_config.json": {key: value}}) for value in tried]
    for text in ("", "{", "x", "\ufeff{}", " ", "\ufeff", "{}x", "{'a': 1}", "{\"max_new_tokens\": NaN}"):
        names = ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"]
        found += [(DENSE, {}, {name: text}) for name in names + ["added_tokens.json"] * ("NaN" not in text)]
    for generation in ({"max_new_tokens": 0}, {"cache_implementation": "foo"}, {"early_stopping": "x"}, {"num_return_sequences": 3},
                       {"num_return_sequences": 3, "do_sample": True}, {"max_new_tokens": -1}, {"max_new_tokens": 5}, {"temperature": 0.5},
                       {"temperature": 0.0, "do_sample": True}, {"top_p": 2.0, "do_sample": True}, {"early_stopping": "never"}, {"early_stopping": True},
                       {"num_beams": 0}, {"num_beams": 3, "num_return_sequences": 3}, {"cache_implementation": "static"}, {"cache_implementation": None},
                       {"pad_token_id": -1}, {"max_length": "x"}, {"max_new_tokens": None}, {"max_new_tokens": "x"}, {"max_new_tokens": 5.5},
                       {"num_return_sequences": None}, {"eos_token_id": "x"}, {"unknown": 1}, {"num_return_sequences": 3, "do_sample": None},
                       {"compile_config": 3}, {"watermarking_config": {}}, {"num_beams": 2, "num_return_sequences": 3},
                       {"do_sample": "x"}, {"temperature": "x"}, {"output_scores": True}, {"return_dict_in_generate": True, "output_scores": True},
                       *({"assistant_ensemble_weight": value} for value in (None, 0, 0.5, 1, 1.0, "x", True)), {"compile_config": {}}, {"compile_config": None},
                       *({"early_stopping": value} for value in (0, 1, 0.0, 2, "", [], {})), {"max_new_tokens": True}, {"max_new_tokens": False},
                       *({"num_return_sequences": value} for value in ("x", [], True, 1.5, -1)), {"num_return_sequences": 3, "num_beams": "x"},
                       {"num_return_sequences": 3, "num_beams": 0}, {"num_return_sequences": 3, "do_sample": 0}, {"num_return_sequences": 3, "do_sample": ""},
                       *({"pad_token_id": value} for value in ("x", [], [0], True, 1.5)), {"cache_implementation": False}, {"cache_implementation": []},
                       *({"suppress_tokens": value} for value in (None, True, 3, "x", [], [3], {}, [[3]])),
                       *({"suppress_tokens": [2, 3], "forced_eos_token_id": value} for value in (2, [2], [2, 3], [2, 4], [], None, True, "x", 2.0)),
                       *({"suppress_tokens": [2, 3], "forced_bos_token_id": value} for value in (2, 4)), {"suppress_tokens": [], "forced_eos_token_id": 2},
                       *({"watermarking_config": value} for value in (None, False, 3, "x", [], {"a": 1}, {"bias": 1.0}, {"greenlist_ratio": 2.0}, {"greenlist_ratio": 0},
                         {"greenlist_ratio": "x"}, {"greenlist_ratio": None}, {"seeding_scheme": "x"}, {"seeding_scheme": "selfhash"}, {"context_width": 0},
                         {"context_width": 1.5}, {"context_width": True}, {"hashing_key": "x"})), *({name: None} for name in ("logits_processor", "streamer")),
                       {"logits_processor": []}, {"transformers_version": 3}, {"validate": 3}, {"to_dict": None}, {"do_sample": True, "top_k": "x"}):
        found.append((DENSE, {}, {"generation_config.json": json.dumps(generation)}))
    # Integers of more than 64 bits, of which transformers writes one into most tokenizers' configs.
    large = int(1e30)
    found += [(DENSE, {}, {"tokenizer_config.json": {"model_max_length": value}}) for value in (large, -large)]
    for generation in ({"max_new_tokens": large}, {"max_new_tokens": -large}, {"pad_token_id": large}, {"num_return_sequences": large}):
        found.append((DENSE, {}, {"generation_config.json": json.dumps(generation)}))
    for golden in (LLAMA, QWEN3_MOE):
        for key in ("max_position_embeddings", "eos_token_id", "bos_token_id"):
            found += values(golden, key, [large])
    for classes in ([None, None], [None, "x.Y"], ["x.Y", None], None, [], {}):
        found.append((DENSE, {}, {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": classes}}}))
    found += [(DENSE, {}, {"added_tokens.json": json.dumps({"<think>": place})}) for place in (2048, 2048.0, 2048.5)]
    # Keys that some families compute with.
    for golden in FAMILIES:
        found += values(golden, "num_key_value_heads", [None])
    for golden in (MIXTRAL, MISTRAL, QWEN3_MOE, OLMOE):
        for kind in (yarn, linear):
            for head in ({"-head_dim": 0}, {"head_dim": None}, {}):
                found.append((golden, {"-rope_parameters": 0, "rope_theta": 50.0, "rope_scaling": kind, **head}, {}))
    for golden in (QWEN2_MOE, QWEN3_MOE):
        window = {"-layer_types": 0, "use_sliding_window": True, "sliding_window": 4}
        found += [(golden, {**window, "max_window_layers": late}, {}) for late in (0, 1, 2)]
    # What older versions fail at.
    for golden in (DEEPSEEK2, DEEPSEEK3, LLAMA):
        null = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
        for scaling in ({"type": "default"}, {"rope_type": "default"}, {**null, "beta_fast": None}, {**null, "beta_slow": None}):
            found.append((golden, {"-rope_parameters": 0, "rope_theta": 50.0, "rope_scaling": scaling}, {}))
    for golden in FAMILIES:
        found += values(golden, "partial_rotary_factor", [None])
        found += values(golden, "tie_word_embeddings", [None]) + values(golden, "attention_bias", [None])
    found.append((DENSE, {}, {"generation_config.json": json.dumps({"early_stopping": None})}))
    for name in ("TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "Qwen3_5Tokenizer"):
        found.append((DENSE, {}, {"tokenizer_config.json": {"tokenizer_class": name}}))
    # A map that takes the place of the class's own.
    counts = {MIXTRAL: ("num_local_experts", "num_experts"), QWEN2_MOE: ("num_experts", "num_local_experts"),
              QWEN3_MOE: ("num_local_experts", "num_experts"), OLMOE: ("num_local_experts", "num_experts"),
              DEEPSEEK2: ("n_routed_experts", "num_experts"), DEEPSEEK3: ("n_routed_experts", "num_local_experts"),
              GLM: ("n_routed_experts", "num_local_experts")}
    for golden, keys in counts.items():
        said = json.loads((GOLDEN / golden / "config.json").read_text())
        count = next(said[key] for key in keys if key in said)
        for given in (keys[:1], keys[1:], keys):
            drop = {f"-{key}": 0 for key in keys if key not in given}
            found.append((golden, {"attribute_map": {}, **drop, **dict.fromkeys(given, count)}, {}))
    # Half a surrogate pair is a text to Python.
    found += [(golden, {"name_or_path": "a\ud800b"}, {}) for golden in (LLAMA, QWEN3_MOE)]
    found.append((FP8, {f"-{q}/weight_block_size": 0}, {}))
    return found


def headers():
    """(golden, texts of the header of its weights with what takes their place)"""
    router, experts = ("block_sparse_moe.gate", "mlp.gate"), ("block_sparse_moe.experts", "mlp.experts")
    found = [(MIXTRAL, edits) for edits in ([router], [experts], [router, experts])]
    said = '"__metadata__":{"format":"pt"}'
    for metadata in ('{"format":"np"}', '{"format":"tf"}', '{"format":"flax"}', '{"format":"mlx"}', '{"a":"b"}', "{}", "null"):
        found.append((LLAMA, [(said, f'"__metadata__":{metadata}')]))
    return found


def with_header(file, edits):
    """Replaces texts in the header of the safetensors file."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8:8 + length].decode()
    for old, new in edits:
        assert old in header, (file, old)
        header = header.replace(old, new)
    header = header.encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length:])


def edited(folder, golden, config, files, header=()):
    for file in (GOLDEN / golden).iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    said = json.loads((folder / "config.json").read_text())
    for path, value in config.items():
        *parents, key = path.lstrip("-").split("/")
        at = said
        for parent in parents:
            at = at[parent]
        if path.startswith("-"):
            at.pop(key, None)
        else:
            at[key] = value
    (folder / "config.json").write_text(json.dumps(said))
    for name, content in files.items():
        if isinstance(content, dict):
            content = json.dumps({**json.loads((folder / name).read_text()), **content})
        (folder / name).write_text(content)
    if header:
        with_header(folder / "model.safetensors", header)


def short(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def verdict(golden, config, files, header=()):
    with tempfile.TemporaryDirectory() as folder:
        edited(pathlib.Path(folder), golden, config, files, header)
        try:
            model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **EAGER)
            if missing := sorted(map(str, found["missing_keys"])):
                return f"starts at random: {missing[0]}"
            with torch.no_grad():
                logits = model(torch.tensor([[1, 5, 9, 13, 17, 21, 25, 29, 33, 37]])).logits[0, -1, :4].float()
            if not logits.isfinite().all():
                return "logits are not finite"
        except Exception as error:
            return short(error).replace(folder, "DIR")
        if (GOLDEN / golden / "tokenizer.json").exists():
            what = "AutoTokenizer"
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                what = "tokenizing"
                tokenizer("A few words, and 1 number.")
            except BaseException as error:
                return f"{what}: {short(error)}".replace(folder, "DIR")


def main():
    torch.manual_seed(0)
    path = HERE / "verdicts.json"
    known = json.loads(path.read_text()) if path.exists() else []
    known = {json.dumps(case["case"]): case for case in known}
    found, seen = [], set()
    tried = [{"golden": golden, "config": config, "files": files} for golden, config, files in cases()]
    for golden, header in headers():
        tried.append({"golden": golden, "config": {}, "files": {}, "header": header})
    for case in tried:
        key = json.dumps(case)
        if key in seen:
            continue
        seen.add(key)
        entry = known.get(key, {"case": case, "says": {}})
        # Remove the file to ask for all verdicts anew.
        if transformers.__version__ not in entry["says"]:
            entry["says"][transformers.__version__] = verdict(**case)
        found.append(entry)
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in found) + "\n]\n")


main()
