"""A row's file: it is there once the row was measured to its end, and says of which sources."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

END = {"kind": "end"}


def row_file(folder: Path, row: str) -> Path:
    return folder / f"{row}.jsonl"


def part_file(folder: Path, row: str) -> Path:
    """Where lines go until the last one is there."""
    return folder / f"{row}.part"


def write_row(folder: Path, row: str, lines: Iterable[dict[str, Any]]) -> None:
    """Write lines as they come; the file takes the place of an older one when there are no more."""
    part = part_file(folder, row)
    with part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
        file.write(json.dumps(END) + "\n")
    part.replace(row_file(folder, row))


def is_complete(path: Path, digest: str) -> bool:
    """Whether a row was measured to its end, of these sources."""
    try:
        first, *_, last = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # never measured, or cut in the middle of a line
        return False
    return bool(first.get("source_digest") == digest and last == END)
