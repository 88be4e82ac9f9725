"""`engine.json` of a folder for TensorRT-LLM, which runs it; nothing here does more than say so."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.errors import EnginewrightError

ENGINE_FILE = "engine.json"
TARGET = "tensorrt_llm"
SCHEMA = 1
FLOWS = ("build", "serve")


@dataclass(frozen=True)
class TensorrtLlmPlan:
    """What the folder is for, and how far it was taken."""

    version: str  # of TensorRT-LLM
    flow: str  # build: a checkpoint for trtllm-build; serve: a model for trtllm-serve
    dtype: str
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    tp_size: int
    pp_size: int
    weights: str  # bundle: in the folder; host: made by its script
    speculation: str
    without_drafter: str  # why what drafts in the bundle does not there; "" where it does, or nothing drafts
    built_for: str  # the GPU architecture of the engine in the folder; "" where there is none
    script: str  # in the folder; repeats the step on a host with TensorRT-LLM
    command: tuple[str, ...]
    settings: Mapping[str, Any]  # all of target.tensorrt_llm, to build with again
    target: str = TARGET
    schema: int = SCHEMA

    @property
    def not_run(self) -> str:
        """Why no check of this runtime ran it, and what to do on a host that has TensorRT-LLM."""
        folder = "" if self.flow == "serve" and self.weights == "bundle" else " NEW_FOLDER"
        return (
            f"TensorRT-LLM {self.version} runs it, this runtime does not; on a host that has it: sh "
            f"engines/{TARGET}/{self.script}{folder}, and make load URL=<its endpoint> measures it there"
        )

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        (folder / ENGINE_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TensorrtLlmPlan":
        """Read the plan of an engine's folder.

        Raises:
            EnginewrightError: it cannot be read, or is of another schema.
        """
        path = folder / ENGINE_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            plan = cls(**{**fields, "command": tuple(fields["command"])})
            if (plan.target, plan.schema) != (TARGET, SCHEMA) or plan.flow not in FLOWS:
                raise ValueError(f"schema {plan.schema} for target {plan.target!r}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EnginewrightError(f"{path}: unreadable ({error}); build the bundle again") from error
        return plan
