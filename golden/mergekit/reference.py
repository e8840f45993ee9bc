"""Router rows computed without mergekit: what its modes compute, and what ours are to compute."""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

EXPERTS = ("positive", "negative")


def token_ids(directory, prompts):
    """The ids of every prompt as mergekit makes them: the text of the BOS token before it, no other special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encode = lambda text: tokenizer((tokenizer.bos_token or "") + text, add_special_tokens=False).input_ids
    return [{kind: [encode(p) for p in expert.get(f"{kind}_prompts", [])] for kind in EXPERTS} for expert in prompts]


def of_experts(tokens, summarise, unit):
    """[experts, …]: a summary of the positive prompts minus that of the negative ones, of length 1 if `unit`."""
    rows = []
    for expert in tokens:
        row = summarise(expert["positive"])
        if expert["negative"]:
            row = row - summarise(expert["negative"])
        rows.append(row / row.norm(dim=-1, keepdim=True) if unit else row)
    return torch.stack(rows)


class Reference:
    def __init__(self, directory):
        # sdpa as in mergekit: what a row that sees padding alone becomes, and so hidden_avg, depends on the implementation
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.layers = self.model.model.layers

    def states(self, sequences, post_norm):
        """[layers, batch, tokens, hidden]: inputs of every layer, or of its feed-forward network."""
        length = max(map(len, sequences))
        ids = torch.tensor([[0] * (length - len(s)) + s for s in sequences])  # padding on the left
        mask = torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in sequences])
        seen = []
        modules = [layer.mlp if post_norm else layer for layer in self.layers]
        hooks = [m.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach())) for m in modules]
        with torch.no_grad():
            self.model(ids, attention_mask=mask, use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.stack(seen)

    def cheap_embed(self, tokens):
        """[experts, hidden]. mergekit: the SUM over tokens and prompts, unit length, for positive and negative prompts alone."""
        table = self.model.model.embed_tokens.weight.detach().double()

        def summarise(prompts):
            total = sum(table[prompt].sum(0) for prompt in prompts)
            return total / total.norm()

        return of_experts(tokens, summarise, unit=True).float()

    def hidden_last(self, tokens):
        """[layers, experts, hidden]. mergekit's `hidden`: each layer's input at the LAST token, averaged over prompts."""
        alone = lambda prompt: self.states([prompt], post_norm=False)[:, 0, -1]
        return of_experts(tokens, lambda prompts: torch.stack([alone(p) for p in prompts]).mean(0), unit=True).transpose(0, 1)

    def hidden_avg(self, tokens):
        """[layers, experts, hidden]. mergekit's `hidden_avg`: each layer's input averaged over the batch, padding INCLUDED."""
        return of_experts(tokens, lambda prompts: self.states(prompts, post_norm=False).mean((1, 2)), unit=True).transpose(0, 1)

    def hidden_post_norm(self, tokens, skip=0):
        """[layers, experts, hidden]. Ours: the feed-forward input, mean over prompts of the mean over tokens, not scaled.
        `skip` tokens at the start of a prompt are run but not averaged."""
        alone = lambda prompt: self.states([prompt], post_norm=True)[:, 0, skip:].mean(1)
        return of_experts(tokens, lambda prompts: torch.stack([alone(p) for p in prompts]).mean(0), unit=False).transpose(0, 1)
