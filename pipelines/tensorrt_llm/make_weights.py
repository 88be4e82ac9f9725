"""Writes the weight files of this folder from the weights of its bundle, without Enginewright.

    python3 make_weights.py NEW_FOLDER

`weights.json` beside this file lists what to write: for each file its header, then pieces of the sources. A piece is
(source, offset, length, stride, rows): `rows` times `length` bytes, `stride` bytes apart; source -1 stands for zeros.
Sources and results are checked by size and sha256. At most CHUNK_BYTES are in memory, and a file has its name when it
is complete. Standard library only, as the host that runs this has nothing of ours.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

CHUNK_BYTES = 16 * 2**20
PLAN_FILE = "weights.json"


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python3 make_weights.py NEW_FOLDER")
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        with open(os.path.join(here, PLAN_FILE), encoding="utf-8") as file:
            plan = json.load(file)
        check_sources(here, plan["sources"])
        for entry in plan["files"]:
            print("writing", entry["path"], flush=True)
            write_file(here, plan["sources"], entry, os.path.join(arguments[0], entry["path"]))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def check_sources(folder: str, sources: list[dict[str, Any]]) -> None:
    """Raise ValueError unless every source has its size and sha256."""
    for source in sources:
        path = os.path.join(folder, source["path"])
        size = os.path.getsize(path)
        if size != source["size"]:
            raise ValueError(f"{path} has {size} bytes, not {source['size']}; copy the bundle again")
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != source["sha256"]:
            raise ValueError(f"{path} has sha256 {digest.hexdigest()}, not {source['sha256']}; copy the bundle again")


def write_file(folder: str, sources: list[dict[str, Any]], entry: dict[str, Any], path: str) -> str:
    """Write one file and return its sha256.

    Raises ValueError where the plan names another one.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    digest = hashlib.sha256()
    partial = path + ".partial"
    try:
        with open(partial, "wb") as file:
            for chunk in contents(folder, sources, entry):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != entry.get("sha256", digest.hexdigest()):
            raise ValueError(f"{path} came out with sha256 {digest.hexdigest()}, not {entry['sha256']}")
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    return digest.hexdigest()


def contents(folder: str, sources: list[dict[str, Any]], entry: dict[str, Any]) -> Iterator[bytes]:
    """The bytes of one file in chunks: its header, with its length before it, then the pieces."""
    header = entry["header"].encode()
    yield len(header).to_bytes(8, "little") + header
    descriptors = [os.open(os.path.join(folder, source["path"]), os.O_RDONLY) for source in sources]
    try:
        for source, offset, length, stride, rows in entry["pieces"]:
            if source < 0:
                yield from zeros(length * rows)
            else:
                yield from read_piece(descriptors[source], offset, length, stride, rows)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def zeros(length: int) -> Iterator[bytes]:
    for start in range(0, length, CHUNK_BYTES):
        yield bytes(min(CHUNK_BYTES, length - start))


def read_piece(descriptor: int, offset: int, length: int, stride: int, rows: int) -> Iterator[bytes]:
    if stride == length or rows == 1:  # one run of bytes
        end = offset + length * rows
        for start in range(offset, end, CHUNK_BYTES):
            yield read_exactly(descriptor, min(CHUNK_BYTES, end - start), start)
        return
    together = max(1, CHUNK_BYTES // stride)
    for first in range(0, rows, together):
        count = min(together, rows - first)
        block = memoryview(read_exactly(descriptor, (count - 1) * stride + length, offset + first * stride))
        yield b"".join(block[row * stride : row * stride + length] for row in range(count))


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise ValueError(f"a source file ends before byte {offset + length}; copy the bundle again")
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
