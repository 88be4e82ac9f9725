"""The draft pass on a GPU: one cooperative launch for all trees of a step."""

from functools import lru_cache

import torch

from plugins.cuda.launch import max_shared_bytes
from plugins.cuda.run import ELEMENTS, processors, run_kernel
from plugins.cuda.source import KernelSource
from plugins.draft_pass import DraftTexts, DraftWeights, DrawNoise
from plugins.draft_pass.plan import Device, PassPlan, PassSizes, plan_pass
from plugins.draft_pass.state import PassState
from plugins.tree_pack import PackedTree

THREADS = 384


def source(dtype: torch.dtype) -> KernelSource:
    """What is compiled for heads of that dtype, of any size."""
    return KernelSource("draft_pass", "draft_pass/draft_pass.cu", (("ELEMENT", ELEMENTS[dtype]),))


class DraftPass:
    """Drafts with one head, on the device of its weights.

    Owns what the blocks of a launch hand each other, so launches of one object run one after another: on one stream, or
    ordered by events. A graph may hold any number of them.

    Args:
        weights: see `DraftWeights`; `plan.head_refusal` is None for them.
        device: what plans are made for; by default the GPU that holds the weights.

    Raises:
        KernelError: weights of different dtypes or layouts.
    """

    def __init__(self, weights: DraftWeights, device: Device | None = None) -> None:
        where = weights.embedding.device
        self._device = device or Device(processors(where), max_shared_bytes(where.index or 0))
        self._state = PassState(weights, self._device.processors)
        self._plan = lru_cache(maxsize=None)(lambda sizes: plan_pass(self._state.sizes, sizes, self._device))

    def refusal(self, sizes: PassSizes) -> str | None:
        """Return why it cannot draft that much at once, or None where it can."""
        plan = self._plan(sizes)
        return plan if isinstance(plan, str) else None

    def __call__(self, sizes: PassSizes, texts: DraftTexts, noise: DrawNoise | None) -> PackedTree:
        """Draft, on the current stream; no waiting.

        Args:
            sizes: for which `refusal` is None.
            noise: None where every request draws greedily.

        Raises:
            KernelError: a tensor of another shape, dtype or layout, or the driver refused the launch.
        """
        plan = self._plan(sizes)
        assert isinstance(plan, PassPlan), plan
        tree = PackedTree(*(texts.slots.new_empty(sizes.requests, sizes.num_nodes) for _ in range(4)))
        if sizes.requests == 0:
            return tree
        params = self._state.params(plan, sizes, texts, noise, tree)
        entry = f"draft_pass_{plan.group_rows}_kernel"
        run_kernel(
            source(self._state.dtype), entry, self._device.processors, THREADS, params, plan.shared_bytes,
            cooperative=True,
        )  # fmt: skip
        return tree
