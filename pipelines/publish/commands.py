"""`enginewright publish`, `pull`, `promote` and `rollback`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.publish.destinations import FORMS
from runtime.errors import EnginewrightError

AddCommand = Callable[[Any, str, Any, str], argparse.ArgumentParser]


def add_publish_commands(commands: Any, add: AddCommand) -> None:
    """Add them to subparsers."""
    publish = add(commands, "publish", publish_command, "send a bundle to one or more places, once each")
    publish.add_argument("bundle", type=Path, help="the bundle's folder, or its .tar.zst")
    publish.add_argument("to", nargs="+", metavar="DESTINATION", help=FORMS)
    publish.add_argument("--replace", action="store_true", help="another bundle that is there gives way")
    pull = add(commands, "pull", pull_command, "bring a published bundle back as a folder")
    pull.add_argument("location", help=FORMS)
    pull.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")


def publish_command(options: argparse.Namespace) -> None:
    """Publish to each destination; one that fails does not keep the others from theirs.

    Raises:
        EnginewrightError: the bundle is damaged, an address is none, or a destination failed.
    """
    from pipelines.loading import load_config
    from pipelines.publish.destinations import open_destination
    from pipelines.publish.errors import shown
    from pipelines.publish.publication import read_publication

    config = load_config([], os.environ)
    destinations = [open_destination(location, config.tracking, config.paths) for location in options.to]
    publication = read_publication(options.bundle)
    failed = []
    for destination in destinations:
        try:
            print(destination.publish(publication, options.replace).describe(shown(destination.location)))
        except EnginewrightError as error:
            failed.append(error)
    for failure in failed[:-1]:
        print(f"error: {failure}", file=sys.stderr)
    if failed:
        raise failed[-1]


def pull_command(options: argparse.Namespace) -> None:
    from pipelines.loading import load_config
    from pipelines.publish.destinations import open_destination
    from pipelines.publish.pulling import pull

    config = load_config([], os.environ)
    bundle = pull(open_destination(options.location, config.tracking, config.paths), options.out)
    print(f"{bundle.path}: bundle {bundle.bundle_id[:12]}, every file checked")
