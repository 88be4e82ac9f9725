"""Rows of losslessness: error of bf16 against fp32 with flips counted, and whether results depend on the rows beside.

What is drafted is verified among other rows than plain decoding has: where a kernel gives a row the same bits among any
number of rows, speculation changes nothing at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from bench.gpu.lines import Line, engine_plan, free, make_backend
from bench.gpu.models import RandomCheckpoint
from bench.gpu.passes import decode_batch
from bench.gpu.shapes import SHAPES
from plugins.attention import AttentionShape, attention, plan_attention
from plugins.linear.two_part import TwoPartLinear
from plugins.residual_rms_norm import residual_rms_norm
from plugins.rms_norm import rms_norm
from plugins.sample import sample
from plugins.silu_mul import silu_mul
from runtime.backends.base import EngineLimits
from runtime.backends.cuda import CudaBackend
from runtime.backends.torch_backend import TorchBackend
from runtime.batch import Batch
from runtime.benchmark.plain_decoder import PlainDecoder
from runtime.engine import Engine
from runtime.formats.bundle import open_bundle
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.manifest import ATTESTATIONS_DIR
from runtime.formats.reference import REFERENCE_FILE, Reference
from runtime.kv.cache import KVCache
from runtime.model.decoder import Decoder
from runtime.quality import TopLogits, compare_logits
from runtime.scoring import score
from runtime.spec import ModelSpec

ROWS = (1, 2, 4, 13, 64)
TOP = 32
_TEXTS, _TEXT_LEN = 8, 256
_BLOCK, _CONTEXT = 32, 300


def error(model: str, bundle: Path | None = None) -> Iterator[Line]:
    """Logits of bf16 against fp32 on the same weights: ours, and plain torch operations; texts read in one pass each.

    Real weights and text where there is a bundle; random ones have nearly even logits, which flip at a touch.
    """
    checkpoint, texts = _texts(model, bundle)
    expected = TopLogits.from_logits(_logits(_plain(checkpoint, torch.float32, Decoder), texts), TOP)
    free()
    plain = compare_logits(expected, _logits(_plain(checkpoint, torch.bfloat16, PlainDecoder), texts))
    free()
    ours = compare_logits(expected, _logits(make_backend(checkpoint), texts), plain.max_logit_diff)
    for system, figures in (("plain bf16", plain), ("enginewright", ours)):
        yield {"metric": "error", "system": system, "real": bundle is not None, **asdict(figures)}
    yield {"metric": "error_ratio", "unit": "x", "value": ours.mean_logit_diff / plain.mean_logit_diff}


def invariance(model: str) -> Iterator[Line]:
    """Rows' bits among 1, 2, 4, 13 and 64 rows, kernel by kernel and in passes by every path that the backend has."""
    spec = SHAPES[model]
    for name, run in _kernels(spec).items():
        yield from _compared(name, run)
    free()
    backend = make_backend(RandomCheckpoint(spec))
    backend.cache.storage.normal_()
    batches = {count: _decode(backend, count) for count in ROWS}
    for path in backend.paths(batches[1]):
        counts = tuple(count for count, batch in batches.items() if path in backend.paths(batch))
        yield from _compared(f"pass, {path}", partial(_logits_on, backend, path, batches), counts)
    yield from _compared("pass, as dispatched", lambda n: backend.forward(batches[n]).logits)


