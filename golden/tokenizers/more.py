"""More tokenizers, drawn at random: every kind of model, normalizer, pre-tokenizer, post-processor and added token beside settings.

    python golden/tokenizers/more.py

more.json has the form of cases.json. Trainers break ties in another way each time, so that it differs from run to run. What transformers cannot load, or cannot tokenize with, is left out.
"""
import copy, json, os, pathlib, random, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers as N, pre_tokenizers as P, processors, trainers
from transformers import AutoTokenizer

from make import content

HERE = pathlib.Path(__file__).parent
CORPUS = ["The quick brown fox jumps over the lazy dog. What is 12 plus 345? It's the user's thing.",
          "def f(x):\n    return x + 1\n\nÀ la carte, naïve café, Zürich; don't we'll THE the The"] * 4
TEXTS = ["The quick  brown fox.", " the user's\n\n<think>x</think>[PAD] <s>it</s> 123<|im_start|>user\nHi",
         "<|endoftext|>don't  <mask> cafe\u0301 café <x>東京<unk>ﬁ ② Ａ", "a<x>b <x> c user users [MASK]",
         "\u2581 \r\n\t\u00a0\u200bz", "", "thé THE\u0130 <X> <x >"]
SPECIALS = ["<unk>", "<s>", "</s>"]
ROLES = ["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token"]
NEW = ["<x>", "<think>", "[PAD]", "<mask>", "user", "[MASK]", "<|im_start|>", " <x>", "the", "THE", "é", "<X>"]


def trained(model, trainer, pre=None, norm=None):
    t = Tokenizer(model)
    if pre is not None:
        t.pre_tokenizer = pre
    if norm is not None:
        t.normalizer = norm
    t.train_from_iterator(CORPUS, trainer)
    j = json.loads(t.to_str())
    if j["model"]["type"] == "BPE" and j["model"].get("merges") and not isinstance(j["model"]["merges"][0], str):
        j["model"]["merges"] = j["model"]["merges"]
    return j


def make_bases():
    quiet = {"show_progress": False}
    unigram = dict(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", **quiet)
    bases = {
        "unigram": trained(models.Unigram(), trainers.UnigramTrainer(**unigram), P.Metaspace()),
        "pieces": trained(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIALS, **quiet), P.BertPreTokenizer(), N.Lowercase()),
        "levels": trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=SPECIALS, **quiet), P.Whitespace()),
        "bytes": trained(models.BPE(), trainers.BpeTrainer(vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(P.ByteLevel.alphabet()), **quiet), P.ByteLevel(add_prefix_space=False)),
        "bpe": trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=130, special_tokens=SPECIALS, **quiet), P.Metaspace()),
        "suffixed": trained(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainers.BpeTrainer(vocab_size=130, special_tokens=SPECIALS, end_of_word_suffix="</w>", **quiet), P.WhitespaceSplit()),
        "prefixed": trained(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"), trainers.BpeTrainer(vocab_size=130, special_tokens=SPECIALS, continuing_subword_prefix="##", **quiet), P.WhitespaceSplit()),
    }
    fallback = copy.deepcopy(bases["unigram"])
    fallback["model"]["byte_fallback"] = True
    fallback["model"]["vocab"] += [[f"<0x{b:02X}>", -9.0 - b / 300] for b in range(256)]
    bases["unigram of bytes"] = fallback
    fused = copy.deepcopy(bases["bpe"])
    fused["model"].update(byte_fallback=True, fuse_unk=True)
    vocab = fused["model"]["vocab"]
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    bases["bpe of bytes"] = fused
    return bases


BASES = make_bases()
state = lambda x: json.loads(x.__getstate__())
NORMALIZERS = [
    N.NFC(), N.NFD(), N.NFKC(), N.NFKD(), N.Lowercase(), N.StripAccents(), N.Sequence([N.NFD(), N.StripAccents()]), N.Nmt(), N.Strip(), N.Strip(left=False),
    N.BertNormalizer(), N.BertNormalizer(lowercase=False), N.BertNormalizer(strip_accents=False, handle_chinese_chars=False), N.BertNormalizer(clean_text=False),
    N.Replace(" ", "▁"), N.Replace(Regex(" {2,}"), " "), N.Replace("``", '"'), N.Prepend("▁"), N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
    N.Sequence([N.NFKC(), N.Lowercase(), N.Replace(Regex(r"\s+"), " ")]), N.ByteLevel(), N.Sequence([N.Nmt(), N.NFKC()]),
]
BEHAVIOURS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
PRE = [
    P.Whitespace(), P.WhitespaceSplit(), P.BertPreTokenizer(), P.Digits(), P.Digits(individual_digits=True), P.UnicodeScripts(), P.CharDelimiterSplit("e"),
    *[P.Metaspace(prepend_scheme=s, split=x) for s in ("always", "first", "never") for x in (True, False)],
    *[P.ByteLevel(add_prefix_space=a, use_regex=r) for a in (True, False) for r in (True, False)],
    *[P.Punctuation(b) for b in BEHAVIOURS],
    *[P.Split(Regex(r"\d{1,3}|\s+"), b, invert=i) for b in BEHAVIOURS for i in (True, False)],
    P.Split(" ", "merged_with_previous"), P.Split(Regex(r"'s|'t|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"), P.FixedLength(3),
    P.Sequence([P.Split(Regex(r"\p{N}{1,3}"), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)]),
    P.Sequence([P.WhitespaceSplit(), P.Metaspace()]), P.Sequence([P.Whitespace(), P.Punctuation("isolated"), P.Digits(True)]),
]


def template(ids):
    pairs = [("<s> $A </s>", "<s> $A </s> <s> $B </s>"), ("$A </s>", "$A $B </s>"), ("<s> $A", "<s> $A $B:1"), ("<s> <s> $A:0 </s>", "$A:0 $B:1")]
    single, pair = R.choice(pairs)
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=[("<s>", ids[0]), ("</s>", ids[1])])


