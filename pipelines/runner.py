"""Runs one stage: finds it in the cache or builds, publishes and records it.

The key names everything that decides a stage's output. The runner knows no particular stage.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cache import LOG_FILE, Cache, Entry, Metadata
from pipelines.config import CachePolicy
from pipelines.digest import json_digest
from pipelines.keys import Node, key_parts
from pipelines.plain import plain
from pipelines.progress import BuildProgress
from pipelines.redaction import redacted
from pipelines.stage import Artifact, Stage, StageContext
from pipelines.stagelog import keep_report, stage_log
from pipelines.storage import storage_error
from pipelines.tracking import StageRun, Tracker
from runtime.errors import EnginewrightError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    artifact: Artifact
    metadata: Metadata
    cached: bool


@dataclass(frozen=True)
class Runner:
    cache: Cache
    failed: Path
    policy: CachePolicy
    tracker: Tracker
    progress: BuildProgress
    roots: Mapping[str, Path] | None = None  # first-party packages, for the code digest

    def run(self, node: Node, inputs: Mapping[str, StageResult]) -> StageResult:
        """Return the stage's artifact, built or from the cache.

        Raises:
            EnginewrightError: the stage failed, or the policy is readonly and the stage is not cached.
        """
        made_from = key_parts(node, {name: result.artifact for name, result in inputs.items()}, self.roots)
        entry = self.cache.entry(node.stage.name, json_digest(made_from))
        reads = self.policy in (CachePolicy.on, CachePolicy.readonly) and not node.always
        result = self.cached(entry) if reads else None
        if result is None and self.policy is CachePolicy.readonly:
            raise EnginewrightError(f"stage {node.name} is not in the cache and cache=readonly; write cache=on")
        if result is None:
            with entry.lock():
                # Whoever held the lock before may have made it.
                result = (self.cached(entry) if reads else None) or self.build(node, inputs, entry, made_from)
        if result.cached:
            self.progress.cached(node.name)
            self.tracker.stage_cached(node.name, result.metadata)
        return result

    def cached(self, entry: Entry) -> StageResult | None:
        self.cache.hold(entry)  # before it is looked at, or it could be cleaned away in between
        metadata = entry.load()
        if metadata is None:
            return None
        entry.tidy()
        entry.mark_used()
        return StageResult(entry.artifact(metadata), metadata, cached=True)

    def build(
        self, node: Node, inputs: Mapping[str, StageResult], entry: Entry, made_from: dict[str, Any]
    ) -> StageResult:
        """Run the stage in a temporary folder and publish it; the caller holds the lock."""
        name = node.name
        if node.check_inputs:
            check_inputs(name, inputs)
        previous = entry.load(report=True)
        folder = entry.begin()
        started = time.monotonic()
        with self.recorded(node, entry) as run, stage_log(folder / LOG_FILE, name) as stage_logger:
            with self.progress.stage(name) as progress:
                context = StageContext(entry.scratch, self.cache.root, progress, stage_logger)
                artifacts = {key: result.artifact for key, result in inputs.items()}
                output = node.stage.run(node.config, artifacts, folder / "content", context)
            seconds = time.monotonic() - started
            stage_logger.info("finished in %.1f s: %s", seconds, output.summary)
            done = Metadata(node.stage.name, entry.folder.name, redacted(made_from), metrics=dict(output.metrics),
                            summary=redacted(output.summary), seconds=seconds, run_id=run.run_id)  # fmt: skip
            metadata = entry.publish(done, previous)
            self.cache.hold(entry)
        run.published(metadata, entry.folder, output.curves)
        if previous is not None and previous.digest != metadata.digest:
            warn_different(node.stage, previous, metadata)
        return StageResult(entry.artifact(metadata), metadata, cached=False)

    @contextmanager
    def recorded(self, node: Node, entry: Entry) -> Iterator[StageRun]:
        """Track the run; on any exception keep its log and report, and publish nothing."""
        name = node.name
        run = self.tracker.stage_started(name, entry.folder.name, plain(node.config))
        try:
            yield run
        except Exception as error:
            explained = storage_error(error, entry.temporary, f"stage {name}") or error
            kept = keep_report(entry.temporary, self.failed / f"{name}-{entry.folder.name[:12]}")
            run.failed(explained, kept)
            report = f"log and report: {kept}" if kept else "its log could not be kept"
            if isinstance(explained, EnginewrightError):
                raise EnginewrightError(f"{name}: {explained} ({report})") from explained
            error.add_note(f"stage {name} failed; {report}")
            raise
        except BaseException as error:  # interrupted: there is nothing to report
            shutil.rmtree(entry.temporary, ignore_errors=True)
            run.failed(error, None)
            raise


def check_inputs(stage: str, inputs: Mapping[str, StageResult]) -> None:
    """Compare every byte of the inputs with what was published.

    Raises:
        EnginewrightError: a cached file was changed.
    """
    for name, result in inputs.items():
        damaged = Entry(result.artifact.path.parent).damaged_files(result.metadata)
        if damaged:
            raise EnginewrightError(
                f"{stage}: the cached output of {name} was changed ({', '.join(damaged)}); build again with cache=redo"
            )


def warn_different(stage: Stage, previous: Metadata, metadata: Metadata) -> None:
    if stage.hardware_bound:
        log.info("%s measured again: its output is new", stage.name)
    else:
        log.warning("stage %s gave another output from the same inputs: %s, before %s; what depends on it is new too",
                    stage.name, metadata.digest[:12], previous.digest[:12])  # fmt: skip
