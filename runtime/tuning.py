"""Which kernels passes over few rows take on one device: measured there, and kept in the bundle's attestations.

attestations/tune_cuda/<device>.json names the device and the digest of the kernels. What was measured for another
device, or with other kernels, is not read: the engine then takes what is usually fastest.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from runtime.batch import Batch
from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file
from runtime.formats.kernel_list import KERNELS_FILE
from runtime.formats.manifest import ATTESTATIONS_DIR
from runtime.model.decoder import DecoderOutput

TUNE_DIR = "tune_cuda"
ROWS = (1, 2, 4, 8, 16, 32, 64)
_SCHEMA, _GROUPS, _REPLAYS = 1, 5, 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """paths: by rows of a pass, the name of the kernels that took least time; a pass takes those of the next number up.

    Passes over more rows than any take what the engine takes without choices.
    """

    paths: Mapping[int, str] = field(default_factory=dict)

    def path(self, num_rows: int) -> str | None:
        """The kernels for a pass over so many rows; None where nothing was measured."""
        rows = min((known for known in self.paths if known >= num_rows), default=None)
        return None if rows is None else self.paths[rows]


NO_CHOICES = Choices()


@dataclass(frozen=True)
class Timing:
    """us: microseconds of a pass, the mean of one request with `rows` new tokens and of `rows` requests with one."""

    rows: int
    path: str
    us: float


class TunableBackend(Protocol):
    """A backend with several kinds of kernels for a pass."""

    def paths(self, batch: Batch) -> list[str]:
        """The kinds that take this batch."""
        ...

    def forward_on(self, path: str, batch: Batch) -> DecoderOutput: ...
    def prepared(self, run: Callable[[], object]) -> Callable[[], object]: ...


def device_name() -> str:
    """Torch's current GPU, as far as speed depends on it."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} SMs"


def measure(
    backend: TunableBackend, batch_of: Callable[[int, int], Batch], most_rows: int, report: Callable[[float, str], None]
) -> list[Timing]:
    """Time every kind of kernels over every number of rows that it takes.

    Args:
        batch_of: makes a batch of so many requests with so many tokens each.
        most_rows: that requests of one token may have together.
    """
    timings = []
    for done, rows in enumerate(ROWS):
        report(done / len(ROWS), f"passes over {rows} rows")
        batches = [batch_of(1, rows), *([batch_of(rows, 1)] if 1 < rows <= most_rows else [])]
        for path in backend.paths(batches[0]):
            if all(path in backend.paths(batch) for batch in batches):
                each = [_median_us(backend.prepared(partial(backend.forward_on, path, batch))) for batch in batches]
                timings.append(Timing(rows, path, sum(each) / len(each)))
    report(1.0, "passes timed")
    return timings


def choose(timings: list[Timing]) -> Choices:
    """The fastest of each number of rows; of equals the one that was measured first."""
    rows = sorted({timing.rows for timing in timings})
    return Choices({count: min((t for t in timings if t.rows == count), key=lambda t: t.us).path for count in rows})


def write_tuning(folder: Path, engine_dir: Path, device: str, timings: list[Timing], about: Mapping[str, Any]) -> Path:
    """Write the file of one device into `folder` and return its path.

    about: what else may be worth knowing of the machine.
    """
    fields = {
        "schema": _SCHEMA,
        "device": device,
        "kernels_sha256": sha256_file(engine_dir / KERNELS_FILE),
        "choices": {str(rows): path for rows, path in choose(timings).paths.items()},
        "timings": [vars(timing) for timing in timings],
        "about": dict(about),
    }
    path = folder / _file_name(device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise EnginewrightError(
            f"{path}: cannot be written ({error.strerror}); copy the bundle and tune that"
        ) from error
    return path


def read_choices(bundle: Path, engine_dir: Path, device: str) -> Choices:
    """What was measured for this device and these kernels; no choices where nothing was.

    A file that is damaged, or about other kernels, is named in a warning: it can only cost speed.
    """
    path = bundle / ATTESTATIONS_DIR / TUNE_DIR / _file_name(device)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["schema"] != _SCHEMA or fields["device"] != device:
            raise ValueError(f"schema {fields['schema']} of {fields['device']}")
        choices = Choices({int(rows): str(name) for rows, name in fields["choices"].items()})
        if fields["kernels_sha256"] == sha256_file(engine_dir / KERNELS_FILE):
            return choices
        _log.warning("%s: measured with other kernels, not used; tune the bundle again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s: unreadable (%r), not used; tune the bundle again", path, error)
    return NO_CHOICES


def _file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def _median_us(run: Callable[[], object]) -> float:
    """Microseconds of one call on the device."""
    run()
    times = []
    for _ in range(_GROUPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(_REPLAYS):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / _REPLAYS)
    return float(median(times))
