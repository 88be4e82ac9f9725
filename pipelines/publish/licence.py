"""The licence of a bundle's model, as its bill of materials states it."""

import json
from pathlib import Path

from pipelines.sbom import SBOM_FILE


def licence_of(bundle: Path) -> str:
    """Its SPDX id or name; "" where the source stated none."""
    try:
        component = json.loads((bundle / SBOM_FILE).read_text(encoding="utf-8"))["metadata"]["component"]
        licence = component["licenses"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
    return str(licence.get("expression") or licence.get("license", {}).get("id") or licence["license"].get("name", ""))
