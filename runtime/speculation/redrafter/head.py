"""The draft head's arithmetic, over packed weights to draft with or plain ones to train.

Source: Zhang et al., "Recurrent Drafter for Fast Speculative Decoding" (2024), section 3.1, and Apple's code. With c
the target's final hidden state that emitted the first token x_1, and e the target's input embedding:

    s_0 = 0,  s_t = SiLU(W e(x_t) + U s_{t-1} + b)
    y_t = input_proj [c, s_t],  then y <- y + SiLU(L_i y + l_i) for each residual block
    logits of x_{t+1} = (rows of the LM head) y_t

The dialect `tensorrt_llm` is what TensorRT-LLM's graph computes: s_1 = W e(x_1), s_t = W e(x_t) + U s_{t-1} + b.
"""

from collections.abc import Mapping
from typing import Protocol

import torch

from plugins.linear import LinearKind, pack_linear
from runtime.speculation.redrafter.head_file import PREFIX, HeadConfig

silu = torch.nn.functional.silu


class RunsHead(Protocol):
    """What a beam search asks of a head, depth by depth: `advance`, then `logits` of the states that it gave."""

    def begin(self, context: torch.Tensor) -> torch.Tensor: ...

    def advance(self, embedded: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor: ...

    def logits(self, begun: torch.Tensor, state: torch.Tensor) -> torch.Tensor: ...


class DraftHead:
    """One head, ready to run. Rows are independent; R is their number, V_draft that of `lm_head`'s rows.

    Args:
        tensors: those of `HeadConfig.tensor_shapes`, all of one dtype.
        lm_head: (V_draft, E), the target's rows or the head's own.
    """

    def __init__(
        self, config: HeadConfig, tensors: Mapping[str, torch.Tensor], lm_head: torch.Tensor, linear: LinearKind
    ) -> None:
        def take(name: str) -> torch.Tensor:
            return tensors[PREFIX + name]

        # A half of input_proj's columns sees the context, which is constant while drafting, so it runs once.
        for_context, for_state = take("input_proj.weight").split(config.hidden_size, dim=1)
        self._context_proj = pack_linear(linear, for_context, take("input_proj.bias"))
        self._state_proj = pack_linear(linear, for_state)
        self._rnn_bias = take("rnn_u.bias")
        self._rnn_u = pack_linear(linear, take("rnn_u.weight"), self._rnn_bias)
        self._rnn_w = pack_linear(linear, take("rnn_w.weight"))
        blocks = [f"layers.{block}.linear" for block in range(config.num_blocks)]
        self._blocks = [pack_linear(linear, take(f"{name}.weight"), take(f"{name}.bias")) for name in blocks]
        self._lm_head = pack_linear(linear, lm_head)
        self._has_silu = config.dialect == "apple"

    def begin(self, context: torch.Tensor) -> torch.Tensor:
        """The context's share of every draft step: (R, H) -> (R, E)."""
        return self._context_proj(context)

    def advance(self, embedded: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Read one token: its embedding (R, H) and the state before it (R, H), None at the first -> (R, H)."""
        driven = self._rnn_w(embedded)
        if self._has_silu:
            return silu(driven + (self._rnn_bias if state is None else self._rnn_u(state)))
        return driven if state is None else driven + self._rnn_u(state)

    def exit(self, begun: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """What the LM head reads, (R, E), from `begin`'s rows (R, E) and the state (R, H)."""
        hidden = begun + self._state_proj(state)
        for block in self._blocks:
            hidden = hidden + silu(block(hidden))
        return hidden

    def logits(self, begun: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, (R, V_draft), in the weights' dtype."""
        return self._lm_head(self.exit(begun, state))
