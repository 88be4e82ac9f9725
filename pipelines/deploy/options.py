"""What a bundle does not say of its deployment, also as options of the command line. Imports nothing heavy."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from runtime.errors import EnginewrightError

HELP = {
    "target": "which of its engines",
    "image": "the image's name; empty is enginewright/<name>:<first 12 of the bundle's id>",
    "cpus": "cores of one replica, and threads of its engine",
    "replicas": "how many replicas run",
}


@dataclass(frozen=True)
class DeployOptions:
    """See HELP. With a public key, replicas refuse a bundle that its owner did not sign."""

    target: str = "cpu"
    image: str = ""
    cpus: int = 4
    replicas: int = 1
    public_key: Path | None = None

    def __post_init__(self) -> None:
        for name in ("cpus", "replicas"):
            if getattr(self, name) < 1:
                raise EnginewrightError(f"{name} is {getattr(self, name)}; it must be at least 1")


def add_options(parser: argparse.ArgumentParser, latest: Path) -> None:
    """Add the bundle, the folder and every option, with its own default."""
    parser.add_argument("bundle", type=Path, nargs="?", default=latest, help="its folder (default: the latest)")
    parser.add_argument("out", type=Path, help="the new folder")
    for field in fields(DeployOptions):
        if field.name in HELP:
            text = f"{HELP[field.name]} (default: {field.default!r})"
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=text)
    parser.add_argument("--require-signature", type=Path, dest="public_key", metavar="PUBLIC_KEY",
                        help="serve only what the owner of this key signed")  # fmt: skip


def options_of(parsed: argparse.Namespace) -> DeployOptions:
    return DeployOptions(**{field.name: getattr(parsed, field.name) for field in fields(DeployOptions)})
