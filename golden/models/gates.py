"""Writes what transformers measured (reference.json) as eval's --golden reads it: `python gates.py`."""
import json
from pathlib import Path

here = Path(__file__).parent
for model, measured in json.loads((here / "reference.json").read_text())["models"].items():
    row = lambda label, of: {"label": label, "tokens": of["tokens"], "loss": of["loss"]}
    domains = [row(label, of) for label, of in measured["domains"].items()]
    report = {"domains": domains, "all": row("all", measured["total"])}
    (here / f"{model}.eval.json").write_text(json.dumps({"report": report}, indent=1) + "\n")
