"""What the launches of a head's draft pass keep between them, and the parameters of one. Needs no GPU."""

import ctypes

import torch

from plugins.cuda.run import require_contiguous, require_shape
from plugins.draft_pass import DraftTexts, DraftWeights, DrawNoise
from plugins.draft_pass.plan import MOST_DIRECT, MOST_ROWS, SUMMARY_BLOCKS, HeadSizes, PassPlan, PassSizes
from plugins.tree_pack import PackedTree

_POINTERS = (
    "embedding", "context_proj", "rnn_w", "rnn_u", "state_proj", "first_context", "first_proj", "blocks", "lm_head",
    "context_bias", "rnn_bias", "first_bias", "block_biases", "vocab_ids", "slots", "hidden", "num_tokens", "history",
    "temperature", "seed", "sample_index", "token_ids", "parents", "depths", "ancestors", "states", "hiddens",
    "maxima", "logits", "beams", "summaries", "launches",
)  # fmt: skip
_COUNTS = (
    "requests", "num_nodes", "num_beams", "depth", "hidden_size", "exit_dim", "num_blocks", "num_draft", "max_rows",
    "chain_blocks", "select_blocks", "chain_resident", "head_resident", "has_silu", "is_direct", "history_len",
)  # fmt: skip
_TILED = ("context_proj", "rnn_w", "rnn_u", "state_proj", "first_context", "first_proj", "blocks", "lm_head")
_KEPT = ("embedding", "context_bias", "rnn_bias", "first_bias", "block_biases")


class DraftPassParams(ctypes.Structure):
    """Mirror of the struct in params.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int32) for name in _COUNTS),
    )


def tiled(weight: torch.Tensor) -> torch.Tensor:
    """Lay out a weight (..., out, in) as tiles.cuh says, its last tile filled up with zeros.

    Returns:
        (..., ceil(out / 16), in / 32, 2, 32, 8), contiguous.
    """
    missing = -weight.shape[-2] % 16
    padded = torch.nn.functional.pad(weight, (0, 0, 0, missing))
    parts = padded.unflatten(-2, (-1, 2, 8)).unflatten(-1, (-1, 4, 8))  # tile, half, row | step, quarter, column
    tiles: torch.Tensor = parts.movedim(-3, -5).flatten(-3, -2)
    return tiles.contiguous()


def _folded(weights: DraftWeights) -> dict[str, torch.Tensor]:
    """The first residual block over the context and the state rather than over their sum: see chain.cuh."""
    if len(weights.blocks) == 0:
        return {"first_context": weights.context_proj[:0], "first_proj": weights.state_proj[:0],
                "first_bias": weights.context_bias[:0]}  # fmt: skip
    block, bias = weights.blocks[0].float(), weights.block_biases[0].float()
    folded = {
        "first_context": block @ weights.context_proj.float(),
        "first_proj": block @ weights.state_proj.float(),
        "first_bias": block @ weights.context_bias.float() + bias,
    }
    return {name: tensor.to(weights.embedding.dtype) for name, tensor in folded.items()}


class PassState:
    """Weights as the kernel reads them, and the words that blocks hand each other.

    Args:
        weights: contiguous, of one 16-bit dtype, on one device.
        processors: thread blocks of a launch.
    """

    def __init__(self, weights: DraftWeights, processors: int) -> None:
        self.dtype, device = weights.embedding.dtype, weights.embedding.device
        (exit_dim, hidden_size), num_blocks = weights.state_proj.shape, len(weights.blocks)
        self.sizes = HeadSizes(hidden_size, exit_dim, num_blocks, len(weights.lm_head), len(weights.embedding))
        self._has_silu = weights.has_silu
        fields = {**weights._asdict(), **_folded(weights), "blocks": weights.blocks[1:]}
        self._weights = {name: tiled(fields[name]) for name in _TILED} | {name: fields[name] for name in _KEPT}
        for name, tensor in self._weights.items():
            require_shape("draft_pass", tuple(tensor.shape), self.dtype, **{name: tensor})
        self._weights["vocab_ids"] = weights.vocab_ids
        require_shape("draft_pass", (self.sizes.num_draft,), torch.int64, vocab_ids=weights.vocab_ids)
        require_contiguous("draft_pass", **self._weights)
        tiles = -(-self.sizes.num_draft // 16)
        words = {
            "states": 2 * MOST_ROWS * self.sizes.hidden_size // 2,
            "hiddens": (self.sizes.num_blocks + 1) * MOST_ROWS * self.sizes.exit_dim // 2,
            "maxima": MOST_ROWS * tiles * 2,
            "logits": MOST_ROWS * tiles * 16,
            "beams": MOST_ROWS,
            "summaries": 2 * MOST_DIRECT * SUMMARY_BLOCKS * (1 + MOST_DIRECT) * 2,
        }
        self._words = {name: torch.zeros(count, dtype=torch.int64, device=device) for name, count in words.items()}
        self._launches = torch.zeros(processors, dtype=torch.int32, device=device)

    def params(
        self,
        plan: PassPlan,
        sizes: PassSizes,
        texts: DraftTexts,
        noise: DrawNoise | None,
        tree: PackedTree,
    ) -> DraftPassParams:
        """Check the inputs of one launch and point to them.

        Raises:
            KernelError: a tensor of another shape, dtype or layout.
        """
        (num_slots, history_len), integers = texts.history.shape, {"num_tokens": texts.num_tokens}
        if noise is not None:
            integers |= {"seed": noise.seed, "sample_index": noise.sample_index}
            require_shape("draft_pass", (num_slots,), torch.float32, temperature=noise.temperature)
            require_contiguous("draft_pass", temperature=noise.temperature)
        require_shape("draft_pass", (num_slots, self.sizes.hidden_size), torch.float32, hidden=texts.hidden)
        require_shape("draft_pass", (sizes.requests,), torch.int64, slots=texts.slots)
        require_shape("draft_pass", (num_slots,), torch.int64, **integers)
        require_shape("draft_pass", (num_slots, history_len), torch.int64, history=texts.history)
        require_contiguous("draft_pass", **texts._asdict() | integers)
        given = {**self._weights, **self._words, **texts._asdict(), **tree._asdict(), "launches": self._launches}
        if noise is not None:
            given |= noise._asdict()
        pointers = {name: given[name].data_ptr() if name in given else None for name in _POINTERS}
        counts = {**sizes._asdict(), **self.sizes._asdict(), **plan._asdict(), "max_rows": MOST_ROWS,
                  "has_silu": int(self._has_silu), "history_len": history_len}  # fmt: skip
        return DraftPassParams(**pointers, **{name: counts[name] for name in _COUNTS})
