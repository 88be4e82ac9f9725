"""What runs a step's graph: ONNX Runtime, or a plan that TensorRT made of it. The backend over it is the same."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from runtime.spec import ModelSpec


class StepInputs(NamedTuple):
    """One pass of B requests with S new tokens each, on the session's device. See `runtime.formats.step_graph`."""

    token_ids: torch.Tensor  # (B, S) int64
    position_ids: torch.Tensor  # (B, S) int64
    write_starts: torch.Tensor  # (B,) int64
    attention_mask: torch.Tensor  # (B, 1, S, M) bool
    logit_rows: torch.Tensor  # (R,) int64, R >= 1


class StepOutputs(NamedTuple):
    """The caller owns both: no later pass overwrites them."""

    logits: torch.Tensor  # (R, V) float32, or wider where the weights are
    hidden: torch.Tensor  # (R, H), after the final norm, same dtype


class StepSession(Protocol):
    """A loaded graph or plan. One thread uses it, one pass at a time; passes run in order."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype  # of the caches
    output_dtype: torch.dtype  # of logits and hidden states
    cache_len: int  # Smax
    slices_cache: bool  # whether a mask may cover fewer keys than Smax; those past it are not read then

    def takes(self, num_requests: int, num_rows: int) -> bool:
        """Whether one pass may have B = num_requests and S = num_rows. The backend splits what it does not take.

        B = 1 is taken with every S up to the longest step that the engine's limits allow, and S up to the largest
        draft tree with every B up to the largest batch.
        """
        ...

    def run(self, inputs: StepInputs, caches: Sequence[torch.Tensor]) -> StepOutputs:
        """Run one pass. The caches are changed in place.

        Args:
            caches: K and V of layer 0, of layer 1, ...: (B, N_kv, Smax, D) each, contiguous, parts of larger tensors:
                their addresses differ from pass to pass.

        Raises:
            EnginewrightError: the pass failed; what the caches hold is unknown then.
        """
        ...
