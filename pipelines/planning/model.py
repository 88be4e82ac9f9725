"""What can be known of a model before it is fetched or converted: its sizes, and the bytes to bring."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import ModelConfig
from pipelines.planning.planner import StagePlan
from pipelines.planning.wheel_size import Size, wheel_size
from pipelines.sources import hub_address, pypi
from pipelines.sources.folder import TAKEN, check_names, refuse_remote_code
from pipelines.stages.fetch import SOURCE_DIR, SOURCE_JSON
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec


@dataclass(frozen=True)
class KnownModel:
    """`spec` and `source_bytes` are None where nobody can know yet; `note` says why, or from where they are."""

    spec: ModelSpec | None
    source_bytes: int | None
    download: Size
    note: str


def known_model(model: ModelConfig, fetch: StagePlan) -> KnownModel:
    """Look at the fetched copy where there is one, else at the user's files, else at what the index tells.

    Raises:
        EnginewrightError: the source is one that a build would refuse.
    """
    if fetch.output is not None:
        content = fetch.output.entry.content
        return KnownModel(fetched_spec(content), source_bytes(content), Size(0, ""), "")
    if Path(model.source).exists():
        return local_model(Path(model.source))
    download = download_size(model.source)
    before = fetch.nearest
    if before is not None and before.metadata.made_from.get("config") == fetch.parts["config"]:
        content = before.entry.content
        return KnownModel(fetched_spec(content), source_bytes(content), download, "sizes are those of an earlier fetch")
    note = "the model was never fetched: its sizes, and what follows from them, are not known yet"
    return KnownModel(None, download.num_bytes, download, note)


def download_size(source: str) -> Size:
    """Bytes that fetching `source` brings over the network; each kind of remote source has a line here."""
    if source.startswith(pypi.SCHEME):
        try:
            address = pypi.parse_address(source)
        except EnginewrightError as error:
            raise EnginewrightError(f"fetch: {error}") from error
        return wheel_size(address.dist, address.version)
    if source.startswith(hub_address.SCHEME):
        from pipelines.sources.hub import plan_download

        plan = plan_download(source)
        cached = plan.total_bytes - plan.download_bytes
        return Size(plan.download_bytes, f"commit {plan.commit[:12]}" + (f", {cached} bytes cached" if cached else ""))
    return Size(None, "this kind of source does not tell its size before it is fetched")


def local_model(path: Path) -> KnownModel:
    """A folder or a GGUF file of the user's, checked as the fetch and convert stages will."""
    try:
        if path.is_dir():
            names = sorted(item.name for item in path.iterdir() if item.is_file())
            check_names(str(path), names)
            refuse_remote_code(path / "config.json", str(path))
            num_bytes = sum(item.stat().st_size for item in taken_files(path))
        else:
            num_bytes = path.stat().st_size
            check_readable(path)
    except EnginewrightError as error:
        raise EnginewrightError(f"fetch: {error}") from error
    except OSError as error:
        raise EnginewrightError(f"fetch: {path}: cannot be read ({error.strerror}); check permissions") from error
    return KnownModel(read_spec(path), num_bytes, Size(0, ""), "")


def taken_files(folder: Path) -> set[Path]:
    return {path for pattern in TAKEN for path in folder.glob(pattern) if path.is_file()}


def check_readable(path: Path) -> None:
    from pipelines.sources.gguf_file import check_gguf

    check_gguf(path)


def fetched_spec(content: Path) -> ModelSpec:
    """The spec of what a fetch stage stored."""
    source = json.loads((content / SOURCE_JSON).read_text(encoding="utf-8"))
    folder = content / SOURCE_DIR
    return read_spec(folder if source["kind"] == "hf" else folder / source["files"][0]["path"])


def source_bytes(content: Path) -> int:
    return sum(path.stat().st_size for path in (content / SOURCE_DIR).iterdir())


def read_spec(path: Path) -> ModelSpec:
    """The spec of a model folder or GGUF file; reads no weights.

    Raises:
        EnginewrightError: a model that the convert stage would refuse.
    """
    from pipelines.convert import gguf_source, hf_spec
    from pipelines.convert.gguf_file import GgufFile

    try:
        if path.is_dir():
            config = path / hf_spec.CONFIG
            return hf_spec.read_spec(hf_spec.read_json(config), str(config))
        return gguf_source.GgufSource(GgufFile(path)).spec
    except EnginewrightError as error:
        raise EnginewrightError(f"convert: {error}") from error
