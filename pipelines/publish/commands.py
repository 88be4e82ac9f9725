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
    promote = add(
        commands, "promote", promote_command, "make the registry's candidate its champion if it passes the gates"
    )
    add_model_name(promote)
    promote.add_argument("--version", default="", help="another version than the candidate")
    promote.add_argument(
        "overrides", nargs="*", metavar="key=value", help="bounds, such as promote.max_decode_loss=0.1"
    )
    add_model_name(add(commands, "rollback", rollback_command, "make the champion's predecessor the champion again"))


def add_model_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", dest="model_name", default="", help="registered model (default: the only one)")


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


def promote_command(options: argparse.Namespace) -> None:
    """Judge a version and print its gates.

    Raises:
        EnginewrightError: a gate failed, and nothing moved.
    """
    from rich.console import Console

    from pipelines.loading import load_config
    from pipelines.publish.promotion import Registry
    from pipelines.publish.promotion_table import gate_table

    config = load_config(options.overrides, os.environ)
    verdict = Registry(config.tracking, config.paths).promote(options.model_name, options.version, config.promote)
    Console().print(gate_table(verdict))
    if not verdict.passed:
        failed = ", ".join(gate.name for gate in verdict.gates if not gate.passed)
        raise EnginewrightError(f"version {verdict.version} of {verdict.name} is no champion: {failed}; nothing moved")
    print(f"version {verdict.version} of {verdict.name} is the champion (before: {verdict.champion or 'none'})")


def rollback_command(options: argparse.Namespace) -> None:
    from pipelines.loading import load_config
    from pipelines.publish.promotion import Registry

    config = load_config([], os.environ)
    verdict = Registry(config.tracking, config.paths).rollback(options.model_name)
    print(f"version {verdict.version} of {verdict.name} is the champion again, instead of {verdict.champion}")
