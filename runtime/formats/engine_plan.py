"""An engine's plan, `engine.json`: how the shared weights are to be run, decided at compile time."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from plugins.linear import LinearKind
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import DTYPES
from runtime.spec import ModelSpec

ENGINE_FILE = "engine.json"
SCHEMA = 1
TARGETS = ("cpu", "cuda", "onnx", "tensorrt_rtx", "tensorrt")


@dataclass(frozen=True)
class EnginePlan:
    """Everything about an engine that is not in the weights.

    Raises:
        EnginewrightError: a value out of its bounds.
    """

    dtype: str  # of weights, activations and KV cache
    linear: LinearKind
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    block_size: int
    num_blocks: int  # 0: as many as `kv_cache_fraction` holds, counted when the engine is loaded
    target: str = "cpu"
    schema: int = SCHEMA
    kv_cache_fraction: float = 0.0  # of the GPU's memory that is free once the weights are loaded

    def __post_init__(self) -> None:
        if self.schema != SCHEMA or self.target not in TARGETS:
            raise EnginewrightError(
                f"engine plan of schema {self.schema} for target {self.target!r}; this runtime runs schema {SCHEMA} "
                f"for {', '.join(TARGETS)}; rebuild the bundle with this version"
            )
        _require_one_of("dtype", self.dtype, DTYPES)
        _require_one_of("linear", self.linear, get_args(LinearKind))
        if self.sized_at_load and not 0.0 < self.kv_cache_fraction < 1.0:
            raise EnginewrightError(
                f"engine plan: kv_cache_fraction is {self.kv_cache_fraction}; with num_blocks 0 it must be above 0 and "
                "below 1"
            )
        counts = ("max_batch_size", "max_seq_len", "max_num_tokens", "block_size")
        for name in counts if self.sized_at_load else (*counts, "num_blocks"):
            if getattr(self, name) < 1:
                raise EnginewrightError(f"engine plan: {name} is {getattr(self, name)}; it must be 1 or more")
        if self.max_num_tokens < self.max_batch_size:
            raise EnginewrightError(
                f"engine plan: max_num_tokens is {self.max_num_tokens}, below max_batch_size {self.max_batch_size}; "
                "a decode step gives every request one token, so raise it"
            )

    @property
    def sized_at_load(self) -> bool:
        """Whether the KV cache takes what the GPU has left."""
        return self.target == "cuda" and self.num_blocks == 0

    def kv_cache_bytes(self, spec: ModelSpec) -> int:
        """Size of the KV cache once every block has been written; 0 where only the load can tell."""
        return self.num_blocks * self.block_bytes(spec)

    def block_bytes(self, spec: ModelSpec) -> int:
        """Size of one block of the KV cache, all layers together."""
        element = {"float64": 8, "float32": 4}.get(self.dtype, 2)
        return self.block_size * spec.kv_bytes_per_token(element)

    def with_blocks(self, num_blocks: int) -> "EnginePlan":
        """The plan with a KV cache of that many blocks."""
        return replace(self, num_blocks=num_blocks)

    def write(self, folder: Path) -> None:
        fields = asdict(self)
        if self.target != "cuda":
            del fields["kv_cache_fraction"]
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (folder / ENGINE_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "EnginePlan":
        path = folder / ENGINE_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("target") == "tensorrt_llm":
                raise EnginewrightError(
                    f"{folder}: TensorRT-LLM runs this engine, this runtime does not; on a host that has it: sh "
                    f"{folder / fields['script']}, and make load URL=<its endpoint> measures it there"
                )
            return cls(**fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EnginewrightError(f"{path}: unreadable ({error}); build the bundle again") from error


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise EnginewrightError(f"engine plan: {name} is {value!r}; it must be one of {', '.join(choices)}")
