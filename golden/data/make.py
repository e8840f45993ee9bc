"""Writes data files as tools write them, and what Python's json and transformers' tokenizer make of each: files/ and expected.json.

    /tmp/goldens/bin/python make.py
"""

import gzip
import json
import math
import pathlib

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
FILES = HERE / "files"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ '\n' }}{% endfor %}"
SENTENCE = "The quick brown fox jumps over the lazy dog, number %d, in “Ärger” and 日本語. "


def lines(records):
    return "\n".join(json.dumps(record) for record in records)


RECORDS = [{"text": SENTENCE % number * 2} for number in range(4)]
TURNS = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello."}]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"},
            {"role": "assistant", "content": "Hello."}]
CONTENTS = {
    "plain.jsonl": lines(RECORDS),
    "UPPER.JSONL": lines(RECORDS),
    "lines.ndjson": lines(RECORDS),
    "lines.jsonl.txt": lines(RECORDS),
    "lines.json": lines(RECORDS),
    "no-ending": lines(RECORDS),
    "crlf.jsonl": lines(RECORDS).replace("\n", "\r\n"),
    "blank-lines.jsonl": "\n \n" + lines(RECORDS).replace("\n", "\n\n  \n") + "\n",
    "byte-order-mark.jsonl": "\ufeff" + lines(RECORDS),
    "byte-order-mark.txt": "\ufeffsome words here and there.\nMore of them.",
    "array.json": json.dumps(RECORDS),
    "array.jsonl": json.dumps(RECORDS),
    "pretty-array.json": json.dumps(RECORDS, indent=2),
    "zipped.jsonl.gz": lines(RECORDS),
    "zipped-array.json.gz": json.dumps(RECORDS),
    "zipped.txt.gz": "some words here and there.\nMore of them.",
    "nan.jsonl": lines([{"score": math.nan, **record, "scores": [math.inf, -math.inf]} for record in RECORDS]),
    "surrogate-elsewhere.jsonl": lines([{**record, "id": "\ud83d"} for record in RECORDS]),
    "surrogate-pair.jsonl": lines([{"text": "fine 😀 emoji"}]),
    "same-key-again.jsonl": '{"text": "a b c d", "text": "e f g h i j k"}\n',
    "empty-text.jsonl": lines([{"text": ""}, *RECORDS]),
    "text-null.jsonl": lines([{"text": None, "messages": MESSAGES}]),
    "messages.jsonl": lines([{"messages": MESSAGES}] * 2),
    "sharegpt.jsonl": lines([{"conversations": TURNS}] * 2),
    "sharegpt-roles.jsonl": lines([{"conversations": MESSAGES}]),
    "boolean-mask.jsonl": lines([{"input_ids": [5, 6, 7, 8], "attention_mask": [True, True, True, False]}]),
    "number-mask.jsonl": lines([{"input_ids": [5, 6, 7, 8], "attention_mask": [0.0, 1.0, 1, 2]}]),
    "zero-byte.txt": "some words\0 here and there. ",
    "braces.txt": '{"this": is prose,\n not JSON}\n{}',
}


def text_of(name, content):
    """What Python reads of a file: utf-8-sig drops the mark."""
    return content.encode("utf-8", "surrogatepass").decode("utf-8-sig")


def records_of(text):
    text = text.strip()
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def ids_of(tokenizer, record):
    if record.get("input_ids"):
        return [token for token, seen in zip(record["input_ids"], record["attention_mask"]) if seen]
    if record.get("text") is not None:
        return tokenizer(record["text"])["input_ids"]
    roles = {"human": "user", "gpt": "assistant"}
    turns = record.get("messages") or record["conversations"]
    messages = [turn if "role" in turn else {"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def main():
    tokenizer = AutoTokenizer.from_pretrained(HERE / "../models/moe")
    FILES.mkdir(exist_ok=True)
    expected = {}
    for name, content in CONTENTS.items():
        data = content.encode("utf-8")
        (FILES / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        text = text_of(name, content)
        prose = name.removesuffix(".gz").endswith(".txt") and name != "lines.jsonl.txt"
        documents = [tokenizer(text)["input_ids"]] if prose else [ids_of(tokenizer, record) for record in records_of(text)]
        # A document of one token, or none, has nothing to predict.
        expected[name] = [ids for ids in documents if len(ids) > 1]
    (HERE / "expected.json").write_text(json.dumps({"template": TEMPLATE, "documents": expected}) + "\n")


main()
