"""What running decodes feel while a prompt of 8k tokens arrives, on a tiny model: `python -m bench.tiny_arrivals DIR`.

A tiny model's step is mostly the engine's own work, so this is the scheduler's figure. One thread, float32. A chunk
late in the prompt attends to 8k keys, which costs this model far more than the rest of its pass: so few tokens a step,
or chunks by the time that they take (docs/pacing.md).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.benchmark.arrivals import measure_arrivals
from runtime.benchmark.arrivals import CHUNK_BUDGETS
from runtime.formats.checkpoint import Checkpoint, CheckpointConfig, tensor_shapes
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import make_backend
from runtime.machine import cpu_model
from runtime.spec import ModelSpec

SPEC = ModelSpec(
    "LlamaForCausalLM", vocab_size=260, hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16,
    intermediate_size=128, max_position_embeddings=16384, tied_head=True,
)  # fmt: skip
PLAN = EnginePlan(
    dtype="float32", linear="onednn", max_batch_size=16, max_seq_len=9000, max_num_tokens=2048, block_size=32,
    num_blocks=2500,
)  # fmt: skip


def make_checkpoint(folder: Path) -> Checkpoint:
    """Random weights."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in tensor_shapes(SPEC).items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "config.json").write_text(CheckpointConfig(SPEC, "float32").to_json())
    return Checkpoint(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tiny_arrivals", description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        backend = make_backend(make_checkpoint(Path(folder)), PLAN)
        subtitle = f"tiny model, float32, one thread of {cpu_model()}"
        budgets = (2, 4, *CHUNK_BUDGETS)
        figures = measure_arrivals(backend, SPEC.vocab_size, 3, subtitle, out, lambda done, text: None, budgets)
    for row in figures["chunks"]:
        busy, idle = row["busy_p99_ms"], row["idle_p99_ms"]
        name = f"budget {row['budget']}" if row["itl_ratio"] is None else f"itl_ratio {row['itl_ratio']:g}"
        print(
            f"{name}: p99 {busy:.2f} ms, {busy / idle:.2f} of idle ({idle:.2f}); first token {row['ttft_ms']:.0f} ms, "
            f"{row['tokens_per_s']:.0f} tokens/s"
        )
    print(figures["burst"])


if __name__ == "__main__":
    main()
