"""Runs engine bundles: `LLM(bundle).generate(prompts, SamplingParams(...))`.

The names here load on first use, so that `import runtime` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.async_llm import AsyncLLM
    from runtime.errors import EnginewrightError
    from runtime.llm import LLM
    from runtime.sampling import SamplingParams, StructuredOutput

__all__ = ["LLM", "AsyncLLM", "EnginewrightError", "SamplingParams", "StructuredOutput"]

_MODULES = {
    "LLM": "runtime.llm",
    "AsyncLLM": "runtime.async_llm",
    "EnginewrightError": "runtime.errors",
    "SamplingParams": "runtime.sampling",
    "StructuredOutput": "runtime.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
