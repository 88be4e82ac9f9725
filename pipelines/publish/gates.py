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
from runtime.formats.manifest import MANIFEST_FILE
from runtime.targets import why_not_run

NONE = "none"
NOT_MEASURED = "not measured"


class Gate(NamedTuple):
    """One row of the verdict, in words."""

    name: str
    champion: str
    candidate: str
    bound: str
    passed: bool


class Machine(NamedTuple):
    """What one engine of a bundle was found to be, on the machines where that was looked at."""

    verified: Verified | None
    measured: Measured | None


@dataclass(frozen=True)
class Evidence:
    """What a bundle says of itself. accepted_length: of its own drafter; None where drafting was not measured."""

    engines: Mapping[str, Machine]  # by target
    accepted_length: float | None

    @staticmethod
    def read(folder: Path) -> "Evidence":
        """From a folder with a bundle's manifest and attestations."""
        targets = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["targets"]
        lengths = list(read_accepted_lengths(folder).values())  # the bundle's own drafter comes first
        engines = {name: Machine(read_verified(folder, name), read_measured(folder, name)) for name in sorted(targets)}
        return Evidence(engines, lengths[0] if lengths else None)

    def engine(self, target: str) -> Machine:
        return self.engines.get(target, Machine(None, None))


def judge(
    candidate: Evidence, champion: Evidence | None, here: Mapping[str, Any], config: PromoteConfig
) -> list[Gate]:  # fmt: skip
    """Every gate; the champion's place is the candidate's if all pass. here: this machine's fingerprint.

    The engines that the settings name count, else those that run on this machine. Without a champion, the verification
    alone counts.
    """
    runnable = tuple(target for target in candidate.engines if not why_not_run(target))
    chosen = config.targets or runnable or tuple(candidate.engines)
    gates = []
    for target in chosen:
        gates.append(_verification(target, candidate, champion, here))
        if champion is not None:
            gates += _speed(target, candidate.engine(target).measured, champion.engine(target).measured, config)
    if champion is not None:
        gates.append(_acceptance(candidate, champion, config))
    left_out = [target for target in candidate.engines if target not in chosen]
    return gates + [
        Gate(f"verify {target}", "", _verdict(candidate.engine(target).verified), "not judged here", True)
        for target in left_out
    ]


def _verification(target: str, candidate: Evidence, champion: Evidence | None, here: Mapping[str, Any]) -> Gate:
    """Verified, and on a machine whose engine computes as one here does."""
    report = candidate.engine(target).verified
    needed = arch(here, target)
    like_here = needed is not None and report is not None and arch(report.hardware, target) == needed
    passed = report is not None and report.passed and like_here
    return Gate(
        f"verify {target}", _verdict(champion.engine(target).verified) if champion else NONE, _verdict(report),
        f"passed on {device(here)}, or on its like", passed,
    )  # fmt: skip


def arch(hardware: Mapping[str, Any] | None, target: str) -> list[str] | None:
    """What of a fingerprint decides how an engine computes: the CPU's instructions, or the GPUs; None where unknown."""
    found = hardware.get("flags" if target == "cpu" else "gpus") if hardware else None
    return sorted(found) if found is not None else None


def _acceptance(candidate: Evidence, champion: Evidence, config: PromoteConfig) -> Gate:
    ours, theirs = candidate.accepted_length, champion.accepted_length
    limit = None if theirs is None else theirs * (1 - config.max_acceptance_loss)
    passed = limit is None or (ours is not None and ours >= limit)
    bound = NONE if limit is None else f"at least {limit:.2f}"
    return Gate("accepted length", _figure(theirs, ".2f"), _figure(ours, ".2f"), bound, passed)


def _speed(target: str, ours: Measured | None, theirs: Measured | None, config: PromoteConfig) -> Iterator[Gate]:
    """One gate for each decode workload that both have; one alone where they cannot be compared."""
    name = f"decode {target}"
    if theirs is None or ours is None:
        bound = NONE if theirs is None else "measured"
        yield Gate(name, _measured(theirs), _measured(ours), bound, theirs is None)
    elif theirs.hardware is None or theirs.hardware != ours.hardware:
        bound = "any machine (promote.other_hardware)" if config.other_hardware else "the same machine"
        yield Gate(name, _measured(theirs), _measured(ours), bound, config.other_hardware)
    else:
        speeds, limits = decode_speeds(ours), decode_speeds(theirs)
        common = [workload for workload in limits if workload in speeds]
        for batch_size, prompt_len in common:
            before, speed = limits[batch_size, prompt_len], speeds[batch_size, prompt_len]
            limit = before * (1 - config.max_decode_loss)
            workload = f"{name} tokens/s, batch {batch_size}, prompt {prompt_len}"
            yield Gate(workload, f"{before:,.1f}", f"{speed:,.1f}", f"at least {limit:,.1f}", speed >= limit)
        if not common:
            yield Gate(name, f"{len(limits)} workloads", f"{len(speeds)} workloads", "one in common", False)


def _measured(summary: Measured | None) -> str:
    return NOT_MEASURED if summary is None else f"on {device(summary.hardware, summary.cpu)}"


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
