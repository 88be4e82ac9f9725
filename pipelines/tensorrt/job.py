"""What a plan is built from, as the process that builds it is told."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.formats.step_graph import GRAPH_FILE
from runtime.formats.tensorrt_plan import PLAN_FILE, Profile


@dataclass(frozen=True)
class PlanJob:
    """Paths are relative to the folder that the plan is built in. Defaults are the library's own."""

    library: str  # the module: tensorrt_rtx or tensorrt
    profiles: tuple[Profile, ...]
    graph: str = GRAPH_FILE  # its weights are where it says
    plan: str = PLAN_FILE  # is written
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
