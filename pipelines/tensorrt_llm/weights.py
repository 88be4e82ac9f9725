"""Weight files for TensorRT-LLM, written into the folder or left to its script: one plan and one copier for both."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.tensorrt_llm import make_weights
from runtime.formats.digest import sha256_file

MAKE_SCRIPT = "make_weights.py"


class Source(NamedTuple):
    """A file that weights are copied from."""

    path: Path  # here
    name: str  # seen from the folder, in the bundle


def write_weights(
    files: Sequence[dict[str, Any]], sources: Sequence[Source], out_dir: Path, report: Callable[[float, str], None]
) -> None:
    """Write every planned file below `out_dir`."""
    here = [{"path": str(source.path.absolute())} for source in sources]
    for number, entry in enumerate(files):
        report(number / len(files), f"writing {entry['path']}")
        make_weights.write_file("", here, entry, str(out_dir / entry["path"]))


def leave_weights(
    files: Sequence[dict[str, Any]], sources: Sequence[Source], out_dir: Path, report: Callable[[float, str], None]
) -> None:
    """Write what makes the files elsewhere: the plan, with the digest of each, and the program that follows it."""
    here = [{"path": str(source.path.absolute())} for source in sources]
    planned = []
    for number, entry in enumerate(files):
        report(number / len(files), f"digesting {entry['path']}")
        digest = sha256()
        for chunk in make_weights.contents("", here, entry):
            digest.update(chunk)
        planned.append({**entry, "sha256": digest.hexdigest()})
    listed = [
        {"path": source.name, "size": source.path.stat().st_size, "sha256": sha256_file(source.path)}
        for source in sources
    ]
    text = json.dumps({"sources": listed, "files": planned}) + "\n"
    (out_dir / make_weights.PLAN_FILE).write_text(text, encoding="utf-8")
    (out_dir / MAKE_SCRIPT).write_bytes(Path(make_weights.__file__).read_bytes())


def write_digests(out_dir: Path, path: Path) -> None:
    """List the sha256 of every file of a folder, as sha256sum checks them."""
    names = sorted(item.relative_to(out_dir).as_posix() for item in out_dir.rglob("*") if item.is_file())
    path.write_text("".join(f"{sha256_file(out_dir / name)}  {name}\n" for name in names), encoding="utf-8")
