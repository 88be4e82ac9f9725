"""Which bytes of the canonical checkpoint each rank's file holds: tensor parallel over heads and features, pipeline
parallel over layers. Rank R is tensor rank R % tp of stage R // tp.

A worked example, 4 query and 2 key/value heads of size D over tp = 4: rank 1 holds query head 1 and, as two ranks share
each key/value head, head 0 of K and of V: rows [D, 2 D) of Q, [0, D) of K and [0, D) of V.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.tensorrt_llm.pieces import NewTensor, Piece, StoredTensor, zero_rows
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, layer_prefix, tensor_shapes
from runtime.spec import ModelSpec

COLUMN_PARALLEL = ("mlp.fc.weight", "mlp.gate.weight")  # split along the outputs, the rows
ROW_PARALLEL = ("attention.dense.weight", "mlp.proj.weight")  # along the inputs, the columns
DRAFT_HEAD = "drafter.lm_head.weight"


@dataclass(frozen=True)
class Ranks:
    """How a model is spread over GPUs."""

    tp_size: int
    pp_size: int

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size


def padded_vocabulary(vocab_size: int, tp_size: int) -> int:
    """The least multiple of `tp_size` that holds the vocabulary."""
    return -(-vocab_size // tp_size) * tp_size


def rank_tensors(
    spec: ModelSpec,
    weights: Mapping[str, StoredTensor],
    drafter: Mapping[str, StoredTensor],
    ranks: Ranks,
    rank: int,
) -> dict[str, NewTensor]:
    """The tensors of one rank's file, by name.

    Args:
        weights: the canonical checkpoint's.
        drafter: a ReDrafter head's, its LM head included; empty without one.
    """
    stage, shard = divmod(rank, ranks.tp_size)
    num_layers = spec.num_layers // ranks.pp_size
    is_last = stage == ranks.pp_size - 1
    tensors: dict[str, NewTensor] = {}
    if stage == 0:
        tensors[EMBEDDING] = _vocabulary(weights[EMBEDDING], ranks.tp_size, shard)
    for local in range(num_layers):
        source = layer_prefix(stage * num_layers + local)
        for name in (name for name in tensor_shapes(spec) if name.startswith(source)):
            part = name.removeprefix(source)
            tensors[layer_prefix(local) + part] = _layer_tensor(spec, part, weights[name], ranks.tp_size, shard)
    if is_last:
        head = weights[EMBEDDING if spec.tied_head else LM_HEAD]  # a tied head is written out as a clone
        tensors[FINAL_NORM] = _whole(weights[FINAL_NORM])
        tensors[LM_HEAD] = _vocabulary(head, ranks.tp_size, shard)
    for name, tensor in drafter.items():
        split = _vocabulary if name == DRAFT_HEAD else _rows
        tensors[name] = split(tensor, ranks.tp_size, shard)
    return tensors


def _layer_tensor(spec: ModelSpec, part: str, tensor: StoredTensor, tp_size: int, shard: int) -> NewTensor:
    if part in ("attention.qkv.weight", "attention.qkv.bias"):
        return _qkv(spec, tensor, tp_size, shard)
    if part in COLUMN_PARALLEL:
        return _rows(tensor, tp_size, shard)
    if part in ROW_PARALLEL:
        width = tensor.shape[1] // tp_size
        return NewTensor((tensor.shape[0], width), (tensor.columns(shard * width, (shard + 1) * width),))
    return _whole(tensor)  # norms


def _qkv(spec: ModelSpec, tensor: StoredTensor, tp_size: int, shard: int) -> NewTensor:
    """Q, K and V split each, then put together. Where ranks outnumber key/value heads, neighbours share one."""
    q_rows = spec.q_size // tp_size
    kv_heads = max(1, spec.num_kv_heads // tp_size)
    first_head = shard * spec.num_kv_heads // tp_size
    pieces = [tensor.rows(shard * q_rows, (shard + 1) * q_rows)]
    for begin in (spec.q_size, spec.q_size + spec.kv_size):
        start = begin + first_head * spec.head_dim
        pieces.append(tensor.rows(start, start + kv_heads * spec.head_dim))
    rows = q_rows + 2 * kv_heads * spec.head_dim
    return NewTensor((rows, *tensor.shape[1:]), tuple(pieces))


def _rows(tensor: StoredTensor, tp_size: int, shard: int) -> NewTensor:
    count = tensor.shape[0] // tp_size
    return NewTensor((count, *tensor.shape[1:]), (tensor.rows(shard * count, (shard + 1) * count),))


def _vocabulary(tensor: StoredTensor, tp_size: int, shard: int) -> NewTensor:
    """A shard of rows that are tokens, with zero rows past the last token."""
    count = padded_vocabulary(tensor.shape[0], tp_size) // tp_size
    start, stop = (min(end, tensor.shape[0]) for end in (shard * count, (shard + 1) * count))
    kept: tuple[Piece, ...] = (tensor.rows(start, stop),) if stop > start else ()
    return NewTensor((count, *tensor.shape[1:]), (*kept, *zero_rows(count - (stop - start), tensor.row_bytes)))


def _whole(tensor: StoredTensor) -> NewTensor:
    return NewTensor(tensor.shape, (tensor.rows(0, tensor.shape[0]),))