def post(base):
    if base == "bytes":
        return R.choice([None, processors.ByteLevel(trim_offsets=False), processors.ByteLevel(add_prefix_space=True, trim_offsets=True)])
    return R.choice([None, template((1, 2)), template((2, 1)), processors.BertProcessing(("</s>", 2), ("<s>", 1)), processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
                     processors.Sequence([processors.ByteLevel(), template((1, 2))])])


R = random.Random(5)


def flags(special):
    return {"lstrip": R.random() < 0.3, "rstrip": R.random() < 0.3, "single_word": R.random() < 0.3, "normalized": R.random() < 0.4, "special": R.random() < special}


def size(base):
    return len(BASES[base]["model"]["vocab"])


def config(base):
    c = {"tokenizer_class": R.choice(["PreTrainedTokenizerFast"] * 6 + ["TokenizersBackend", "MyTokenizer", "PreTrainedTokenizer"])}
    if R.random() < 0.2:
        del c["tokenizer_class"]
    for role in R.sample(ROLES, R.randint(0, 4)):
        text = R.choice(SPECIALS + NEW[:4])
        c[role] = R.choice([text, text, text, {"__type": "AddedToken", "content": text, **flags(0.7)}, None])
    if R.random() < 0.5:
        c["added_tokens_decoder"] = {str(size(base) + i * R.randint(1, 2)): {"content": t, **flags(0.6)} for i, t in enumerate(R.sample(NEW, R.randint(0, 4)))}
    if R.random() < 0.3:
        c[R.choice(["extra_special_tokens", "additional_special_tokens"])] = [R.choice([t, {"__type": "AddedToken", "content": t, **flags(0.7)}]) for t in R.sample(NEW, R.randint(0, 3))]
    if R.random() < 0.15:
        c["split_special_tokens"] = R.random() < 0.7
    if R.random() < 0.15:
        c[R.choice(["add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "legacy"])] = R.random() < 0.6
    if R.random() < 0.1:
        c["model_max_length"] = R.choice([4, 1000000000000000019884624838656, 512])
    if R.random() < 0.1:
        c["image_token"] = R.choice(["<image>", "<x>"])
    return c


def drawn(index):
    base = R.choice(list(BASES))
    files = {}
    tok = {"base": base}
    if R.random() < 0.6:
        tok["normalizer"] = R.choice([None] + [state(n) for n in NORMALIZERS])
    if R.random() < 0.6:
        tok["pre_tokenizer"] = R.choice([None] + [state(p) for p in PRE])
    if R.random() < 0.6:
        p = post(base)
        tok["post_processor"] = None if p is None else state(p)
    if R.random() < 0.6:
        start, names = size(base), R.sample(NEW, R.randint(1, 4))
        added = BASES[base]["added_tokens"] + [{"id": start + i, "content": t, **flags(0.6)} for i, t in enumerate(names)]
        known = BASES[base]["model"]["vocab"]
        known = known if isinstance(known, dict) else {t: i for i, (t, _) in enumerate(known)}
        for a in added:
            a["id"] = known.get(a["content"], a["id"])
        tok["added_tokens"] = added
    files["tokenizer.json"] = tok if len(tok) > 1 else base
    if R.random() < 0.9:
        files["tokenizer_config.json"] = config(base)
    if R.random() < 0.2:
        files["special_tokens_map.json"] = {role: R.choice([t, {"content": t, **flags(0.7)}]) for role, t in zip(R.sample(ROLES, 2), R.sample(SPECIALS + NEW, 2))}
    if R.random() < 0.15:
        files["added_tokens.json"] = {t: size(base) + i for i, t in enumerate(R.sample(NEW, 2))}
    model = R.choice(["qwen3_moe", "mixtral", "llama", "olmoe", "deepseek_v3", "glm4_moe", "qwen2", None])
    if model:
        files["config.json"] = {"model_type": model}
    return {"name": f"drawn {index}", "files": files}


def main():
    cases, left_out = [], {}
    for index in range(130):
        c = drawn(index)
        with tempfile.TemporaryDirectory() as d:
            for name, value in c["files"].items():
                pathlib.Path(d, name).write_text(json.dumps(content(value, BASES), ensure_ascii=False))
            try:
                t = AutoTokenizer.from_pretrained(d)
                c["class"] = type(t).__name__
                c["ids"] = [[t(x)["input_ids"], t(x, add_special_tokens=False)["input_ids"]] for x in TEXTS]
                c["named"] = t.special_tokens_map
            except BaseException as e:  # the library panics, too
                left_out.setdefault(f"{type(e).__name__}: {str(e)[:90]}", []).append(index)
                continue
        base = c["files"]["tokenizer.json"]
        base = base if isinstance(base, str) else base["base"]
        if c["class"] != "TokenizersBackend" and BASES[base]["model"]["type"] != "BPE":
            # Its vocabulary is read as one of BPE, which is no use to anybody; moe-convert refuses it.
            left_out.setdefault("a class of BPE, another model", []).append(index)
            continue
        cases.append(c)
    for why, which in left_out.items():
        print(len(which), why)
    print(len(cases), "cases")
    used = {v if isinstance(v, str) else v["base"] for c in cases for v in [c["files"]["tokenizer.json"]]}
    head = {"transformers": transformers.__version__, "texts": TEXTS, "bases": {k: v for k, v in BASES.items() if k in used}}
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (HERE / "more.json").write_text(json.dumps(head, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
