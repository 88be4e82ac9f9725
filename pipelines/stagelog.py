"""A stage's log file, and what is kept of a stage that failed."""

import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.cache import LOG_FILE

MAX_REPORT_BYTES = 16 * 2**20  # a failed stage's larger files are data, not a report


def keep_report(temporary: Path, kept: Path) -> Path:
    """Move a failed stage's log and what it wrote, large files excepted, to where a person finds them."""
    content = temporary / "content"
    with (temporary / LOG_FILE).open("a") as file:
        file.write(traceback.format_exc())
    for path in [path for path in content.rglob("*") if path.is_file() and path.stat().st_size > MAX_REPORT_BYTES]:
        path.unlink()
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(temporary, kept)
    return kept


@contextmanager
def stage_log(path: Path, stage: str) -> Iterator[logging.Logger]:
    """Write the stage's own lines and every library's to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, logger = logging.getLogger(), logging.getLogger(f"enginewright.{stage}")
    level = logger.level
    logger.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield logger
    finally:
        root.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
