"""Two kinds of folder: a checkpoint and the script that builds its engine, a model and the script that serves it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.export.hf import named_shards, write_hf_files, write_index
from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm import build_command, scripts, serve_config
from pipelines.tensorrt_llm.checkpoint_config import checkpoint_config, with_redrafter
from pipelines.tensorrt_llm.checks import Lengths
from pipelines.tensorrt_llm.drafter_file import DRAFTER_FILE, write_drafter
from pipelines.tensorrt_llm.hf_weights import hf_pieces
from pipelines.tensorrt_llm.pieces import StoredTensor, planned_file, stored_tensors
from pipelines.tensorrt_llm.sharding import DRAFT_HEAD, Ranks, rank_tensors
from pipelines.tensorrt_llm.speculation import Speculation
from pipelines.tensorrt_llm.weights import Source, leave_weights, write_digests, write_weights
from runtime.formats.bundle import DRAFT_DIR
from runtime.formats.checkpoint import EMBEDDING, LM_HEAD, WEIGHTS_FILE, Checkpoint
from runtime.formats.safetensors_writer import ITEM_BYTES

UP = "../.."  # from the engine's folder to the bundle
MAX_SHARD_BYTES = 5 * 10**9
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Folder:
    """What to write, and where."""

    config: TensorrtLlmTargetConfig
    lengths: Lengths
    checkpoint: Checkpoint
    draft_dir: Path
    speculation: Speculation
    out_dir: Path
    scratch_dir: Path

    @property
    def weights_here(self) -> bool:
        return self.config.weights == "bundle"


def write_build_folder(folder: Folder, report: Report) -> list[str]:
    """Write checkpoint/ and build.sh; return the command that the script runs.

    Raises:
        EnginewrightError: damaged weights or a damaged head.
    """
    config, checkpoint, out_dir = folder.config, folder.checkpoint, folder.out_dir
    spec, dtype = checkpoint.spec, checkpoint.config.dtype
    ranks = Ranks(config.tp_size, config.pp_size)
    fields = checkpoint_config(spec, dtype, ranks)
    sources = [Source(checkpoint.weights_path, f"{UP}/{WEIGHTS_FILE}")]
    weights = stored_tensors(checkpoint.weights_path, 0, dtype)
    drafter: dict[str, StoredTensor] = {}
    if folder.speculation.head is not None and folder.speculation.beams is not None:
        fields = with_redrafter(fields, folder.speculation.head, folder.speculation.beams)
        path = (folder.scratch_dir if folder.weights_here else out_dir) / DRAFTER_FILE
        write_drafter(folder.draft_dir, dtype, path)
        sources.append(Source(path, DRAFTER_FILE))
        drafter = stored_tensors(path, 1, dtype)
        drafter.setdefault(DRAFT_HEAD, weights[EMBEDDING if spec.tied_head else LM_HEAD])  # a tied head: a clone
    checkpoint_dir = out_dir / build_command.CHECKPOINT_DIR
    checkpoint_dir.mkdir()
    _write_json(checkpoint_dir / "config.json", fields)
    files = [
        planned_file(
            f"{build_command.CHECKPOINT_DIR}/rank{rank}.safetensors",
            rank_tensors(spec, weights, drafter, ranks, rank), dtype, {"format": "pt"},
        )
        for rank in range(ranks.world_size)
    ]  # fmt: skip
    (write_weights if folder.weights_here else leave_weights)(files, sources, out_dir, report)
    command = build_command.build_command(config, folder.lengths, dtype, folder.speculation.kind == "redrafter")
    write_digests(out_dir, out_dir / scripts.DIGESTS_FILE)
    text = scripts.build_script(config.version, command, build_command.TIMING_CACHE, folder.weights_here)
    (out_dir / scripts.BUILD_SCRIPT).write_text(text, encoding="utf-8")
    return command


def write_serve_folder(folder: Folder, report: Report) -> list[str]:
    """Write model/, serve.yaml and serve.sh; return the command that the script runs.

    Raises:
        EnginewrightError: damaged weights.
    """
    config, out_dir = folder.config, folder.out_dir
    models = {serve_config.MODEL_DIR: (folder.checkpoint, f"{UP}/{WEIGHTS_FILE}")}
    if folder.speculation.kind == "model":
        smaller = Checkpoint(folder.draft_dir)
        models[serve_config.DRAFT_MODEL_DIR] = (smaller, f"{UP}/{DRAFT_DIR}/{WEIGHTS_FILE}")
    sources, files = [], []
    for number, (name, (checkpoint, in_bundle)) in enumerate(models.items()):
        sources.append(Source(checkpoint.weights_path, in_bundle))
        files += _write_model(checkpoint, out_dir / name, number)
    (write_weights if folder.weights_here else leave_weights)(files, sources, out_dir, report)
    fields = serve_config.serve_config(config, folder.speculation)
    (out_dir / serve_config.CONFIG_FILE).write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    command = serve_config.serve_command(config, folder.lengths)
    write_digests(out_dir, out_dir / scripts.DIGESTS_FILE)
    text = scripts.serve_script(config.version, command, folder.weights_here)
    (out_dir / scripts.SERVE_SCRIPT).write_text(text, encoding="utf-8")
    return command


def _write_model(checkpoint: Checkpoint, model_dir: Path, source: int) -> list[dict[str, Any]]:
    """Write one Hugging Face folder but its weights, and return the plan of those."""
    dtype = checkpoint.config.dtype
    tensors = hf_pieces(checkpoint, stored_tensors(checkpoint.weights_path, source, dtype))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shards = named_shards(shapes, ITEM_BYTES[dtype], MAX_SHARD_BYTES)
    model_dir.mkdir()
    write_hf_files(checkpoint, model_dir)
    write_index(shards, ITEM_BYTES[dtype], model_dir)
    return [
        planned_file(f"{model_dir.name}/{name}", {key: tensors[key] for key in shard}, dtype, {"format": "pt"})
        for name, shard in shards.items()
    ]


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
