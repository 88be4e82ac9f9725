"""What is measured: each row takes one process, our engine and its baselines beside each other in it.

In the order of their worth: where time runs out, the last ones are missing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bench.gpu import bundles, decoding, lossless, passes, profiles, prompts
from bench.gpu.lines import Line


class Row(NamedTuple):
    """`measure` starts up, and gives an iterator that measures as it yields raw lines.

    takes_bundle: it takes `bundle=`, a finished bundle of SmolLM2-135M. starts_on_gpu: starting up uses the GPU, so
    that no row may be measured beside it.
    """

    measure: Callable[..., Iterator[Line]]
    takes_bundle: bool = False
    needs_bundle: bool = False
    starts_on_gpu: bool = False


ROWS: dict[str, Row] = {
    "decode-llama-3.2-1b": Row(partial(decoding.decode, "llama-3.2-1b", (1, 8, 32, 64), energy_at=(1, 32))),
    "decode-smollm2-135m": Row(partial(decoding.decode, "smollm2-135m", (1, 8, 32, 64), energy_at=(1, 32))),
    "speculation-smollm2-135m": Row(bundles.speculation, takes_bundle=True, needs_bundle=True),
    "prefill-llama-3.2-1b": Row(partial(prompts.prefill, "llama-3.2-1b")),
    "verify-smollm2-135m": Row(partial(passes.verify, "smollm2-135m")),
    "verify-llama-3.2-1b": Row(partial(passes.verify, "llama-3.2-1b")),
    "decode-llama-3.1-8b": Row(partial(decoding.decode, "llama-3.1-8b", (1, 32))),
    "decode-qwen3-1.7b": Row(partial(decoding.decode, "qwen3-1.7b", (1, 32))),
    "attention-d128": Row(passes.attention),
    "stack-smollm2-135m": Row(bundles.stack, takes_bundle=True, needs_bundle=True),
    "invariance-llama-3.2-1b": Row(partial(lossless.invariance, "llama-3.2-1b")),
    "error-smollm2-135m": Row(partial(lossless.error, "smollm2-135m"), takes_bundle=True),
    "long-qwen3-1.7b": Row(partial(passes.long_context, "qwen3-1.7b")),
    "reuse-llama-3.2-1b": Row(partial(prompts.reuse, "llama-3.2-1b")),
    "profile-llama-3.2-1b": Row(partial(profiles.profile, "llama-3.2-1b")),
    "profile-smollm2-135m": Row(partial(profiles.profile, "smollm2-135m")),
    "compiled-llama-3.2-1b": Row(partial(decoding.compiled, "llama-3.2-1b"), starts_on_gpu=True),
    "compiled-smollm2-135m": Row(partial(decoding.compiled, "smollm2-135m"), starts_on_gpu=True),
}
