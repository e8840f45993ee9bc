"""Tokens that transformers makes with made-up tokenizers, for crates/moe-forward/src/tokenizer/golden.rs.

    pip install -r requirements.txt
    python golden/tokenizers/make.py

Each case is a folder of a few files: a tokenizer.json, and what stands beside it. cases.json has the files (a text is the name of
one of `bases`; `base` names one that other keys change), the ids with and without special tokens of each of `texts`, and the
special tokens by role. A case that transformers itself cannot load is an error here, not a case.
"""
import copy, json, os, pathlib, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
CORPUS = ["The quick brown fox jumps over the lazy dog. What is 12 plus 345? It's the user's <think>.",
          "def f(x):\n    return x + 1\n\nÀ la carte, naïve café, Zürich; don't we'll THE the The"] * 4
TEXTS = ["The quick brown fox", " the  user\n\n<think>x</think> [PAD] <s>it</s> 123<|im_start|>user\nHi<|im_end|>\n",
         "<|endoftext|>don't WE'LL [MASK]  <mask> e\u0301 caf\u00e9 <image>x <unk> 東京", "a<x>b <x> c", "\u2581 \r\n"]


def bpe(space):
    """A BPE tokenizer of a few dozen merges, of bytes (space is None) or of words that begin with ▁."""
    if space is None:
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=specials, show_progress=False)
    t.train_from_iterator(CORPUS, trainer)
    j = json.loads(t.to_str())
    if space:
        j["added_tokens"] = j["added_tokens"][:3]
        j["post_processor"] = json.loads(processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]).__getstate__())
    return j


BYTES, WORDS = bpe(None), bpe("▁")
PLAIN = json.loads(Tokenizer(models.WordLevel({"a": 0, "b": 1, "The": 2, "[UNK]": 3}, unk_token="[UNK]")).to_str())
PLAIN["pre_tokenizer"] = {"type": "Whitespace"}
BASES = {"bytes": BYTES, "words": WORDS, "plain": PLAIN}
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


def listed(base, *tokens):
    """The tokenizer `base` with more added tokens."""
    return {"base": base, "added_tokens": BASES[base]["added_tokens"] + [dict(id=i, **t) for i, t in tokens]}


CASES = []


def case(name, tokenizer="bytes", config=CONFIG, model="qwen3_moe", **files):
    files = {k.replace("__", "."): v for k, v in files.items()}
    files["tokenizer.json"] = tokenizer
    if config is not None:
        files["tokenizer_config.json"] = config
    if model is not None:
        files["config.json"] = {"model_type": model} if isinstance(model, str) else model
    CASES.append({"name": name, "files": files})


def with_config(**keys):
    return {**CONFIG, **keys}


IM = {"300": token("<|im_start|>"), "301": token("<|im_end|>")}
case("plain class")
case("no config", config=None, model=None)
case("no tokenizer config of a family with a class", config=None)
case("added_tokens_decoder", config=with_config(added_tokens_decoder=IM))
case("added_tokens_decoder out of order and with gaps",
     config=with_config(added_tokens_decoder={"400": token("<|im_start|>"), "350": token("<|im_end|>"), "9": token("<think>")}))
case("added_tokens_decoder without flags", config=with_config(added_tokens_decoder={"300": {"content": "<x>"}}))
case("added_tokens_decoder, not special, strips",
     config=with_config(added_tokens_decoder={"300": token("<x>", lstrip=True, special=False, normalized=True)}))
case("added_tokens_decoder, right strip", config=with_config(added_tokens_decoder={"300": token("<x>", rstrip=True)}))
case("added_tokens_decoder, single word", config=with_config(added_tokens_decoder={"300": token("user", single_word=True)}))
case("added_tokens_decoder makes a word of the vocabulary special", config=with_config(added_tokens_decoder={"70": token("the")}))
case("empty added_tokens_decoder hides other files", config=with_config(added_tokens_decoder={}),
     added_tokens__json={"<|im_start|>": 300}, special_tokens_map__json={"pad_token": "[PAD]"})
case("added_tokens.json", added_tokens__json={"<|im_start|>": 300, "<|im_end|>": 301})
case("added_tokens.json with special ones", config=with_config(additional_special_tokens=["<|im_start|>"], pad_token="[PAD]"),
     added_tokens__json={"[PAD]": 302, "<|im_end|>": 301, "<|im_start|>": 300})
