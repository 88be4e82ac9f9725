"""What a tracking store missed that broke while a build went on: kept beside the local store until it is back.

<root>/mlflow/lost.jsonl    one line a build: the store, why, the runs left open and how the build ended
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LOST_FILE = "lost.jsonl"


@dataclass(frozen=True)
class Loss:
    """One build whose record ends early. The URI is without secrets."""

    uri: str
    reason: str
    run_ids: Sequence[str]  # still open in the store
    status: str  # of the build, in MLflow's words


def remember(folder: Path, loss: Loss) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOST_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(loss)) + "\n")


def recall(folder: Path, uri: str) -> list[Loss]:
    """The losses of one store; a line that is none, as of a write that was cut off, is left out."""
    return [loss for loss in read(folder) if loss.uri == uri]


def forget(folder: Path, uri: str) -> None:
    """Drop the losses of a store that has been told of them."""
    kept = [loss for loss in read(folder) if loss.uri != uri]
    fresh = folder / f".{LOST_FILE}.{os.getpid()}"
    fresh.write_text("".join(json.dumps(asdict(loss)) + "\n" for loss in kept), encoding="utf-8")
    os.replace(fresh, folder / LOST_FILE)


def read(folder: Path) -> list[Loss]:
    try:
        lines = (folder / LOST_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    losses = []
    for line in lines:
        try:
            losses.append(Loss(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return losses
