"""The drafting of a ReDrafter head in one launch: all steps of its beam search, and the trees.

`plan.refusal` says what it cannot take; `cuda.DraftPass` runs it on a GPU; `reference.py` is its meaning.

At every depth each of a request's beams reads its last token, and of all continuations the C = max(W, N - 1) best by
cumulative log-probability are candidates; the W best of them are the next beams. The tree has the N - 1 best candidates
of all depths, as `plugins.tree_pack` packs them. Above temperature 0 a token's log-probability is that of
softmax(logits + T * noise), with the noise of the target's own draw at that position.

Weights and what enters a product are bfloat16 or float16; sums, logits and scores float32. A request's tree is the same
bit for bit whatever other requests the batch has. Ties go to the earlier beam and then to the earlier token.
"""

from typing import NamedTuple

import torch


class DraftTexts(NamedTuple):
    """The texts that B requests draft for, in tables of S slots. Integers are int64."""

    slots: torch.Tensor  # (B,) rows of the others
    hidden: torch.Tensor  # (S, H) float32, the target's final hidden state where the text's last token was drawn
    num_tokens: torch.Tensor  # (S,)
    history: torch.Tensor  # (S, longest) the tokens; the last of them is the tree's root


class DrawNoise(NamedTuple):
    """What the target's own draws depend on, per slot (S,); see `plugins.sample`."""

    temperature: torch.Tensor  # float32
    seed: torch.Tensor  # int64
    sample_index: torch.Tensor  # int64


class DraftWeights(NamedTuple):
    """A head as its formulas have it, all of one dtype; see runtime/speculation/redrafter/head.py.

    H hidden size, E exit dimension, L residual blocks, V_draft tokens that are drafted.
    """

    embedding: torch.Tensor  # (V, H)
    context_proj: torch.Tensor  # (E, H), of input_proj what sees the context
    context_bias: torch.Tensor  # (E,), of input_proj
    rnn_w: torch.Tensor  # (H, H)
    rnn_u: torch.Tensor  # (H, H)
    rnn_bias: torch.Tensor  # (H,)
    state_proj: torch.Tensor  # (E, H), of input_proj what sees the state
    blocks: torch.Tensor  # (L, E, E)
    block_biases: torch.Tensor  # (L, E)
    lm_head: torch.Tensor  # (V_draft, E)
    vocab_ids: torch.Tensor  # (V_draft,) int64, the token of each of the logits
    has_silu: bool  # dialect `apple`
