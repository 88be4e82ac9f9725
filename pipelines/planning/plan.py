"""The plan of one build: its stages, and what they need of this machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.build import STAGES, run_stages
from pipelines.cache import Cache
from pipelines.config import BuildConfig
from pipelines.planning.costs import Cost, stage_cost
from pipelines.planning.gpus import Bound, decode_bounds
from pipelines.planning.model import KnownModel, known_model
from pipelines.planning.planner import Planner, StagePlan, as_plain
from pipelines.planning.sizes import ModelSizes, model_sizes
from runtime.machine import free_disk_bytes, memory


@dataclass(frozen=True)
class Plan:
    """Everything that can be told before a build. `sizes` and `bounds` are empty where the model is unknown."""

    config: BuildConfig
    stages: Mapping[str, StagePlan]
    costs: Mapping[str, Cost]  # of the stages that are not cached
    model: KnownModel
    sizes: ModelSizes | None
    bounds: tuple[Bound, ...]
    available_memory_bytes: int
    free_disk_bytes: int

    @property
    def seconds(self) -> float | None:
        """Of all stages that run or may run; None where one of them is unknown."""
        times = [cost.time.seconds if cost.time else None for cost in self.costs.values()]
        return None if None in times else sum(time for time in times if time is not None)

    @property
    def memory_bytes(self) -> int | None:
        """Of the stage that needs most; None where one is unknown."""
        peaks = [cost.memory_bytes for cost in self.costs.values()]
        return None if None in peaks else max((peak for peak in peaks if peak is not None), default=0)

    @property
    def disk_bytes(self) -> int | None:
        spaces = [cost.disk_bytes for cost in self.costs.values()]
        return None if None in spaces else sum(space for space in spaces if space is not None)

    @property
    def download_bytes(self) -> int | None:
        return self.model.download.num_bytes if self.stages["fetch"].runs else 0


def make_plan(config: BuildConfig, stages: str = STAGES) -> Plan:
    """Plan a build; changes nothing.

    Raises:
        EnginewrightError: the source is one that the build would refuse.
    """
    planned = run_stages(config, Planner(Cache(config.paths.cache), config.cache), stages)
    model = known_model(config.model, planned["fetch"])
    sizes = model_sizes(model.spec, config) if model.spec else None
    costs = {name: stage_cost(plan, planned, model, sizes, config) for name, plan in planned.items() if plan.runs}
    return Plan(
        config, planned, costs, model, sizes,
        bounds=tuple(decode_bounds(sizes)) if sizes else (),
        available_memory_bytes=memory()[1],
        free_disk_bytes=free_disk_bytes(config.paths.cache),
    )  # fmt: skip


def plan_as_plain(plan: Plan) -> dict[str, Any]:
    """The plan for JSON: null is what cannot be known yet."""
    return {
        "model": plan.config.model.name,
        "targets": list(plan.config.target.names),
        "precision": plan.config.precision.name,
        "stages": [
            {**as_plain(stage), "cost": asdict(plan.costs[name]) if name in plan.costs else None}
            for name, stage in plan.stages.items()
        ],
        "download": {"bytes": plan.download_bytes, "note": plan.model.download.note},
        "seconds": plan.seconds,
        "memory_bytes": plan.memory_bytes,
        "available_memory_bytes": plan.available_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "free_disk_bytes": plan.free_disk_bytes,
        "sizes": asdict(plan.sizes) if plan.sizes else None,
        "decode_bounds": [bound._asdict() for bound in plan.bounds],
        "note": plan.model.note,
    }
