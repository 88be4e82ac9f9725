"""The stages of a build, and how a test runs a single one without the runner."""

import logging
from pathlib import Path

from pipelines.config import ConvertConfig, ModelConfig
from pipelines.stage import Artifact, StageContext, StageOutput
from pipelines.stages import convert, fetch

STAGES = ["fetch", "convert", "draft", "compile", "verify", "bench", "package"]


class RecordedProgress:
    """Keeps what a stage reported."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float, str]] = []

    def advance(self, done: float, total: float = 1.0, text: str = "") -> None:
        self.calls.append((done, total, text))


def stage_context(folder: Path) -> StageContext:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return StageContext(scratch, folder / "kept", RecordedProgress(), logging.getLogger("test"))


def run_fetch(source: Path | str, out_dir: Path, *, sha256: str = "", file_sha256: str = "") -> StageOutput:
    out_dir.mkdir(parents=True)
    config = ModelConfig("tiny", str(source), sha256, file_sha256)
    return fetch.STAGE.run(config, {}, out_dir, stage_context(out_dir.parent))


def run_convert(fetched: Path, out_dir: Path, dtype: str = "float32") -> StageOutput:
    out_dir.mkdir(parents=True)
    inputs = {"fetch": Artifact(fetched, "")}
    return convert.STAGE.run(ConvertConfig(dtype), inputs, out_dir, stage_context(out_dir.parent))


def fetch_and_convert(source: Path, folder: Path, dtype: str = "float32") -> Path:
    """Run both stages; return the checkpoint's folder."""
    run_fetch(source, folder / "fetch")
    run_convert(folder / "fetch", folder / "convert", dtype)
    return folder / "convert"
