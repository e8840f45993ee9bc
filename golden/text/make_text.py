#!/usr/bin/env python3
"""Make the labelled text of the built-in models: english, code, spanish, arithmetic.

    apt-get install bible-kjv                      # bible-kjv, bible-kjv-text 4.38 (Debian 12)
    apt-get download sword-text-sparv              # 2.60-1
    dpkg -x sword-text-sparv_*.deb SPARV
    python make_text.py --spanish SPARV --stdlib .../lib/python3.11 --train /tmp/train/text

Writes <label>.heldout.txt and <label>.calibration.txt beside this file, and
<label>.train.txt under --train (not committed). The three parts never share a
passage: whole books, modules or arithmetic items are set aside. README.md has
the sources and licences.
"""
import argparse
import random
import re
import struct
import subprocess
import zlib
from pathlib import Path

HERE = Path(__file__).parent
HELDOUT_BOOKS = {"Ruth", "Jonah"}
CALIBRATION_BOOKS = {"Esther", "Joel"}
HELDOUT_MODULES = ["heapq.py"]
CALIBRATION_MODULES = ["functools.py", "fnmatch.py"]
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "site-packages",
    "turtledemo", "ensurepip", "tkinter", "__pycache__", "msilib", "_vendor",
}


def part_of(name, heldout, calibration):
    return "heldout" if name in heldout else "calibration" if name in calibration else "train"


def english():
    """King James text, one verse a line, chapters under their heading."""
    out = subprocess.run(["bible", "-l100000", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    parts = {"heldout": [], "calibration": [], "train": []}
    for chapter in re.split(r"\n\s*\n(?=[1-3]? ?[A-Z][A-Za-z ]+ \d+\n\n)", "\n\n" + out.strip()):
        heading, _, body = chapter.strip().partition("\n")
        book = heading.rsplit(" ", 1)[0]
        verses = [re.sub(r"^\s*\d+ ", "", line).strip() for line in body.splitlines() if line.strip()]
        text = heading + "\n\n" + "\n".join(verses) + "\n\n"
        parts[part_of(book, HELDOUT_BOOKS, CALIBRATION_BOOKS)].append(text)
    return {part: "".join(texts) for part, texts in parts.items()}


def spanish(root):
    """Reina-Valera 1909 out of a SWORD zText module (OSIS markup dropped)."""
    base = Path(root) / "usr/share/sword/modules/texts/ztext/spaRV1909eb"
    parts = {"heldout": [], "calibration": [], "train": []}
    for testament in ("ot", "nt"):
        packed = (base / f"{testament}.bzz").read_bytes()
        blocks = [
            zlib.decompress(packed[start : start + size])
            for start, size, _ in struct.iter_unpack("<III", (base / f"{testament}.bzs").read_bytes())
        ]
        for block, start, size in struct.iter_unpack("<IIH", (base / f"{testament}.bzv").read_bytes()):
            book = blocks[block].decode()
            name = re.search(r'osisID="(\w+)"[^>]*type="book"', book)
            title = re.search(r"<title[^>]*>(.*?)</title>", book, re.S)
            if not name or not title:
                continue
            osis = blocks[block][start : start + size].decode()
            osis = re.sub(r"<title.*?</title>", "", osis, flags=re.S)
            number = re.search(r'<chapter n="(\d+)"[^>]*sID', osis)
            verse = " ".join(re.sub(r"<[^>]+>", "", osis).split())
            part = parts[part_of({"Esth": "Esther"}.get(name[1], name[1]), HELDOUT_BOOKS, CALIBRATION_BOOKS)]
            if number:
                part.append(f"\n{title[1]} {number[1]}\n\n")
            if verse:
                part.append(verse + "\n")
    return {part: "".join(texts).lstrip("\n") for part, texts in parts.items()}


def code(stdlib):
    """CPython's standard library, modules in a seeded order, about 5 MB."""
    stdlib = Path(stdlib)
    whole = lambda names: "".join((stdlib / name).read_text() for name in names)
    files = sorted(
        path for path in stdlib.rglob("*.py")
        if not SKIPPED_FOLDERS & set(path.relative_to(stdlib).parts)
        and path.name not in HELDOUT_MODULES + CALIBRATION_MODULES
        and path.stat().st_size < 150_000
    )
    random.Random(1).shuffle(files)
    train, size = [], 0
    for path in files:
        text = path.read_text(encoding="utf-8", errors="strict") + "\n\n"
        if size + len(text) <= 5_000_000:
            train.append(text)
            size += len(text)
    return {"heldout": whole(HELDOUT_MODULES), "calibration": whole(CALIBRATION_MODULES), "train": "".join(train)}


def arithmetic_item(rng):
    """One line; every kind has its own numbers. Answers are right."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    return rng.choice([
        lambda: f"{a} + {b} = {a + b}",
        lambda: f"{a + b} - {b} = {a}",
        lambda: f"{a} * {c} = {a * c}",
        lambda: f"{a * c} / {c} = {a}",
        lambda: f"{a} + {b} + {c} = {a + b + c}",
        lambda: f"({a} + {b}) * {c} = {(a + b) * c}",
        lambda: f"{a} + {b} * {c} = {a + b * c}",
        lambda: f"{a} > {b} ? {a > b}",
        lambda: f"Ann has {a} pens and buys {b} more, so {a} + {b} = {a + b} pens.",
        lambda: f"{c} boxes of {a} nails: {c} * {a} = {c * a} nails.",
        lambda: f"Of {a + b} eggs {b} broke, so {a + b} - {b} = {a} are left.",
    ])()


def arithmetic():
    """Seeded items; an item of one part occurs in no other part."""
    rng, seen, parts = random.Random(2), set(), {}
    for part, size in (("heldout", 18_000), ("calibration", 36_000), ("train", 700_000)):
        lines, length = [], 0
        while length < size:
            line = arithmetic_item(rng)
            if line not in seen:
                lines.append(line)
                length += len(line) + 1
        seen.update(lines)
        parts[part] = "\n".join(lines) + "\n"
    return parts


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--spanish", required=True, help="where sword-text-sparv was unpacked")
    args.add_argument("--stdlib", required=True, help="the lib/python3.11 of CPython 3.11.7")
    args.add_argument("--train", required=True, type=Path, help="folder for the training text")
    args = args.parse_args()
    args.train.mkdir(parents=True, exist_ok=True)
    domains = {"english": english(), "code": code(args.stdlib), "spanish": spanish(args.spanish), "arithmetic": arithmetic()}
    for label, parts in domains.items():
        for part, text in parts.items():
            folder = args.train if part == "train" else HERE
            (folder / f"{label}.{part}.txt").write_text(text, encoding="utf-8")
            print(f"{label}.{part}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
