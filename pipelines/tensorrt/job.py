"""What a plan is built from, as the process that builds it is told."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.formats.tensorrt_plan import Profile


@dataclass(frozen=True)
class PlanJob:
    """Paths are absolute. What a library does not know is left at its default."""

    library: str  # the module: tensorrt_rtx or tensorrt
    graph: str  # an ONNX file, its weights where it says
    plan: str  # is written
    profiles: tuple[Profile, ...]
    archs: tuple[str, ...] = ()  # sm_86 ...; empty: the library's default
    strip: bool = False  # leave weights out, to be refitted with the same
    plugins: bool = False  # nodes of our domain are our plugins, not functions
    workspace_bytes: int = 0  # 0: all there is
    version_compatible: bool = False
    hardware: str = ""  # a HardwareCompatibilityLevel, such as ampere_plus
    timing_cache: str = ""  # read if it is there, and written

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "PlanJob":
        fields = json.loads(path.read_text(encoding="utf-8"))
        profiles = tuple(Profile.of(profile) for profile in fields.pop("profiles"))
        return cls(**fields | {"profiles": profiles, "archs": tuple(fields["archs"])})
