"""A model of the Hugging Face Hub as a source, `hub:org/name@revision#file.gguf`.

The transfer, its retries, tokens (HF_TOKEN) and the cache of downloads (HF_HOME) are huggingface_hub's. Ours are the
choice of files, one commit for all of them, and the check of every file against the digest that the Hub gives for it.
"""

import glob
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.config import ModelConfig
from pipelines.sources.fetched import Fetched, check_sha256, copy_file
from pipelines.sources.folder import check_content, refuse_remote_code
from pipelines.sources.gguf_file import check_gguf
from pipelines.sources.hub_address import SCHEME, HubAddress, parse_address
from pipelines.sources.hub_errors import hub_errors
from pipelines.sources.hub_listing import HubFile, cached_path, needed_files, resolve
from pipelines.stage import Progress, StageContext
from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file

CONFIG = "config.json"
SHA256_DIGITS = 64


@dataclass(frozen=True)
class DownloadPlan:
    """What a build would download: files that are cached already count in `total_bytes` only."""

    commit: str
    files: tuple[HubFile, ...]
    total_bytes: int
    download_bytes: int


def pinned(config: ModelConfig) -> ModelConfig:
    """The same model with its revision on the Hub resolved to a commit; any other source as it is.

    The commit, not the branch, decides what a fetch gives, so it belongs in the stage's key.
    """
    if not config.source.startswith(SCHEME):
        return config
    return replace(config, source=str(resolve(parse_address(config.source))))


def plan_download(source: str) -> DownloadPlan:
    """Ask the Hub what `source` would download; nothing is written but the library's note of the commit.

    Raises:
        EnginewrightError: as a build would.
    """
    address = resolve(parse_address(source))
    files = needed_files(address)
    missing = [file.size for file in files if cached_path(address, file.path) is None]
    return DownloadPlan(address.revision, files, sum(file.size for file in files), sum(missing))


def fetch_hub(config: ModelConfig, folder: Path, context: StageContext) -> Fetched:
    """Download what a conversion needs, or offline take it from the cache, and copy it into `folder`.

    Raises:
        EnginewrightError: the Hub refuses or cannot be reached, nothing there can be converted, or a file is not the
            one that the Hub describes; such a file is removed from the cache.
    """
    address = resolve(parse_address(config.source))
    files = needed_files(address)
    total_mb = sum(file.size for file in files) / 1e6
    context.log.info("%s: %d files, %.1f MB", address, len(files), total_mb)
    configs = tuple(file for file in files if file.path == CONFIG)
    if configs:  # what is refused is refused before the weights are downloaded
        _bring(address, configs, folder, context.progress)
        refuse_remote_code(folder / CONFIG, str(address))
    _bring(address, tuple(file for file in files if file not in configs), folder, context.progress)
    if files[0].path.endswith(".gguf"):
        return _fetched_gguf(config, address._replace(file=files[0].path), folder)
    check_content(config, folder)
    return Fetched("hf", SCHEME + address.repo, address.revision)


def _fetched_gguf(config: ModelConfig, address: HubAddress, folder: Path) -> Fetched:
    copy = folder / PurePosixPath(address.file).name
    check_gguf(copy)
    check_sha256(copy, config.file_sha256, "model.file_sha256")
    check_sha256(copy, config.sha256, "model.sha256")
    return Fetched("gguf", f"{SCHEME}{address.repo}#{address.file}", address.revision)


def _bring(address: HubAddress, files: tuple[HubFile, ...], folder: Path, progress: Progress) -> None:
    """Download files, copy them into `folder` and check them there."""
    _download(address, [file.path for file in files], progress)
    for file in files:
        progress.advance(0, 1, f"checking {file.path}")
        copy = folder / PurePosixPath(file.path).name
        cached = cached_path(address, file.path)
        if cached is None:
            raise EnginewrightError(f"{address}: {file.path} was not downloaded; build again")
        copy_file(cached, copy)
        _check(address, file, copy, cached)


def _download(address: HubAddress, names: list[str], progress: Progress) -> None:
    """Bring files into the library's cache; those that are there, and finished by a killed build, are not asked for."""
    from huggingface_hub import constants, snapshot_download

    if constants.is_offline_mode():
        return
    with hub_errors(address):
        snapshot_download(
            address.repo,
            revision=address.revision,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=_bar_class(progress),
        )


def _check(address: HubAddress, file: HubFile, copy: Path, cached: Path) -> None:
    """Compare a copy with the digest of the Hub's listing; remove what is wrong from the cache."""
    found = sha256_file(copy) if len(file.digest) == SHA256_DIGITS else git_blob_id(copy)
    if found == file.digest:
        return
    cached.resolve().unlink(missing_ok=True)
    cached.unlink(missing_ok=True)
    raise EnginewrightError(
        f"{address}: the checksum of {file.path} is {found} but the Hub says {file.digest}; the download was damaged "
        "and is removed, build again"
    )


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content."""
    content = path.read_bytes()  # the Hub keeps whatever is large in Git LFS
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _bar_class(progress: Progress) -> type[Any]:
    """A bar as the library wants one, that shows on ours."""
    import io

    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if self.unit == "B" and self.total:
                progress.advance(self.n, self.total, f"downloading, {self.n / 1e6:.0f} of {self.total / 1e6:.0f} MB")

    return Bar
