#!/usr/bin/env python3
"""Make the fifth domain: the log of a small protocol, which the built-in models were never trained on.

    python make_protocol.py          # plain CPython 3.11 or later

Writes protocol.calibration.txt and protocol.heldout.txt beside this file. Sessions follow one grammar: a client connects to a
gateway, negotiates, moves frames of a stream with running numbers and checksums, and closes. What the grammar fixes (the order of
messages, numbers that go up by one, names that come back, sums) can be learned from a few thousand tokens; what it draws can't.
Sessions of one file occur in no other. The text is this project's own, under its licence.
"""
import random
from pathlib import Path

HERE = Path(__file__).parent
HOSTS = ["kestrel", "osprey", "merlin", "harrier", "goshawk", "hobby", "buzzard", "kite"]
STREAMS = ["telemetry", "firmware", "journal", "snapshot"]
CODECS = {"telemetry": "delta8", "firmware": "raw16", "journal": "utf8", "snapshot": "pack4"}
ENDS = ["drained", "quota reached", "peer left", "rekeyed"]


def session(rng, number):
    """A session; every line begins with the time, its number and who speaks."""
    host, stream = rng.choice(HOSTS), rng.choice(STREAMS)
    clock, lines, total = rng.randrange(0, 3000), [], 0
    window, first = rng.choice([4, 8, 16]), rng.randrange(10, 90)

    def say(who, text):
        nonlocal clock
        clock += rng.randrange(1, 4)
        lines.append(f"{clock // 60:02d}:{clock % 60:02d} #{number} {who} {text}")

    say(host, f"HELLO gateway proto=7 stream={stream}")
    say("gateway", f"WELCOME {host} codec={CODECS[stream]} window={window}")
    say(host, f"OPEN {stream} from={first}")
    for index in range(rng.randrange(2, 6)):
        size = rng.choice([32, 64, 128])
        total += size
        say(host, f"FRAME {first + index} size={size} sum={(first + index + size) % 97:02d}")
        if rng.random() < 0.15:
            say("gateway", f"NAK {first + index} resend")
            say(host, f"FRAME {first + index} size={size} sum={(first + index + size) % 97:02d} again")
        say("gateway", f"ACK {first + index} total={total}")
    say(host, f"CLOSE {stream} total={total} reason={rng.choice(ENDS)}")
    say("gateway", f"BYE {host}")
    return "\n".join(lines) + "\n\n"


def main():
    rng, seen, number = random.Random(5), set(), 100
    for part, size in (("heldout", 12_000), ("calibration", 36_000)):
        texts, length = [], 0
        while length < size:
            text = session(rng, number)
            number += 1
            if text not in seen:
                seen.add(text)
                texts.append(text)
                length += len(text)
        (HERE / f"protocol.{part}.txt").write_text("".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