def _decode(backend: CudaBackend, count: int) -> Batch:
    return decode_batch(count, _CONTEXT, -(-_CONTEXT // backend.limits.block_size))


def _logits_on(backend: CudaBackend, path: str, batches: dict[int, Batch], count: int) -> torch.Tensor:
    return backend.forward_on(path, batches[count]).logits


def _compared(name: str, run: Callable[[int], torch.Tensor], counts: tuple[int, ...] = ROWS) -> Iterator[Line]:
    """`run` of so many rows gives (rows, ...): its rows beside the same ones among the most rows."""
    among_most = run(max(counts)).clone()
    for rows in counts:
        got = run(rows)
        difference = (got.double() - among_most[:rows].double()).abs().max().item()
        yield {"metric": "invariance", "kernel": name, "rows": rows, "equal": torch.equal(got, among_most[:rows]),
               "max_difference": difference}  # fmt: skip


def _kernels(spec: ModelSpec) -> dict[str, Callable[[int], torch.Tensor]]:
    """Of every op, how it is run on its first n of 64 rows."""
    x, delta = (_normal(max(ROWS), spec.hidden_size) for _ in range(2))
    weight, hidden = _normal(spec.hidden_size), _normal(max(ROWS), spec.hidden_size).float()
    fused = _normal(max(ROWS), 2 * spec.intermediate_size)
    head = TwoPartLinear(_normal(spec.vocab_size, spec.hidden_size))
    return {
        "rms_norm": lambda n: rms_norm(hidden[:n], weight, 1e-5, torch.empty_like(x[:n])),
        "residual_rms_norm": lambda n: residual_rms_norm(
            hidden[:n].clone(), delta[:n], weight, 1e-5, torch.empty_like(x[:n])
        ),
        "silu_mul": lambda n: silu_mul(fused[:n], fused.new_empty(n, spec.intermediate_size)),
        "attention, decode": _attention(spec),
        **_linears(spec),
        "LM head": lambda n: head(hidden[:n]),
        "sample": _sample(_normal(max(ROWS), spec.vocab_size).float()),
    }


def _linears(spec: ModelSpec) -> dict[str, Callable[[int], torch.Tensor]]:
    """Each layer of the model by cuBLAS; our kernels for few rows are in the passes."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    shapes = {"qkv": (spec.q_size + 2 * spec.kv_size, hidden), "dense": (hidden, spec.q_size),
              "gate_up": (2 * intermediate, hidden), "down": (hidden, intermediate)}  # fmt: skip
    runs: dict[str, Callable[[int], torch.Tensor]] = {}
    for name, (out, width) in shapes.items():
        x, weight = _normal(max(ROWS), width), _normal(out, width)
        runs[f"{name}, cuBLAS"] = partial(_cublas, x, weight)
    return runs


def _cublas(x: torch.Tensor, weight: torch.Tensor, n: int) -> torch.Tensor:
    return torch.nn.functional.linear(x[:n], weight)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def _sample(logits: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """With a temperature and two filters, another seed for each row."""

    def run(n: int) -> torch.Tensor:
        ones, seeds = torch.ones(n, device="cuda"), torch.arange(n, device="cuda")
        same = torch.zeros_like(seeds)
        return sample(logits[:n], ones, same + 50, 0.9 * ones, 0 * ones, seeds, same, same, torch.empty_like(seeds))

    return run


def _attention(spec: ModelSpec) -> Callable[[int], torch.Tensor]:
    """Requests of many lengths, from one that is one split long to several."""
    most = max(ROWS)
    contexts = 700 - 9 * torch.arange(most, device="cuda")
    blocks_each = -(-int(contexts.max()) // _BLOCK)
    cache = torch.randn(2, most * blocks_each, spec.num_kv_heads, _BLOCK, spec.head_dim, device="cuda").bfloat16()
    tables = torch.randperm(most * blocks_each, device="cuda").view(most, blocks_each)
    q = torch.randn(most, spec.num_heads, spec.head_dim, device="cuda").bfloat16()
    shape = AttentionShape(spec.num_heads, spec.num_kv_heads, _BLOCK, None, spec.head_dim)

    def run(n: int) -> torch.Tensor:
        starts = torch.arange(n + 1, device="cuda")
        plan = plan_attention(shape, starts, contexts[:n], tables[:n], q.dtype, None, n, 1)
        return attention(q[:n], cache[0], cache[1], plan, spec.head_dim**-0.5, torch.empty_like(q[:n]))

    return run


def _texts(model: str, bundle: Path | None) -> tuple[Checkpoint | RandomCheckpoint, list[list[int]]]:
    if bundle is None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, SHAPES[model].vocab_size, (_TEXTS, _TEXT_LEN), generator=generator)
        return RandomCheckpoint(SHAPES[model]), drawn.tolist()
    opened = open_bundle(bundle)
    reference = Reference.load(opened.path / ATTESTATIONS_DIR / "verify" / REFERENCE_FILE)
    ids = reference.text_ids
    starts = range(0, len(ids) - _TEXT_LEN + 1, _TEXT_LEN)
    return opened.checkpoint(), [ids[start : start + _TEXT_LEN] for start in starts][:_TEXTS]


def _plain(checkpoint: Checkpoint | RandomCheckpoint, dtype: torch.dtype, kind: type[Decoder]) -> TorchBackend:
    plan = engine_plan(max_seq_len=2 * _TEXT_LEN, num_blocks=64, max_batch_size=2)
    decoder = kind(checkpoint, dtype, "torch", plan.max_seq_len, "cuda")  # type: ignore[arg-type]
    cache = KVCache(checkpoint.spec, plan.num_blocks, plan.block_size, dtype, "cuda")
    cache.storage.zero_()
    limits = EngineLimits(
        plan.max_batch_size, plan.max_seq_len, plan.max_num_tokens, plan.num_blocks, plan.block_size
    )  # fmt: skip
    return TorchBackend(decoder, cache, limits)


def _logits(backend: TorchBackend, texts: list[list[int]]) -> Iterator[torch.Tensor]:
    """(N, V) float32 of each text, on the host."""
    engine = Engine(backend)
    return (score(engine, text).float().cpu() for text in texts)
