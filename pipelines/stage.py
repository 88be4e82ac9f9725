"""What a stage is and what it sees: types only, for the stages and for the runner that runs them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CUBINS = "cubins"  # below `StageContext.kept_dir`: images of CUDA kernels


class Progress(Protocol):
    """How far a stage is."""

    def advance(self, done: float, total: float = 1.0, text: str = "") -> None:
        """Show `done` of `total`, and what is being done; may be called as often as convenient."""


@dataclass(frozen=True)
class Artifact:
    """A published, immutable stage output."""

    path: Path  # the folder
    digest: str  # sha256 hex over sorted (relative posix path, file sha256) of the folder's content
    metrics: Mapping[str, float] = field(default_factory=dict)  # figures with units in their names


@dataclass(frozen=True)
class StageOutput:
    """What `run` returns; the runner turns it and the folder into an Artifact."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: str = ""  # key figures, one short line for the build's summary
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)  # by step, for tracking alone


@dataclass(frozen=True)
class StageContext:
    scratch_dir: Path  # survives a kill, deleted on publication
    kept_dir: Path  # survives builds: pieces under names of their own content, for any build to take
    progress: Progress
    log: logging.Logger  # goes to the stage's log file


class Stage(Protocol):
    """One step of a build. It knows no other stage, and imports heavy libraries in its functions only.

    Everything that may change its output is an argument of `run` or named here, as these make its cache key.
    """

    @property
    def name(self) -> str: ...

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions enter the key."""

    @property
    def hardware_bound(self) -> bool:
        """Whether the output depends on this machine (it measures)."""

    @property
    def resources(self) -> tuple[Path, ...]:
        """Files of ours that are not Python and whose bytes enter the key."""

    def run(self, config: Any, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext) -> StageOutput:
        """Fill the empty folder `out_dir`.

        Raises:
            EnginewrightError: bad input or a gate that was not met; what is in `out_dir` by then is kept as a report.
        """
