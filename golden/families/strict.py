"""Writes strict.json: config keys of which transformers' strict configs take some JSON types only, by family.

For each key of a family's default config, what from_dict refuses of values of other types; keys that other rules speak of, such as
sizes that must divide each other, are left out. A `?` behind a key: null is taken, too. `several` has keys that take several types,
or lists of one.

    python strict.py            # transformers==5.23.0
"""
import json
import pathlib

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VALUES = {
    "int": 1, "float": 1.0, "bool": True, "text": "x", "ints": [1], "floats": [1.0], "texts": ["x"], "lists": [[1]],
    "object": {}, "null": None,
}
# Of these, more than the type counts, or transformers adds them to whatever there is.
OTHER_RULES = ("model_type", "architectures", "transformers_version", "dtype", "id2label", "label2id", "layer_types",
               "rope_parameters", "hidden_size", "num_hidden_layers", "hidden_act", "topk_method", "problem_type")


def taken(cls, base, key):
    found = set()
    for name, value in VALUES.items():
        try:
            cls.from_dict({**base, key: value})
            found.add(name)
        except Exception:
            pass
    return found


def whole_number(key):
    """Sizes that must divide each other are whole numbers all the same."""
    return key in ("hidden_size", "num_hidden_layers")


transformers.logging.set_verbosity_error()
here = pathlib.Path(__file__).parent
families = {}
for folder in sorted(path.name for path in here.iterdir() if path.is_dir()):
    cls = CONFIG_MAPPING[folder]
    base = cls().to_dict()
    strict = {"float": [], "bool": [], "int": [], "several": {}}
    for key in sorted(base):
        found = taken(cls, base, key)
        alone = found - {"null"}
        if whole_number(key) and found == {"int"}:
            strict["int"].append(key)
        elif key in OTHER_RULES or found == set(VALUES):
            continue
        elif len(alone) == 1 and (name := next(iter(alone))) in strict:
            strict[name].append(key + "?" * ("null" in found))
        else:
            strict["several"][key] = [name for name in VALUES if name in found]
    families[folder] = strict
(here / "strict.json").write_text(json.dumps(families, indent=1) + "\n")
