"""Writes strict.json: config keys of which transformers' strict configs take one JSON type only, by family.

For each key of a family's default config, what from_dict refuses of values of other types; keys that other rules speak of, such as
sizes that must divide each other, are left out. A `?` behind a key: null is taken, too.

    python strict.py            # transformers==5.23.0
"""
import json
import pathlib

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VALUES = {"int": 1, "float": 1.0, "bool": True, "text": "x", "list": [1], "null": None}


def refused(cls, base, key):
    found = set()
    for name, value in VALUES.items():
        try:
            cls.from_dict({**base, key: value})
        except Exception:
            found.add(name)
    return found


def kind(found):
    wanted = set(VALUES) - {"null"} - found
    return {("int",): "int", ("float",): "float", ("bool",): "bool"}.get(tuple(wanted))


transformers.logging.set_verbosity_error()
here = pathlib.Path(__file__).parent
families = {}
for folder in sorted(path.name for path in here.iterdir() if path.is_dir()):
    cls = CONFIG_MAPPING[folder]
    base = cls().to_dict()
    strict = {"float": [], "bool": [], "int": []}
    for key in sorted(base):
        if isinstance(base[key], dict) or key in ("model_type", "architectures", "transformers_version"):
            continue
        found = refused(cls, base, key)
        if kind(found):
            strict[kind(found)].append(key if "null" in found else key + "?")
    families[folder] = strict
(here / "strict.json").write_text(json.dumps(families, indent=1) + "\n")
