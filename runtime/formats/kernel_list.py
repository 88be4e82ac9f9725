"""What a CUDA engine's kernels are, `kernels.json`: what each was made from, and what runs it.

engines/cuda/kernels.json
engines/cuda/kernels/<arch>/<image>.cubin      for one architecture
engines/cuda/kernels/compute_80/<image>.ptx    what the driver compiles for GPUs without a cubin
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugins.cuda.archs import MINIMUM_DRIVER, archs_run
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from plugins.cuda.build import Built

KERNELS_FILE = "kernels.json"
KERNELS_DIR = "kernels"
SCHEMA = 1


@dataclass(frozen=True)
class KernelList:
    """Who can load the engine: see `write_kernel_list` for the rest of the file."""

    nvrtc: str
    minimum_driver: str
    archs: tuple[str, ...]
    never_run: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "KernelList":
        """Read an engine's folder.

        Raises:
            EnginewrightError: the file is missing or damaged.
        """
        path = folder / KERNELS_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["schema"] != SCHEMA:
                raise ValueError(f"schema {fields['schema']}, this version reads {SCHEMA}")
            return cls(fields["nvrtc"], fields["minimum_driver"], tuple(fields["archs"]), tuple(fields["never_run"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnginewrightError(f"{path}: unreadable ({error}); build the bundle again") from error


def write_kernel_list(images: Sequence["Built"], folder: Path) -> None:
    """Describe every image: nothing that differs between two builds of the same sources."""
    from plugins.cuda.nvrtc import nvrtc_version

    archs, run = sorted({image.compiled.arch for image in images}), archs_run()
    fields = {
        "schema": SCHEMA,
        "nvrtc": nvrtc_version(),
        "minimum_driver": str(MINIMUM_DRIVER),
        "archs": archs,
        "never_run": [arch for arch in archs if arch not in run],
        "images": {image.file: _image(image) for image in images},
    }
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    (folder / KERNELS_FILE).write_text(text, encoding="utf-8")


def _image(image: "Built") -> Mapping[str, Any]:
    return {
        "source": image.source.file,
        "source_digest": image.source.digest(),
        "defines": dict(image.source.defines),
        "sha256": hashlib.sha256(image.compiled.image).hexdigest(),
        "kernels": {entry: asdict(usage) for entry, usage in sorted(image.compiled.usage.items())},
    }
