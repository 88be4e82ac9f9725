"""Whether a bundle may take the champion's place: its attestations against the champion's, gate by gate.

Figures are the bundles' own. Speed is compared only where both were measured on the same machine.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config import PromoteConfig
from runtime.formats.attestations import (
    Measured,
    Verified,
    device,
    read_accepted_lengths,
    read_measured,
    read_verified,
)
from runtime.formats.bundle import MANIFEST_FILE

NONE = "none"
NOT_MEASURED = "not measured"


class Gate(NamedTuple):
    """One row of the verdict, in words."""

    name: str
    champion: str
    candidate: str
    bound: str
    passed: bool


@dataclass(frozen=True)
class Evidence:
    """What a bundle says of itself. accepted_length: of its own drafter; None where drafting was not measured."""

    targets: tuple[str, ...]
    verified: Verified | None
    measured: Measured | None
    accepted_length: float | None

    @staticmethod
    def read(folder: Path) -> "Evidence":
        """From a folder with a bundle's manifest and attestations."""
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        lengths = list(read_accepted_lengths(folder).values())  # the bundle's own drafter comes first
        return Evidence(
            tuple(sorted(manifest["targets"])), read_verified(folder), read_measured(folder), next(iter(lengths), None)
        )


def judge(
    candidate: Evidence, champion: Evidence | None, here: Mapping[str, Any], config: PromoteConfig
) -> list[Gate]:  # fmt: skip
    """Every gate; the champion's place is the candidate's if all pass. here: this machine's fingerprint.

    Without a champion, the verification alone counts.
    """
    gates = [_verification(candidate, champion, here)]
    if champion is not None:
        gates += [_acceptance(candidate, champion, config), *_speed(candidate, champion, config)]
    return gates


def _verification(candidate: Evidence, champion: Evidence | None, here: Mapping[str, Any]) -> Gate:
    """Verified, and on a machine whose engine computes as one here does."""
    report = candidate.verified
    on_this = report is not None and arch(report.hardware, candidate.targets) == arch(here, candidate.targets)
    passed = report is not None and report.passed and on_this
    return Gate("verify", _verdict(champion.verified) if champion else NONE, _verdict(report),
                f"passed on {device(here)}, or on its like", passed)  # fmt: skip


def arch(hardware: Mapping[str, Any] | None, targets: tuple[str, ...]) -> Any:
    """What of a fingerprint decides how an engine computes: instructions, and GPUs for what runs on them."""
    if hardware is None:
        return None
    gpus = sorted(hardware.get("gpus", [])) if targets != ("cpu",) else []
    return sorted(hardware.get("flags", [])), gpus


def _acceptance(candidate: Evidence, champion: Evidence, config: PromoteConfig) -> Gate:
    ours, theirs = candidate.accepted_length, champion.accepted_length
    bound = NONE if theirs is None else f"at least {theirs * (1 - config.max_acceptance_loss):.2f}"
    passed = theirs is None or (ours is not None and ours >= theirs * (1 - config.max_acceptance_loss))
    return Gate("accepted length", _figure(theirs, ".2f"), _figure(ours, ".2f"), bound, passed)


def _speed(candidate: Evidence, champion: Evidence, config: PromoteConfig) -> Iterator[Gate]:
    """One gate for each decode workload that both have; one alone where they cannot be compared."""
    if champion.measured is None:
        yield Gate("decode", NOT_MEASURED, NOT_MEASURED if candidate.measured is None else "measured", NONE, True)
        return
    if candidate.measured is None:
        yield Gate("decode", "measured", NOT_MEASURED, "measured", False)
        return
    machines = [device(item.hardware, item.cpu) for item in (champion.measured, candidate.measured)]
    if champion.measured.hardware is None or champion.measured.hardware != candidate.measured.hardware:
        bound = "any machine (promote.other_hardware)" if config.other_hardware else "the same machine"
        yield Gate("decode", f"on {machines[0]}", f"on {machines[1]}", bound, config.other_hardware)
        return
    ours, theirs = decode_speeds(candidate.measured), decode_speeds(champion.measured)
    common = [key for key in theirs if key in ours]
    for batch_size, prompt_len in common:
        speed, limit = ours[batch_size, prompt_len], theirs[batch_size, prompt_len] * (1 - config.max_decode_loss)
        yield Gate(
            f"decode tokens/s, batch {batch_size}, prompt {prompt_len}",
            _figure(theirs[batch_size, prompt_len], ",.1f"), _figure(speed, ",.1f"), f"at least {limit:,.1f}",
            speed >= limit,
        )  # fmt: skip
    if not common:
        yield Gate("decode", f"{len(theirs)} workloads", f"{len(ours)} workloads", "one in common", False)


def decode_speeds(measured: Measured) -> dict[tuple[int, int], float]:
    """Median tokens/s by batch size and prompt length."""
    speeds = measured.speeds().items()
    return {
        (batch_size, prompt_len): median for (case, batch_size, prompt_len), (median, _) in speeds if case == "decode"
    }


def _verdict(report: Verified | None) -> str:
    if report is None:
        return "not verified"
    return f"{'passed' if report.passed else 'failed'} on {device(report.hardware)}"


def _figure(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)
