"""The models that are measured, by the sizes that their checkpoints have."""

from runtime.spec import ModelSpec, RopeScaling

_LLAMA3 = RopeScaling("llama3", 32.0, 8192)

SHAPES = {
    "smollm2-135m": ModelSpec(
        "LlamaForCausalLM", vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64,
        intermediate_size=1536, max_position_embeddings=8192, rope_theta=100_000.0, tied_head=True,
    ),
    "llama-3.2-1b": ModelSpec(
        "LlamaForCausalLM", vocab_size=128256, hidden_size=2048, num_layers=16, num_heads=32, num_kv_heads=8,
        head_dim=64, intermediate_size=8192, max_position_embeddings=131072, rope_theta=500_000.0,
        rope_scaling=_LLAMA3, tied_head=True,
    ),
    "qwen3-1.7b": ModelSpec(
        "Qwen3ForCausalLM", vocab_size=151936, hidden_size=2048, num_layers=28, num_heads=16, num_kv_heads=8,
        head_dim=128, intermediate_size=6144, max_position_embeddings=131072, norm_eps=1e-6, rope_theta=1e6,
        qk_norm=True, tied_head=True,
    ),
    "llama-3.1-8b": ModelSpec(
        "LlamaForCausalLM", vocab_size=128256, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=8,
        head_dim=128, intermediate_size=14336, max_position_embeddings=131072, rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0, 8192),
    ),
}  # fmt: skip
