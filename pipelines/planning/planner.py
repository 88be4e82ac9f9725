"""Walks the stages of a build as the runner would and finds for each whether the cache has it, and if not, why."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.cache import METADATA_FILE, Cache, Entry, Metadata
from pipelines.config import CachePolicy
from pipelines.digest import json_digest
from pipelines.keys import Node, key_parts
from pipelines.planning.misses import differences, only_differs_in_inputs
from pipelines.redaction import redacted
from pipelines.stage import Artifact

Outcome = Literal["cached", "build", "depends", "stops"]
UNKNOWN = ""  # the digest of an output that does not exist yet


@dataclass(frozen=True)
class Earlier:
    """An artifact of the same stage that is in the cache."""

    entry: Entry
    metadata: Metadata


@dataclass(frozen=True)
class StagePlan:
    """One stage of the build to come. `output` is what is known of its result, `nearest` the artifact most like it."""

    name: str
    outcome: Outcome
    why: str
    parts: Mapping[str, Any]
    output: Earlier | None
    nearest: Earlier | None
    earlier: tuple[Earlier, ...]  # all of this stage, last used first

    @property
    def runs(self) -> bool:
        return self.outcome != "cached"


@dataclass(frozen=True)
class Planner:
    """Has the runner's `run`, so that pipelines/build.py gives it the very same stages."""

    cache: Cache
    policy: CachePolicy
    roots: Mapping[str, Path] | None = None

    def run(self, node: Node, inputs: Mapping[str, StagePlan]) -> StagePlan:
        """Plan one stage, given the plans of its inputs.

        Raises:
            EnginewrightError: a library that the key names is not installed.
        """
        unknown = [name for name, plan in inputs.items() if plan.output is None]
        parts = key_parts(node, {name: artifact_of(plan) for name, plan in inputs.items()}, self.roots)
        entry = self.cache.entry(node.stage.name, json_digest(parts))
        metadata = None if unknown or node.always else entry.load()
        output = Earlier(entry, metadata) if metadata else None
        shown = redacted(parts)
        earlier = earlier_artifacts(self.cache.root / node.stage.name)
        nearest = output or min(
            earlier, key=lambda item: len(differences(shown, item.metadata.made_from)), default=None
        )
        outcome, why = self.decide(entry, shown, unknown, output, nearest)
        if node.always and outcome == "build":
            why = "runs in every build"
        return StagePlan(node.stage.name, outcome, why, shown, output, nearest, earlier)

    def decide(
        self,
        entry: Entry,
        parts: Mapping[str, Any],
        unknown: list[str],
        output: Earlier | None,
        nearest: Earlier | None,
    ) -> tuple[Outcome, str]:
        """Whether the stage runs, and the reason in words."""
        if self.policy in (CachePolicy.off, CachePolicy.redo):
            return "build", f"cache={self.policy.value} builds everything"
        if output is not None:
            return "cached", ""
        if unknown and nearest and only_differs_in_inputs(parts, nearest.metadata.made_from, unknown):
            return "depends", f"cached if {', '.join(unknown)} gives the same output as before"
        why = self.miss(entry, parts, unknown, nearest)
        return ("stops", f"{why}; cache=readonly") if self.policy is CachePolicy.readonly else ("build", why)

    def miss(self, entry: Entry, parts: Mapping[str, Any], unknown: list[str], nearest: Earlier | None) -> str:
        if not unknown and entry.folder.exists():
            return "the cached output is damaged"
        if nearest is None:
            return "not in the cache"
        known = {**parts, "inputs": {name: value for name, value in parts["inputs"].items() if name not in unknown}}
        changed = differences(known, nearest.metadata.made_from, ignored_inputs=unknown)
        return "; ".join(changed or [f"needs the output of {', '.join(unknown)}"])


def artifact_of(plan: StagePlan) -> Artifact:
    return Artifact(Path(), UNKNOWN) if plan.output is None else plan.output.entry.artifact(plan.output.metadata)


def earlier_artifacts(folder: Path) -> tuple[Earlier, ...]:
    """Every complete artifact of one stage, last used first."""
    files = sorted(folder.glob(f"*/{METADATA_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = [(Entry(path.parent), Entry(path.parent).load()) for path in files]
    return tuple(Earlier(entry, metadata) for entry, metadata in found if metadata is not None)


def as_plain(name: str, plan: StagePlan) -> dict[str, Any]:
    """One stage for JSON under the build's name for it; `key` is null while an input is unknown."""
    return {
        "stage": name,
        "outcome": plan.outcome,
        "why": plan.why,
        "key": plan.output.metadata.key if plan.output else None,
        "made_from": json.loads(json.dumps(plan.parts, default=str)),
    }
