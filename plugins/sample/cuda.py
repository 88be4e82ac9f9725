"""Sampling on NVIDIA GPUs, from float32 logits: checks, sizes of grids, and the two launches."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_shape, run_kernel
from plugins.cuda.source import KernelSource

SOURCE = KernelSource("sample", "sample/sample.cu")
THREADS = 512  # SAMPLE_THREADS of sample.cuh
SHARED_BYTES = 16 * (16 + 8) + 2 * 256 * 16 + 4096 * 8 + 32  # SampleScratch
BEST_BYTES = 16
ROW_BYTES = 256 * 12 + 8  # RowSums
_BLOCKS = 264  # two on every multiprocessor of the largest GPUs
_CHUNK = 2048  # tokens that are worth a block

_DRAWS = {
    "temperature": torch.float32, "top_k": torch.int64, "top_p": torch.float32, "min_p": torch.float32,
    "seed": torch.int64, "sample_index": torch.int64,
}  # fmt: skip
_POINTERS = ("logits", *_DRAWS, "slots", "position", "depths", "bests", "sums", "out")


class SampleParams(ctypes.Structure):
    """Mirror of the struct in sample.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in ("vocab_size", "num_chunks", "rows_each", "unused")),
    ]


def sample_cuda(logits: torch.Tensor, *rest: torch.Tensor) -> None:
    """See `plugins.sample.sample`.

    Raises:
        KernelError: shapes, dtypes or strides that the kernels do not take.
    """
    *draws, position, out = rest
    num_rows = len(logits)
    given = dict(zip(_DRAWS, draws, strict=True))
    for (name, values), dtype in zip(given.items(), _DRAWS.values(), strict=True):
        require_shape("sample", (num_rows,), dtype, **{name: values})
    require_shape("sample", (num_rows,), torch.int64, position=position, out=out)
    _sample(logits, given, {"position": position}, out)


def sample_slots_cuda(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    sample_index: torch.Tensor,
    slots: torch.Tensor,
    roots: torch.Tensor,
    depths: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """See `plugins.sample.sample_slots`.

    Raises:
        KernelError: shapes, dtypes or strides that the kernels do not take.
    """
    given = dict(zip(_DRAWS, (temperature, top_k, top_p, min_p, seed, sample_index), strict=True))
    for (name, values), dtype in zip(given.items(), _DRAWS.values(), strict=True):
        require_shape("sample_slots", temperature.shape, dtype, **{name: values})
    require_shape("sample_slots", (len(slots),), torch.int64, slots=slots, roots=roots)
    optional = {} if depths is None else {"depths": depths}
    require_shape("sample_slots", (len(logits),), torch.int64, out=out, **optional)
    _sample(logits, given, {"slots": slots, "position": roots, **optional}, out)


def _sample(
    logits: torch.Tensor, draws: dict[str, torch.Tensor], places: dict[str, torch.Tensor], out: torch.Tensor
) -> None:
    """The two launches; allocates what one hands the other."""
    num_rows, vocab_size = logits.shape
    require_shape("sample", (num_rows, vocab_size), torch.float32, logits=logits)
    require_contiguous("sample", logits=logits, **draws, **places, out=out)
    if not num_rows:
        return
    num_chunks = max(1, min(_BLOCKS // num_rows, -(-vocab_size // _CHUNK)))
    bests = torch.empty(num_rows * num_chunks * BEST_BYTES, dtype=torch.uint8, device=logits.device)
    sums = torch.empty(num_rows * ROW_BYTES, dtype=torch.uint8, device=logits.device)
    named = {"logits": logits, **draws, **places, "bests": bests, "sums": sums, "out": out}
    params = SampleParams(
        **{name: tensor.data_ptr() for name, tensor in named.items()}, vocab_size=vocab_size, num_chunks=num_chunks,
        rows_each=num_rows // len(places["position"]),
    )  # fmt: skip
    for entry in ("sample_chunks_kernel", "sample_rows_kernel"):
        run_kernel(SOURCE, entry, (num_chunks, num_rows), THREADS, params, SHARED_BYTES)
