"""Checkpoints of every family, and the folders that the stage makes of them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipelines.stage import Artifact, StageOutput
from pipelines.stages import compile_tensorrt_llm
from pipelines.target_config import TensorrtLlmJob, TensorrtLlmTargetConfig
from tests.pipelines.running_stages import fetch_and_convert, stage_context
from tests.pipelines.tiny_models import make_hf_folder

# family -> what is special in its transformers config
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-tied": {"family": "llama"},
    "llama-odd-vocabulary": {"family": "llama", "vocab": 301, "tied": False},
    "mistral": {"family": "mistral", "tied": False, "sliding_window": 256},
    "qwen2": {"family": "qwen2", "vocab": 302},
    "qwen3": {"family": "qwen3", "head_dim": 24, "tied": False, "kv_heads": 1},
}


def make_model(folder: Path, family: str, dtype: str = "bfloat16", **changes: Any) -> tuple[Path, dict[str, Any]]:
    """A converted checkpoint, and transformers' tensors that it was made of."""
    make_hf_folder(folder / "hf", dtype=dtype, **(FAMILIES[family] | changes))
    return fetch_and_convert(folder / "hf", folder, dtype), load_file(folder / "hf/model.safetensors")


def no_draft(folder: Path, drafter: str = "none") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "draft.json").write_text(json.dumps({"schema": 1, "drafter": drafter}))
    return folder


def compile_folder(
    folder: Path, checkpoint: Path, draft: Path, installed: str = "", **settings: Any
) -> tuple[Path, StageOutput]:
    """Run the stage where the bundle would have its engine, with the checkpoint's files where the bundle has them."""
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "weights.safetensors").symlink_to(checkpoint / "weights.safetensors")
    (bundle / "draft").symlink_to(draft)
    out = bundle / "engines/tensorrt_llm"
    out.mkdir(parents=True)
    job = TensorrtLlmJob(TensorrtLlmTargetConfig(**settings), installed)
    inputs = {"convert": Artifact(checkpoint, ""), "draft": Artifact(draft, "")}
    return out, compile_tensorrt_llm.STAGE.run(job, inputs, out, stage_context(folder))


def plan_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "engine.json").read_text()))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())
