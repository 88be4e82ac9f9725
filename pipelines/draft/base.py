"""Which model a head belongs to, whatever precision it was converted to."""

from collections.abc import Mapping
from typing import Any

from pipelines.digest import json_digest

WEIGHT_SUFFIXES = (".gguf", ".safetensors")


def base_digest(source: Mapping[str, Any]) -> str:
    """The digest of a fetched source's weight files, from its `source.json`."""
    files = [entry for entry in source["files"] if entry["path"].endswith(WEIGHT_SUFFIXES)]
    return json_digest(sorted(entry["sha256"] for entry in files))
