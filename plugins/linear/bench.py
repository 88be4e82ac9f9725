"""Time linear layers on this GPU: `python -m plugins.linear.bench OUT.jsonl`; one line per layer and rows, and a table.

Each figure is the median over replays of a CUDA graph that goes through as many copies of the weight as overflow the L2
cache, divided by the copies. Beside it cuBLAS (torch's linear) in the same run.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch

from plugins.attention.bench import median_ms
from plugins.linear.skinny import skinny_linear

_COLD_BYTES = 200 << 20
_ROWS = (1, 8, 16, 32, 64)


class Layer(NamedTuple):
    model: str
    name: str
    out: int
    width: int

    @property
    def num_bytes(self) -> int:
        return 2 * self.out * self.width


def _model(name: str, hidden: int, qkv: int, attended: int, intermediate: int, vocab: int) -> list[Layer]:
    return [
        Layer(name, "qkv", qkv, hidden),
        Layer(name, "dense", hidden, attended),
        Layer(name, "gate_up", 2 * intermediate, hidden),
        Layer(name, "down", hidden, intermediate),
        Layer(name, "head", vocab, hidden),
    ]


LAYERS = [
    *_model("SmolLM2-135M", 576, 960, 576, 1536, 49152),
    *_model("Llama-3.2-1B", 2048, 3072, 2048, 8192, 128256),
    *_model("Qwen3-1.7B", 2048, 4096, 2048, 6144, 151936),
    *_model("Llama-3.1-8B", 4096, 6144, 4096, 14336, 128256),
]


def measure(layer: Layer, rows: int) -> dict[str, float]:
    """Microseconds of one application, ours and cuBLAS's, and what ours reads per second."""
    copies = max(2, min(64, -(-_COLD_BYTES // layer.num_bytes)))
    weights = torch.randn(copies, layer.out, layer.width, device="cuda").bfloat16()
    x = torch.randn(rows, layer.width, device="cuda").bfloat16()
    y = torch.empty(rows, layer.out, dtype=x.dtype, device="cuda")

    def ours() -> None:
        for weight in weights:
            skinny_linear(x, weight, None, y)

    def cublas() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)

    us, cublas_us = (median_ms(step) * 1e3 / copies for step in (ours, cublas))
    return {"us": us, "cublas_us": cublas_us, "tb_s": layer.num_bytes / us / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="models whose name holds this")
    arguments = parser.parse_args()
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    with arguments.out.open("a") as file:
        for layer in LAYERS:
            if arguments.only not in layer.model:
                continue
            cells = []
            for rows in _ROWS:
                figures = measure(layer, rows)
                file.write(json.dumps({**device, **layer._asdict(), "rows": rows, **figures}) + "\n")
                cells.append(f"{figures['us']:7.1f} {figures['cublas_us']:7.1f} {figures['tb_s']:5.2f}")
            print(f"{layer.model:13} {layer.name:8} {layer.out:6}x{layer.width:<6}" + " |".join(cells), flush=True)


if __name__ == "__main__":
    main()
