"""A stage's log file, and what is kept of a stage that failed."""

import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.cache import LOG_FILE
from pipelines.redaction import RedactingFormatter, redacted_text

MAX_REPORT_BYTES = 16 * 2**20  # a failed stage's larger files are data, not a report


def keep_report(temporary: Path, kept: Path) -> Path | None:
    """Move a failed stage's log and what it wrote, large files excepted, to where a person finds them.

    Returns None, with nothing left behind, where the file system does not take it: it may be why the stage failed.
    """
    content = temporary / "content"
    try:
        for path in [path for path in content.rglob("*") if path.is_file() and path.stat().st_size > MAX_REPORT_BYTES]:
            path.unlink()
        with (temporary / LOG_FILE).open("a") as file:
            file.write(redacted_text(traceback.format_exc()))
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(temporary, kept)
    except OSError:  # shutil.Error is one too
        shutil.rmtree(temporary, ignore_errors=True)
        return None
    return kept


class StageLogHandler(logging.FileHandler):
    """Writes without secrets. A log that cannot be written stops no stage: what fills the disk will."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass

    def close(self) -> None:
        with suppress(OSError):  # what could not be written before
            super().close()


@contextmanager
def stage_log(path: Path, stage: str) -> Iterator[logging.Logger]:
    """Write the stage's own lines and every library's to a file."""
    handler = StageLogHandler(path)
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
