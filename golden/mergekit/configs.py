"""The mergekit-moe configurations: names of cases, and what stands in their YAML files."""
import pathlib

import transformers

DENSE = pathlib.Path(__file__).resolve().parent.parent / "models" / "dense"
LLAMAS = ("a", "b", "c", "d")
PROMPTS = [
    {"positive_prompts": ["The old house stood at the end of the street.", "She said that she would come back", "Once upon a time"]},
    {"positive_prompts": ["def add(a, b):\n    return a + b", "import os"],
     "negative_prompts": ["The old house stood at the end of the street."]},
    {"positive_prompts": ["La casa vieja estaba al final de la calle.", "El gato duerme"]},
    {"positive_prompts": ["12 + 30 = 42", "What is 7 * 8?"], "negative_prompts": ["def f(x): return x", "El gato duerme todo el dia"]},
]
LAST_IS_STOP = [{kind: [p.rstrip(".?") + "." for p in prompts] for kind, prompts in expert.items() if kind == "positive_prompts"}
                for expert in PROMPTS]


def even_prompts(tokens=6):
    """Prompts of one length, so that no padding enters."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DENSE)
    cut = lambda text: tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:tokens])
    even = [{kind: [cut(p) for p in prompts if len(tokenizer(p).input_ids) >= tokens] for kind, prompts in expert.items()}
            for expert in PROMPTS]
    assert all(len(tokenizer(p).input_ids) == tokens for e in even for prompts in e.values() for p in prompts)
    assert all(e["positive_prompts"] for e in even)
    return [{kind: prompts for kind, prompts in expert.items() if prompts} for expert in even]


def case(mode, prompts=({},) * 4, models=LLAMAS, base=None, **settings):
    experts = [{"source_model": f"inputs/{m}", **p} for m, p in zip(models, prompts)]
    return {"base_model": f"inputs/{base or models[0]}", "gate_mode": mode, "experts_per_token": 2, "experts": experts, **settings}


def same(model, **settings):
    """Four copies of one model: the function that the result ought to keep."""
    return case("random", models=(model,) * 4, **settings)


def cases():
    scaled = [dict(p, residual_scale=s) for p, s in zip(PROMPTS, (None, 0.5, 0.3, 1.0))]
    return {
        "cheap_embed": case("cheap_embed", PROMPTS),
        "cheap_embed_f32": case("cheap_embed", PROMPTS, dtype="float32"),
        "cheap_embed_scaled": case("cheap_embed", scaled),
        "base_d": case("cheap_embed", PROMPTS, models=("b", "c", "a", "b"), base="d"),
        "hidden": case("hidden", PROMPTS),
        "hidden_even": case("hidden", even_prompts()),
        "hidden_stop": case("hidden", LAST_IS_STOP),
        "hidden_avg": case("hidden_avg", PROMPTS),
        "hidden_avg_even": case("hidden_avg", even_prompts()),
        "random": case("random"),
        "uniform_random": case("uniform_random", PROMPTS),
        "mistral": same("mistral"),
        "qwen2": same("qwen2", shared_experts=[{"source_model": "inputs/qwen2"}]),
        "qwen3": same("qwen3"),
    }
