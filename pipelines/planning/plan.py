"""The plan of one build: its stages, and what they need of this machine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.build import STAGES, run_publish, run_stages
from pipelines.cache import Cache
from pipelines.config import BuildConfig
from pipelines.planning.costs import Cost, stage_cost
from pipelines.planning.gpus import Bound, decode_bounds
from pipelines.planning.model import KnownModel, known_model
from pipelines.planning.planner import Planner, StagePlan, as_plain
from pipelines.planning.sizes import ModelSizes, model_sizes
from pipelines.planning.wheel_size import Size
from runtime.machine import free_disk_bytes, memory


@dataclass(frozen=True)
class Plan:
    """Everything that can be told before a build. `sizes` and `bounds` are empty where the model is unknown."""

    config: BuildConfig
    stages: Mapping[str, StagePlan]
    costs: Mapping[str, Cost]  # of the stages that are not cached
    model: KnownModel
    draft_model: KnownModel | None  # the smaller model that drafts, where one does
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
        sizes = [download.num_bytes for download in self.downloads]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def download_note(self) -> str:
        return "; ".join(download.note for download in self.downloads if download.note)

    @property
    def downloads(self) -> tuple[Size, ...]:
        """Of the models that are to be fetched."""
        models = {"fetch": self.model, "draft_fetch": self.draft_model}
        return tuple(model.download for name, model in models.items() if model is not None and self.stages[name].runs)


def make_plan(config: BuildConfig, stages: str = STAGES) -> Plan:
    """Plan a build; changes nothing.

    Raises:
        EnginewrightError: the source is one that the build would refuse.
    """
    planner = Planner(Cache(config.paths.cache), config.cache)
    planned = run_stages(config, planner, stages)
    planned |= run_publish(config, planner, planned["package"], stages)
    model = known_model(config.model, planned["fetch"])
    sizes = model_sizes(model.spec, config) if model.spec else None
    drafting = known_model(config.draft.model, planned["draft_fetch"]) if "draft_fetch" in planned else None

    def cost(name: str, plan: StagePlan) -> Cost:
        if drafting is None or name not in ("draft_fetch", "draft_convert"):
            return stage_cost(plan, planned, model, sizes, config)
        draft_sizes = model_sizes(drafting.spec, config) if drafting.spec else None
        return stage_cost(plan, planned, drafting, draft_sizes, config)

    costs = {name: cost(name, plan) for name, plan in planned.items() if plan.runs}
    return Plan(
        config, planned, costs, model, drafting, sizes,
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
            {**as_plain(name, stage), "cost": asdict(plan.costs[name]) if name in plan.costs else None}
            for name, stage in plan.stages.items()
        ],
        "download": {"bytes": plan.download_bytes, "note": plan.download_note},
        "seconds": plan.seconds,
        "memory_bytes": plan.memory_bytes,
        "available_memory_bytes": plan.available_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "free_disk_bytes": plan.free_disk_bytes,
        "sizes": asdict(plan.sizes) if plan.sizes else None,
        "decode_bounds": [bound._asdict() for bound in plan.bounds],
        "note": plan.model.note,
    }
