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
    **{f"mixed{ending}": lines([RECORDS[0], {"messages": MESSAGES}, {"conversations": TURNS}, {"input_ids": [5, 6, 7]}, RECORDS[1]])
       for ending in [".jsonl", ".md", ""]},
    "tabs.jsonl": "\t" + lines(RECORDS).replace("\n", " \t\n \t") + "\t\n\n\n",
    "line-separators.jsonl": "\n".join(json.dumps({"text": f"one\u2028two\u2029three\x85four {i}"}, ensure_ascii=False) for i in range(2)),
    "escapes.jsonl": '{"text": "a\\/b \\u00e9\\ud83d\\ude00 \\u0000 \\b\\f\\n\\r\\t \\"q\\" \\\\ end"}',
    "deep-elsewhere.jsonl": '{"meta": ' + "[" * 300 + "{}" + "]" * 300 + ', "text": "words and more words"}',
    "long-numbers.jsonl": '{"a": 1e400, "b": [-0, -0.0, 1180591620717411303424], "text": "words and more words", "c": -Infinity}',
    "parts.jsonl": lines([{"messages": [{"role": "user", "content": [{"type": "text", "text": "it's é"}, {"type": "image", "x": None, "y": [1.0, True]}]}]}]),
    "tool-calls.jsonl": lines([{"tools": [{"type": "function", "function": {"name": "f"}}], "messages": [
        {"role": "user", "content": "Hi there"}, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1e-5}}}]},
        {"role": "tool", "content": "{\"b\": 2}", "name": "f"}]}]),
    "no-tools.jsonl": lines([{"tools": None, "messages": MESSAGES}]),
    "more-keys.jsonl": lines([{"id": 7, "messages": [{**message, "name": "x", "weight": 0.5, "train": None} for message in MESSAGES], "split": "a"}]),
    "odd-roles.jsonl": lines([{"messages": [{"role": "developer", "content": "D"}, {"role": "a b", "content": 5}, {"role": "user", "content": [1.5, None, "x"]},
                                            {"role": "assistant", "content": True}, {"role": "tool", "content": {"k": "v"}}]}]),
    "same-message-key-again.jsonl": '{"messages": [{"role": "user", "content": "first words", "content": "second words"}]}',
    "ids.jsonl": lines([{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 10], "attention_mask": [1, 1], "labels": [-100, 10]}]),
    "mask-between.jsonl": lines([{"attention_mask": [0, 1, 0, 1, 1, 0], "input_ids": [5, 6, 7, 8, 9, 10]}]),
    "both-ids-and-text.jsonl": lines([{"input_ids": [5, 6, 7, 8], "attention_mask": [1, 1, 1, 1], "text": None}]),
    "two-members.jsonl.gz": lines(RECORDS) + "\n",
    "array-with-mark.json": "\ufeff" + json.dumps(RECORDS),
    "array-of-conversations.json": " \n\t" + json.dumps([{"messages": MESSAGES}, {"conversations": TURNS}], indent=1) + "\n\n",
    "array-crlf.json": json.dumps(RECORDS, indent=2).replace("\n", "\r\n"),
    "array-of-one.json": json.dumps(RECORDS[:1]),
    "array-with-brackets.json": json.dumps([{"text": 'a ] [ } { , "quoted" \\ and more'}, {"text": "[{]},"}, {"meta": [[1, {"a": [2]}]], "text": "words, words"}]),
    "array.ndjson": json.dumps(RECORDS),
    "crlf.txt": "some words here\r\nand there.\r\n\r\nMore\rof them.\n",
    "references.txt": "[1] Some reference, in words.\n[2] Another one.\n",
    "quoted.txt": '"A quoted line of words"\nand another.\n',
    "number.txt": "42\n43 44\n",
    "broken-record.txt": '{"text": "this line is cut\nand this is prose.\n',
    "table.csv": "name,text\n\"a\",\"some words, here\"\n",
    "notes.md": "# Title\n\n- [link](https://example.org)\n- {\"a\": 1} is JSON\n",
    "two-marks.txt": "\ufeff\ufeffsome words here and there.",
    "zero-byte.txt": "some words\0 here and there. ",
    "braces.txt": '{"this": is prose,\n not JSON}\n{}',
}


PROSE = (".txt", ".csv", "notes.md")


def text_of(name, content):
    """What Python reads of a file: utf-8-sig drops the mark."""
    return content.encode("utf-8", "surrogatepass").decode("utf-8-sig")


def records_of(text):
    text = text.strip()
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def ids_of(tokenizer, record):
    if record.get("input_ids"):
        mask = record.get("attention_mask") or [1] * len(record["input_ids"])
        return [token for token, seen in zip(record["input_ids"], mask) if seen]
    if record.get("text") is not None:
        return tokenizer(record["text"])["input_ids"]
    roles = {"human": "user", "gpt": "assistant"}
    turns = record.get("messages") or record["conversations"]
    messages = [turn if "role" in turn else {"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]
    text = tokenizer.apply_chat_template(messages, tools=record.get("tools"), chat_template=TEMPLATE, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def main():
    tokenizer = AutoTokenizer.from_pretrained(HERE / "../models/moe")
    FILES.mkdir(exist_ok=True)
    expected = {}
    for name, content in CONTENTS.items():
        data = content.encode("utf-8")
        # Two members, as gzip makes of files that are joined.
        parts = [data[: len(data) // 2], data[len(data) // 2 :]] if name.startswith("two-members") else [data]
        packed = b"".join(gzip.compress(part, mtime=0) for part in parts)
        (FILES / name).write_bytes(packed if name.endswith(".gz") else data)
        text = text_of(name, content)
        prose = name.removesuffix(".gz").endswith(PROSE) and name != "lines.jsonl.txt"
        documents = [tokenizer(text)["input_ids"]] if prose else [ids_of(tokenizer, record) for record in records_of(text)]
        # A document of one token, or none, has nothing to predict.
        expected[name] = [ids for ids in documents if len(ids) > 1]
    (HERE / "expected.json").write_text(json.dumps({"template": TEMPLATE, "documents": expected}) + "\n")


main()
