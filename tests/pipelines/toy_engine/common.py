import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class ToyStage:
    """Writes its configuration and its inputs' digests."""

    name: str
    file: str
    hardware_bound: bool = False
    libraries: tuple[str, ...] = ("filelock",)
    resources: tuple[Path, ...] = ()

    def run(self, config: Any, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext) -> StageOutput:
        context.progress.advance(1, 2, "half")
        context.log.info("toy %s", self.name)
        seen = {"config": asdict(config), "inputs": {name: artifact.digest for name, artifact in inputs.items()}}
        (out_dir / self.file).write_text(json.dumps(seen, default=str, sort_keys=True))
        if getattr(config, "num_prompts", 0) == 13:
            raise EnginewrightError("greedy agreement 0.1 is below 0.95")
        return StageOutput(metrics={f"{self.name}_toy_ms": 1.5}, summary=f"{self.name} did it")
