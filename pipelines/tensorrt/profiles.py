"""Which shapes an engine's passes have: long prompts one at a time, and decoding or draft trees side by side."""

from runtime.formats.tensorrt_plan import Profile, Range
from runtime.speculation.tree import MAX_NODES

_USUAL_CHUNK = 128  # tokens of a prompt


def step_profiles(max_batch_size: int, max_num_tokens: int) -> tuple[Profile, ...]:
    """The profiles of a plan, decoding first; see `StepSession.takes` for what they must hold.

    A prompt's pass may want the logits of all its tokens, when a text is scored; usual is the last alone.
    """
    nodes = max_batch_size * MAX_NODES
    return (
        Profile("decode", Range(1, 1, max_batch_size), Range(1, 1, MAX_NODES), Range(1, 1, nodes)),
        Profile(
            "prefill", Range(1, 1, 1), Range(1, min(_USUAL_CHUNK, max_num_tokens), max_num_tokens),
            Range(1, 1, max_num_tokens),
        ),
    )  # fmt: skip
