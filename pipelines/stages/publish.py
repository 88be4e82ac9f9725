"""Publish: the packaged bundle to every place that the build names, each time it runs.

Its output says where the bundle is; the places themselves know whether they have it already.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.config import PublishJob
from pipelines.redaction import redacted_text
from pipelines.stage import Artifact, StageContext, StageOutput


class PublishStage:
    name = "publish"
    hardware_bound = False
    libraries: tuple[str, ...] = ()
    resources: tuple[Path, ...] = ()

    def run(
        self, config: PublishJob, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Send the bundle, place after place; the first that fails ends the build, and the next one goes on."""
        from pipelines.publish.destinations import open_destination
        from pipelines.publish.publication import read_publication

        destinations = [open_destination(location, config.tracking, config.paths) for location in config.to]
        publication = read_publication(inputs["package"].path)
        sent_bytes = 0
        for number, destination in enumerate(destinations):
            shown = redacted_text(destination.location)
            context.progress.advance(number, len(destinations), shown)
            outcome = destination.publish(publication, config.replace)
            sent_bytes += outcome.sent_bytes
            context.log.info(outcome.describe(shown))
        places = [redacted_text(destination.location) for destination in destinations]
        record = {"bundle_id": publication.bundle.bundle_id, "places": places}
        (out_dir / "published.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return StageOutput(
            metrics={"published_bytes": sent_bytes}, summary=f"{', '.join(places)}; {sent_bytes / 1e6:.1f} MB sent"
        )


STAGE = PublishStage()
