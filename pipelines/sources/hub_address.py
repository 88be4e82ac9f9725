"""How a model of the Hugging Face Hub is written: `hub:org/name@revision#file.gguf`. Reaches no network."""

import re
from typing import NamedTuple

from runtime.errors import EnginewrightError

SCHEME = "hub:"
DEFAULT_REVISION = "main"
_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@#]+))?(?:#(?P<file>[^@#]+\.gguf))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubAddress(NamedTuple):
    """One model. revision: a branch, tag or commit. file: the GGUF file of the repository, "" for its safetensors."""

    repo: str
    revision: str = DEFAULT_REVISION
    file: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, whose content never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}" + (f"#{self.file}" if self.file else "")


def parse_address(source: str) -> HubAddress:
    """Take `hub:org/name`, with `@revision` and `#file.gguf` where they are given, apart.

    Raises:
        EnginewrightError: it is not of that form.
    """
    found = _ADDRESS.fullmatch(source.removeprefix(SCHEME))
    if found is None:
        raise EnginewrightError(f"model.source {source!r} is not hub:<org>/<name>[@<revision>][#<file>.gguf]")
    return HubAddress(found["repo"], found["revision"] or DEFAULT_REVISION, found["file"] or "")


def is_hub_name(source: str) -> bool:
    """Whether a source without a scheme could be a model of the Hub. A local path of that name goes before it."""
    found = _ADDRESS.fullmatch(source)
    return found is not None and not found["repo"].endswith(".gguf")
