"""The model's shape: V3.2's kernel-facing sizes, everything else small."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Field names are those of config.json where one exists."""

    vocab_size: int = 4096
    hidden_size: int = 384
    num_hidden_layers: int = 5
    first_k_dense_replace: int = 1
    intermediate_size: int = 768
    moe_intermediate_size: int = 128
    n_routed_experts: int = 16
    num_experts_per_tok: int = 4
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 2.5
    num_attention_heads: int = 8
    q_lora_rank: int = 192
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 16
    index_head_dim: int = 128
    index_topk: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_factor: float = 40.0
    rope_original: int = 4096  # original_max_position_embeddings
    max_position_embeddings: int = 32768

    @property
    def softmax_scale(self) -> float:
        """The attention scale with YaRN's factor: 0.1352337789 for V3.2's sizes."""
        mscale = 0.1 * math.log(self.rope_factor) + 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * mscale * mscale

    def rope_frequencies(self) -> list[float]:
        """Angle per position of each of the rope dimension's pairs, with YaRN."""
        d, base = self.qk_rope_head_dim, self.rope_theta

        def dimension_of(rotations: float) -> float:
            return d * math.log(self.rope_original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(dimension_of(32)), 0), min(math.ceil(dimension_of(1)), d - 1)
        out = []
        for i in range(d // 2):
            frequency, ramp = base ** (-2 * i / d), min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
            out.append(frequency * (1 - ramp) + frequency / self.rope_factor * ramp)
        return out

    def to_hugging_face(self, fp8: bool) -> dict[str, object]:
        """The content of config.json."""
        own = ("rope_factor", "rope_original")
        out: dict[str, object] = {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"}
        out |= {k: v for k, v in dataclasses.asdict(self).items() if k not in own}
        out |= {
            "num_key_value_heads": self.num_attention_heads, "moe_layer_freq": 1, "n_shared_experts": 1, "topk_method": "noaux_tc",
            "scoring_func": "sigmoid", "norm_topk_prob": True, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
            "bos_token_id": 0, "eos_token_id": 1, "num_nextn_predict_layers": 0, "torch_dtype": "bfloat16",
            "rope_scaling": {"type": "yarn", "factor": self.rope_factor, "original_max_position_embeddings": self.rope_original,
                             "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        }
        if fp8:
            out["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                                          "activation_scheme": "dynamic", "scale_fmt": "ue8m0"}
        return out


TINY_FOR_TESTS = ModelConfig(vocab_size=4096, hidden_size=128, num_hidden_layers=3, intermediate_size=128, n_routed_experts=8, n_group=4,
                             topk_group=2, num_experts_per_tok=2, num_attention_heads=2, q_lora_rank=128, index_n_heads=4, index_topk=32)