case("special_tokens_map of texts", special_tokens_map__json={"pad_token": "[PAD]", "mask_token": "[MASK]"})
case("special_tokens_map of objects", special_tokens_map__json={"pad_token": token("[PAD]", lstrip=True), "unk_token": {"content": "<unk>", "normalized": True}})
case("special_tokens_map with additional ones", special_tokens_map__json={"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
case("roles of the model's own", config=with_config(image_token="<image>", think_token=token("<think>"), pad_token="<p>"))
case("roles of the model's own, beside a dictionary", config=with_config(
    think_token=token("<think>"), image_token="<image>", extra_special_tokens={"audio_token": "<audio>"}, box_token=token("<box>")))
case("special_tokens_map beside extra ones", config=with_config(extra_special_tokens=["<think>"]),
     special_tokens_map__json={"extra_special_tokens": ["</think>", {k: v for k, v in token("<x>", lstrip=True).items() if k != "special"}]})
case("special_tokens_map with a dictionary", special_tokens_map__json={"extra_special_tokens": {"image_token": "<image>"}})
case("special_tokens_map with a role of its own", special_tokens_map__json={"image_token": "<image>", "bos_token": "The"})
case("special_tokens_map with null", special_tokens_map__json={"eos_token": None})
case("extra_special_tokens list", config=with_config(extra_special_tokens=["<think>", "</think>"]))
case("extra_special_tokens typed", config=with_config(extra_special_tokens=[typed("<x>", lstrip=True, rstrip=True), "<think>"]))
case("extra_special_tokens dictionary", config=with_config(extra_special_tokens={"image_token": "<image>", "mask_token": "[MASK]"}))
case("additional_special_tokens", config=with_config(additional_special_tokens=["The", "quick", "<think>"]))
case("additional beside empty extra", config=with_config(additional_special_tokens=["<think>"], extra_special_tokens=[]))
case("additional beside extra", config=with_config(additional_special_tokens=["<think>"], extra_special_tokens=["</think>"]))
case("pad token of its own", config=with_config(pad_token="[PAD]"))
case("pad, mask, sep, cls and unk of their own",
     config=with_config(pad_token="[PAD]", mask_token="[MASK]", sep_token="<x>", cls_token="<s>", unk_token="<unk>"))
case("typed pad token", config=with_config(pad_token=typed("[PAD]", lstrip=True)))
case("an untyped object for a role of its own", config=with_config(image_token=token("<image>")))
case("typed token without flags", config=with_config(pad_token={"__type": "AddedToken", "content": "[PAD]"}))
case("special_tokens_map of typed objects", special_tokens_map__json={"pad_token": typed("[PAD]", lstrip=True), "image_token": typed("<image>")})
case("null tokens", config=with_config(bos_token=None, pad_token=None, extra_special_tokens=None))
case("a role of its own", config=with_config(image_token="<image>", think_token="<think>"))
case("model_specific_special_tokens", config=with_config(model_specific_special_tokens={"image_token": "<image>"}))
case("a special token out of the vocabulary", config=with_config(pad_token="the"))
case("split_special_tokens", config=with_config(split_special_tokens=True, pad_token="[PAD]", extra_special_tokens=["<think>"]))
case("split_special_tokens and a plain added token",
     config=with_config(split_special_tokens=True, added_tokens_decoder={"300": token("<x>", special=False)}))
case("add_bos_token", config=with_config(add_bos_token=True, add_eos_token=True))
case("add_bos_token false with a template", tokenizer="words", config={"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False})
case("add_prefix_space", config=with_config(add_prefix_space=True))
case("clean_up_tokenization_spaces", config=with_config(clean_up_tokenization_spaces=True))
case("padding of tokenizer.json names a token", tokenizer={"base": "bytes", "padding": {
    "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 300, "pad_type_id": 0, "pad_token": "[PAD]"}})
case("truncation of tokenizer.json", tokenizer={"base": "bytes", "truncation": {
    "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}})
case("added in tokenizer.json and elsewhere", tokenizer=listed("bytes", (300, token("<|im_start|>")), (301, token("<x>", special=False))),
     config=with_config(pad_token="[PAD]", additional_special_tokens=["<|im_end|>"]))
case("other flags in tokenizer_config.json", tokenizer=listed("bytes", (300, token("<x>"))),
     config=with_config(added_tokens_decoder={"300": token("<x>", lstrip=True, rstrip=True)}))
case("words of a WordLevel vocabulary", tokenizer="plain", config={"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "<mask>"}, model="mixtral")
case("fast_tokenizer_files", config=with_config(fast_tokenizer_files=["tokenizer.json", "tokenizer.4.0.json", "tokenizer.9.0.json"]),
     **{"tokenizer__4__0__json": listed("bytes", (300, token("<x>")))})
# Classes.
SP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
for name, cls, model, tok, extra in [
    ("LlamaTokenizer of words", "LlamaTokenizer", "llama", "words", SP),
    ("LlamaTokenizerFast of words", "LlamaTokenizerFast", "llama", "words", SP),
    ("LlamaTokenizer, legacy", "LlamaTokenizer", "llama", "words", {**SP, "legacy": True}),
    ("LlamaTokenizer without a space", "LlamaTokenizer", "llama", "words", {**SP, "add_prefix_space": False}),
    ("LlamaTokenizer with a pad token", "LlamaTokenizer", "llama", "words", {**SP, "pad_token": "[PAD]", "legacy": None}),
    ("LlamaTokenizer by its defaults", "LlamaTokenizer", "deepseek_v2", "words", {}),
    ("LlamaTokenizer, add_bos_token false", "LlamaTokenizer", "llama", "words", {**SP, "add_bos_token": False}),
    ("LlamaTokenizer, added_tokens_decoder", "LlamaTokenizer", "llama", "words", {**SP, "added_tokens_decoder": {
        "0": token("<unk>"), "1": token("<s>"), "2": token("</s>"), "340": token("<x>", lstrip=True)}}),
    ("LlamaTokenizer of mixtral", "LlamaTokenizer", "mixtral", "words", SP),
    ("LlamaTokenizer of mistral", "LlamaTokenizer", "mistral", "words", SP),
    ("LlamaTokenizer of bytes", "LlamaTokenizer", "llama", "bytes", {}),
    ("LlamaTokenizer of qwen3_moe", "LlamaTokenizer", "qwen3_moe", "words", SP),
    ("Qwen2Tokenizer", "Qwen2Tokenizer", "qwen3_moe", "bytes", {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "added_tokens_decoder": IM, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None}),
    ("Qwen2Tokenizer by its defaults", "Qwen2Tokenizer", "qwen2_moe", "bytes", {}),
    ("Qwen2Tokenizer with a space", "Qwen2TokenizerFast", "qwen3", "bytes", {"add_prefix_space": True}),
    ("another class of qwen2", "PreTrainedTokenizerFast", "qwen2", "bytes", {"pad_token": "[PAD]"}),
    ("Qwen2Tokenizer of llama", "Qwen2Tokenizer", "llama", "bytes", {}),
    ("Qwen3_5Tokenizer of llama", "Qwen3_5Tokenizer", "llama", "bytes", {}),
    ("GPT2Tokenizer", "GPT2Tokenizer", "llama", "bytes", {"add_prefix_space": True}),
    ("GPT2Tokenizer with a pad token", "GPT2Tokenizer", "qwen3_moe", "bytes", {"pad_token": "[PAD]"}),
    ("GPTNeoXTokenizer", "GPTNeoXTokenizer", "olmoe", "bytes", {"pad_token": "<|padding|>"}),
    ("GPTNeoXTokenizer writes its own template", "GPTNeoXTokenizer", "olmoe", {"base": "bytes", "post_processor": {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}}, {}),
    ("GemmaTokenizer", "GemmaTokenizer", "llama", "words", {}),
    ("GemmaTokenizer with its tokens", "GemmaTokenizer", "llama", "words", {**SP, "mask_token": None, "pad_token": "[PAD]"}),
    ("CohereTokenizer", "CohereTokenizer", "llama", "bytes", {"bos_token": "<|endoftext|>", "pad_token": typed("[PAD]", lstrip=True)}),
    ("a class that is not known", "MyTokenizer", "deepseek_v3", "bytes", {"pad_token": "[PAD]"}),
    ("a class that is not known of olmoe", "MyTokenizer", "olmoe", "bytes", {}),
    ("TokenizersBackend", "TokenizersBackend", "glm4_moe", "bytes", {"backend": "tokenizers", "pad_token": "[PAD]", "is_local": False}),
]:
    case(name, tokenizer=tok, config={"tokenizer_class": cls, **extra}, model=model)
case("tokenizer_class of config.json", config={"pad_token": "[PAD]"}, model={"model_type": "llama", "tokenizer_class": "Qwen2Tokenizer"})


def content(value, bases=BASES):
    """What a file holds: one of the bases by its name, as it is or with other keys, or what stands in the case."""
    if isinstance(value, str):
        return bases[value]
    if "base" in value:
        return {**bases[value["base"]], **{k: v for k, v in value.items() if k != "base"}}
    return value


def main():
    failed = []
    for c in CASES:
        with tempfile.TemporaryDirectory() as d:
            for name, value in c["files"].items():
                pathlib.Path(d, name).write_text(json.dumps(content(value), ensure_ascii=False))
            try:
                t = AutoTokenizer.from_pretrained(d)
            except Exception as e:
                failed.append(f"{c['name']}: {type(e).__name__}: {e}")
                continue
            c["class"] = type(t).__name__
            c["ids"] = [[t(x)["input_ids"], t(x, add_special_tokens=False)["input_ids"]] for x in TEXTS]
            c["named"] = t.special_tokens_map
    assert not failed, "\n".join(failed)
    out = {"transformers": transformers.__version__, "texts": TEXTS, "bases": BASES, "cases": CASES}
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in CASES)
    head = json.dumps({k: v for k, v in out.items() if k != "cases"}, ensure_ascii=False)
    (HERE / "cases.json").write_text(head[:-1] + ', "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
