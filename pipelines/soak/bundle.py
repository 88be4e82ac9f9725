"""A copy of a bundle whose engine computes in float64 and has little room, so that requests fight for blocks."""

import shutil
from dataclasses import replace
from pathlib import Path

from runtime.formats.bundle import ENGINES_DIR, open_bundle
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.manifest import ATTESTATIONS_DIR, write_manifest

MAX_SEQ_LEN, BLOCK_SIZE, NUM_BLOCKS = 256, 16, 72  # of 16 slots, which would take 256 blocks at most


def exact_copy(bundle: Path, folder: Path) -> Path:
    """Write the copy: with float64, an answer in a crowd equals the answer alone, token for token.

    Raises:
        EnginewrightError: the bundle is damaged or has no engine for the CPU.
    """
    opened = open_bundle(bundle)
    plan = EnginePlan.read(opened.engine_dir("cpu"))
    shutil.copytree(opened.path, folder, ignore=shutil.ignore_patterns(ATTESTATIONS_DIR))
    small = replace(
        plan, dtype="float64", linear="torch", max_seq_len=MAX_SEQ_LEN, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS
    )
    small.write(folder / ENGINES_DIR / "cpu")
    model, provenance = (dict(opened.manifest[part]) for part in ("model", "provenance"))
    write_manifest(folder, model, {"cpu": {**opened.manifest["targets"]["cpu"], "dtype": "float64"}}, provenance)
    return folder
