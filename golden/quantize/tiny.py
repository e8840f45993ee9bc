"""Random MoE models of the families, [256, 128] and [128, 256] matrices in their experts, saved as each installed transformers saves them."""
import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = dict(vocab_size=64, hidden_size=256, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_experts_per_tok=2)
MLA = dict(q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_key_value_heads=4)
SIGMOID = dict(n_routed_experts=4, moe_intermediate_size=128, n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, num_experts_per_tok=2)
FAMILIES = {
    "qwen3_moe": dict(num_experts=4, moe_intermediate_size=128, head_dim=64),
    "mixtral": dict(num_local_experts=4),
    "qwen2_moe": dict(num_experts=4, moe_intermediate_size=128, shared_expert_intermediate_size=128),
    "olmoe": dict(num_experts=4),
    "deepseek_v3": SIGMOID | MLA,
    "glm4_moe": SIGMOID | dict(head_dim=64, n_group=1),
}
TOKENS = [[1, 5, 9, 17, 33, 63, 2, 40, 41, 42, 7, 19], [11, 3, 3, 58]]


def build(family):
    """Norms near 1, router rows wide enough for clear choices, all else small; bfloat16 values."""
    torch.manual_seed(sum(family.encode()))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(COMMON | FAMILIES[family])))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) * (0.3 if name.endswith("gate.weight") else 0.06)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape) * 0.05)
    return model.to(torch.bfloat16).eval()
