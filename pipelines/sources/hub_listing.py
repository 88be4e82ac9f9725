"""Which files a revision on the Hub has, how large they are, and which of them a conversion needs.

Downloads nothing. Offline, the answers come from what was downloaded before.
"""

from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.folder import check_names, taken_names
from pipelines.sources.hub_address import HubAddress
from pipelines.sources.hub_errors import hub_errors, not_cached
from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class HubFile:
    """One file. digest: its sha256 where it is stored by Git LFS (64 characters), otherwise its git blob id (40)."""

    path: str
    size: int
    digest: str


def resolve(address: HubAddress) -> HubAddress:
    """The same model at the commit that its revision names now, or offline named when it was last seen.

    Raises:
        EnginewrightError: the Hub does not know it, or cannot be reached; offline, it was never downloaded.
    """
    from huggingface_hub import HfApi, constants

    if address.is_pinned:
        return address
    with hub_errors(address):
        api, offline = HfApi(), constants.is_offline_mode()
        if not offline:
            api.model_info(address.repo, revision=address.revision)  # fails where the next call would use the cache
        known = api.resolve_revision(address.repo, revision=address.revision, local_files_only=offline)
        return address._replace(revision=known.resolved)


def needed_files(address: HubAddress) -> tuple[HubFile, ...]:
    """The files of a pinned address that a conversion needs, decided by their names.

    Raises:
        EnginewrightError: nothing there can be converted, or it has several GGUF files and the address names none.
    """
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        files = _cached_files(address)
    else:
        with hub_errors(address):
            info = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
            files = [
                HubFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else item.blob_id or "")
                for item in info.siblings or []
            ]
    names = choose(address, [file.path for file in files])
    return tuple(file for file in files if file.path in names)


def choose(address: HubAddress, names: list[str]) -> set[str]:
    """The names that a conversion needs: one GGUF file, or what is taken of a Hugging Face folder."""
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if not address.file and gguf and not any(name.endswith(".safetensors") for name in names):
        if len(gguf) > 1:
            raise EnginewrightError(
                f"{address}: has {len(gguf)} GGUF files; choose one: {', '.join(f'#{name}' for name in gguf)}"
            )
        return set(gguf)
    if address.file and address.file not in gguf:
        raise EnginewrightError(f"{address}: has no such file; its GGUF files: {', '.join(gguf) or 'none'}")
    if address.file:
        return {address.file}
    here = [name for name in names if "/" not in name]
    check_names(str(address), here)
    return set(taken_names(here))


def cached_path(address: HubAddress, name: str) -> Path | None:
    """Where the library keeps a file of a pinned address; None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(address.repo, name, revision=address.revision)
    return Path(found) if isinstance(found, str) else None


def _cached_files(address: HubAddress) -> list[HubFile]:
    """What was downloaded; the library names each content by the digest that the Hub gave for it."""
    from huggingface_hub import errors, get_cached_repo_tree

    marker = cached_path(address, address.file or "config.json")
    try:
        names = [item.path for item in get_cached_repo_tree(address.repo, revision=address.revision)]
    except errors.CachedRepoTreeNotFoundError:  # an older version of the library downloaded it
        names = [item.name for item in marker.parent.iterdir()] if marker else []
    if not names:
        raise EnginewrightError(not_cached(address))
    files = []
    for name in sorted(choose(address, names)):
        path = cached_path(address, name)
        if path is None:
            raise EnginewrightError(not_cached(address, name))
        files.append(HubFile(name, path.stat().st_size, path.resolve().name))
    return files
