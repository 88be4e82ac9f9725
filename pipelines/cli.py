"""The command line of a build: `python -m pipelines`, also `enginewright engine`, a Hydra application.

Exits with 0, with 1 and one line for whatever a user can mend, with 130 or 143 when interrupted; a traceback is a bug.
"""

import logging
import os
import signal
import sys
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.logging import RichHandler

from pipelines.build import run_build
from pipelines.config_errors import COMPOSITION_ERRORS, explain
from pipelines.export import command as export_command
from pipelines.loading import build_config, translate
from pipelines.redaction import RedactingFormatter, RedactingStream, redacted_text
from pipelines.summary import print_summary
from runtime.errors import EnginewrightError


class UnexpectedError(Exception):
    """Carries an unexpected exception past Hydra, whose own errors are the user's."""


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def application(composed: DictConfig) -> str:
    """Run one build; Hydra calls this once, or once for each job of a multirun. Returns the bundle's path."""
    try:
        redact_sweep_file()
        config = build_config(composed)
        console = Console(stderr=True)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries; the failure itself is reported once
        handler = RichHandler(logging.WARNING, console, show_time=False, show_path=False)
        handler.setFormatter(RedactingFormatter("%(message)s"))  # before colours come between its letters
        logging.basicConfig(handlers=[handler], force=True)
        build = run_build(config, console)
        print_summary(build, console)
    except EnginewrightError as error:
        # A sweep goes on to its other jobs, and Hydra raises this one's error at its end.
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            fail(str(error))
        print(f"error: {error}", file=sys.stderr)
        raise
    except COMPOSITION_ERRORS as error:
        raise UnexpectedError from error
    return str(build.bundle)


def main() -> None:
    """Run the command line of this process."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us as they are; we print the line
    signal.signal(signal.SIGTERM, terminate)
    sys.excepthook = print_bug
    try:
        if sys.argv[1:2] == ["export-hf"]:
            export_command.run(sys.argv[2:])
            return
        sys.argv[1:] = translate(sys.argv[1:], os.environ)
        # Hydra prints the overrides of a job that failed, and libraries what they please.
        with redirect_stderr(cast(TextIO, RedactingStream(sys.stderr))):
            application()
    except EnginewrightError as error:
        fail(str(error))
    except UnexpectedError as error:
        raise (error.__cause__ or error) from None
    except COMPOSITION_ERRORS as error:
        fail(explain(error))
    except KeyboardInterrupt:
        print("interrupted; stages that were finished stay cached", file=sys.stderr)
        sys.exit(130)


def redact_sweep_file() -> None:
    """Take secrets out of what Hydra keeps of a sweep: its overrides, and with them the tracking store's URI."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        path = Path(HydraConfig.get().sweep.dir, "multirun.yaml")
        if path.is_file():
            path.write_text(redacted_text(path.read_text(encoding="utf-8")), encoding="utf-8")


def fail(line: str) -> None:
    print(f"error: {redacted_text(line)}", file=sys.stderr)
    sys.exit(1)


def print_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unexpected exception as Python does, without secrets."""
    print(redacted_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def terminate(number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C: through the blocks that clean up."""
    sys.exit(128 + number)
