"""Which shapes an engine's passes have: decoding or draft trees side by side, and long prompts one at a time."""

from runtime.formats.tensorrt_plan import Profile, Range
from runtime.speculation.tree import MAX_NODES

_USUAL_CHUNK = 128  # tokens of a prompt
# TensorRT-RTX 1.7 compiles no masked attention of a single request with at most 64 rows: "more than one op named ...".
_LEAST_BATCH = 2


def step_profiles(max_batch_size: int, max_num_tokens: int) -> tuple[Profile, ...]:
    """The profiles of a plan, decoding first; see `StepSession.takes` for what they must hold.

    A pass over a prompt may want the logits of all its tokens, when a text is scored; usual is the last alone.
    """
    batch = max(max_batch_size, _LEAST_BATCH)
    decode = Profile("decode", Range(1, 1, batch), Range(1, 1, MAX_NODES), Range(1, 1, batch * MAX_NODES))
    if max_num_tokens <= MAX_NODES:
        return (decode,)
    rows = Range(1, min(_USUAL_CHUNK, max_num_tokens), max_num_tokens)
    return decode, Profile("prefill", Range(1, 1, 1), rows, Range(1, 1, max_num_tokens))
