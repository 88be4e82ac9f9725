"""Time attention on this GPU: `python -m plugins.attention.bench OUT.jsonl`; one line per case, and a table.

Each figure is the median over replays of a CUDA graph that goes through as many layers' caches as overflow the L2
cache, divided by the layers: launches, plan and all fixed costs but the host's are in it. Beside it torch's SDPA over
contiguous keys of the same sizes, and how fast this GPU reads memory.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from plugins.attention import AttentionShape, attention, plan_attention

BLOCK_SIZE = 32
_COLD_BYTES = 256 << 20  # several times the L2 cache
_FEWEST_LAYERS = 16  # that one plan serves, as in the smaller models


@dataclass(frozen=True)
class Case:
    """`batch` requests of `rows` new tokens each, the last of `context`."""

    name: str
    batch: int
    rows: int
    context: int
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    tree: bool = False

    @property
    def kv_bytes(self) -> int:
        return 2 * self.batch * self.context * self.num_kv_heads * self.head_dim * 2

    @property
    def flop(self) -> int:
        """Of both products, over the keys that each row sees."""
        seen = sum(self.context - self.rows + 1 + row for row in range(self.rows))
        return 4 * self.batch * self.num_heads * self.head_dim * seen


_DECODE = ((1, 256), (1, 1024), (1, 4096), (1, 32768), (1, 131072), (8, 1024), (8, 4096), (32, 1024), (64, 4096))
_TREES = [(nodes, batch, context) for nodes in (12, 32, 64) for batch, context in ((1, 1024), (8, 4096))]
CASES = [
    *(Case(f"decode b{b} {c}", b, 1, c, head_dim=d) for d in (128, 64) for b, c in _DECODE),
    *(Case(f"tree {n} b{b} {c}", b, n, c, tree=True, head_dim=d) for d in (128, 64) for n, b, c in _TREES),
    *(Case(f"prefill {c}", 1, c, c, head_dim=d) for d in (128, 64) for c in (512, 2048, 8192)),
    Case("chunk 512 of 8192", 1, 512, 8192),
    Case("chunk 64 of 8192", 1, 64, 8192),
]


def layers_of(case: Case) -> int:
    """How many layers' caches a graph goes through, so that each is cold."""
    return max(_FEWEST_LAYERS, min(48, -(-_COLD_BYTES // case.kv_bytes)))


def median_ms(step: Callable[[], object], replays: int = 20) -> float:
    """Milliseconds of one replay of `step` as a graph."""
    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    graph.replay()
    for event in events:
        event.record()
        graph.replay()
    torch.cuda.synchronize()
    return float(statistics.median(a.elapsed_time(b) for a, b in pairwise(events)))


def time_kernel(case: Case, num_layers: int) -> float:
    """Microseconds per layer, the plan spread over the layers."""
    blocks = -(-case.context // BLOCK_SIZE)
    shape = (num_layers, case.batch * blocks, case.num_kv_heads, BLOCK_SIZE, case.head_dim)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    q = torch.randn(case.batch * case.rows, case.num_heads, case.head_dim, dtype=torch.bfloat16, device="cuda")
    out = torch.empty_like(q)
    tables = torch.randperm(case.batch * blocks, device="cuda").view(case.batch, blocks)
    starts = torch.arange(0, len(q) + 1, case.rows, device="cuda")
    lens = torch.full((case.batch,), case.context, device="cuda")
    layout = AttentionShape(case.num_heads, case.num_kv_heads, BLOCK_SIZE, None, case.head_dim)
    ancestors = None
    if case.tree:
        bits = torch.ones(case.rows, dtype=torch.int64) << torch.arange(case.rows) | 1
        ancestors = bits.expand(case.batch, -1).contiguous().cuda()

    def step() -> None:
        plan = plan_attention(layout, starts, lens, tables, q.dtype, ancestors, len(q), case.rows)
        for layer in range(num_layers):
            attention(q, keys[layer], values[layer], plan, case.head_dim**-0.5, out)

    return median_ms(step) * 1e3 / num_layers


def time_sdpa(case: Case, num_layers: int) -> float:
    """Microseconds per layer of torch's SDPA; trees and chunks as full attention, which costs it no mask."""
    shape = (num_layers, case.batch, case.num_kv_heads, case.context, case.head_dim)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    q = torch.randn(case.batch, case.num_heads, case.rows, case.head_dim, dtype=torch.bfloat16, device="cuda")
    causal = case.rows == case.context

    def step() -> None:
        for layer in range(num_layers):
            torch.nn.functional.scaled_dot_product_attention(
                q, keys[layer], values[layer], is_causal=causal, enable_gqa=True
            )

    return median_ms(step) * 1e3 / num_layers


def read_bandwidth() -> float:
    """TB/s of a sum over 2 GiB."""
    data = torch.ones(1 << 29, dtype=torch.float32, device="cuda")
    return data.nbytes / median_ms(lambda: data.sum(), 10) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    bandwidth = read_bandwidth()
    print(f"{device['device']}: reads {bandwidth:.2f} TB/s")
    with arguments.out.open("a") as file:
        for case in CASES:
            if arguments.only not in case.name:
                continue
            row = {**device, **measure(case), "read_tb_s": bandwidth}
            file.write(json.dumps(row) + "\n")
            print(
                f"{case.name:20} d{case.head_dim:<4}{row['us']:9.1f} us {row['tb_s']:6.2f} TB/s "
                f"{row['tflop_s']:6.0f} TFLOP/s   sdpa {row['sdpa_us']:9.1f} us",
                flush=True,
            )


def measure(case: Case) -> dict[str, Any]:
    """One case's figures, with its sizes."""
    num_layers = layers_of(case)
    us, sdpa_us = time_kernel(case, num_layers), time_sdpa(case, num_layers)
    rates = {"tb_s": case.kv_bytes / us / 1e6, "tflop_s": case.flop / us / 1e6}
    return {**asdict(case), "us": us, "sdpa_us": sdpa_us, **rates}


if __name__ == "__main__":
    main()
