"""What a TensorRT plan is, `plan.json`: who built it, which GPUs run it, which shapes it takes.

engines/<target>/plan.json
engines/<target>/model.plan    the plan
engines/<target>/model.onnx    the graph it was built from; its weights are the bundle's
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file

PLAN_LIST = "plan.json"
PLAN_FILE = "model.plan"
LAYERS_FILE = "layers.json"
SCHEMA = 1


class Range(NamedTuple):
    """Sizes that a profile takes, and the one that it is made fast for."""

    least: int
    usual: int
    most: int


class Profile(NamedTuple):
    """Shapes of one kind of pass; see `runtime.formats.step_graph` for the letters."""

    name: str
    batch: Range  # B
    rows: Range  # S
    emits: Range  # R

    @classmethod
    def of(cls, fields: Any) -> "Profile":
        """From JSON."""
        name, *ranges = fields
        batch, rows, emits = (Range(*map(int, values)) for values in ranges)
        return cls(str(name), batch, rows, emits)

    def takes(self, batch: int, rows: int) -> bool:
        return self.batch.least <= batch <= self.batch.most and self.rows.least <= rows <= self.rows.most


@dataclass(frozen=True)
class TensorrtPlan:
    """Everything that decides whether a plan runs somewhere."""

    library: str  # tensorrt_rtx or tensorrt
    version: str  # of the library; a plan is of this one alone unless it is version compatible
    archs: tuple[str, ...]  # GPUs that it was built for
    weights: str  # inside, or stripped: refitted from the bundle's when it is loaded
    weights_sha256: str  # of the file that they are from
    attention: str  # native, or plugin
    cache_len: int  # Smax
    profiles: tuple[Profile, ...]
    minimum_driver: str
    version_compatible: bool = False
    hardware: str = ""  # the compatibility beyond `archs` that was asked for
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        (folder / PLAN_LIST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "TensorrtPlan":
        """Read an engine's folder.

        Raises:
            EnginewrightError: the file is missing or damaged.
        """
        path = folder / PLAN_LIST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["schema"] != SCHEMA:
                raise ValueError(f"schema {fields['schema']}, this version reads {SCHEMA}")
            profiles = tuple(Profile.of(profile) for profile in fields.pop("profiles"))
            return cls(**fields | {"profiles": profiles, "archs": tuple(fields["archs"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnginewrightError(f"{path}: unreadable ({error}); build the bundle again") from error

    def compatibility(self) -> dict[str, Any]:
        """What the manifest says of it."""
        exactly = ">=" if self.version_compatible else "=="
        return {
            "arch": "nvidia",
            "archs": list(self.archs),
            "never_run": list(self.archs),
            "minimum_driver": self.minimum_driver,
            "attention": self.attention,
            "weights": self.weights,
            "requires": {"torch": ">=2.11", "cuda-bindings": ">=13.0",
                         self.library.replace("_", "-"): f"{exactly}{self.version}"},
        }  # fmt: skip


def weights_digest(folder: Path, manifest: Mapping[str, Any] | None = None) -> str:
    """The sha256 of a checkpoint's weights: a bundle's manifest says it, and the bundle was checked against that."""
    if manifest is not None:
        return str(manifest["files"]["weights.safetensors"]["sha256"])
    return sha256_file(folder / "weights.safetensors")
