"""Two bundles side by side: what differs in settings, provenance, files, weights, quality and speed.

Two bundles are equal when their ids are: the manifests vouch for the same bytes. Attestations vary between builds of
equal bundles, so their figures are shown and decide nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtime.formats.attestations import device, read_measured, read_verified
from runtime.formats.bundle import ENGINES_DIR, Bundle, open_bundle
from runtime.formats.checkpoint import WEIGHTS_FILE
from runtime.weight_comparison import WeightDifferences, compare_weights


class Change(NamedTuple):
    """One setting as the two bundles have it; None where one has none."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """Everything that was compared. Only differences are listed, but for quality and speed."""

    a: str
    b: str
    a_id: str
    b_id: str
    config: tuple[Change, ...]  # model, targets, engine plans
    provenance: tuple[Change, ...]
    files: tuple[Change, ...]  # sha256 by path
    weights: WeightDifferences | None  # None: the same bytes
    quality: tuple[Change, ...]
    speed: tuple[Change, ...]  # tokens/s by workload
    same_hardware: bool
    a_device: str
    b_device: str

    @property
    def equal(self) -> bool:
        return self.a_id == self.b_id


def compare_bundles(a: Path, b: Path) -> Comparison:
    """Open both bundles, every file checked, and compare them.

    Raises:
        EnginewrightError: one of them is no bundle or is damaged.
    """
    one, two = open_bundle(a), open_bundle(b)
    files = changes(_digests(one), _digests(two))
    same_weights = all(change.name != WEIGHTS_FILE for change in files)
    weights = None if same_weights else compare_weights(one.path / WEIGHTS_FILE, two.path / WEIGHTS_FILE)
    fast, other = read_measured(one.path), read_measured(two.path)
    hardware = [measured.hardware if measured else None for measured in (fast, other)]
    return Comparison(
        str(a), str(b), one.bundle_id, two.bundle_id,
        config=changes(_config(one), _config(two)),
        provenance=changes(flat(one.manifest["provenance"]), flat(two.manifest["provenance"])),
        files=files,
        weights=weights,
        quality=paired(_quality(one), _quality(two)),
        speed=paired(*({_workload(key): value[0] for key, value in measured.speeds().items()} if measured else {}
                       for measured in (fast, other))),
        same_hardware=bool(hardware[0]) and hardware[0] == hardware[1],
        a_device=device(hardware[0], fast.cpu if fast else "not measured"),
        b_device=device(hardware[1], other.cpu if other else "not measured"),
    )  # fmt: skip


def changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    """The names whose values differ."""
    return tuple(change for change in paired(a, b) if change.a != change.b)


def paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    return tuple(Change(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as dotted names: {"a": {"b": [1]}} gives {"a.b.0": 1}."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    if items is None:
        return {name: value}
    parts = [flat(item, f"{name}.{key}" if name else str(key)) for key, item in items]
    return {key: item for part in parts for key, item in part.items()}


def _config(bundle: Bundle) -> dict[str, Any]:
    plans = {}
    for target in bundle.targets:
        for path in sorted((bundle.path / ENGINES_DIR / target).glob("*.json")):
            plans[f"{target}/{path.name}"] = json.loads(path.read_text(encoding="utf-8"))
    manifest = bundle.manifest
    return flat({"schema": manifest["schema"], "model": manifest["model"], "targets": manifest["targets"],
                 "engines": plans})  # fmt: skip


def _digests(bundle: Bundle) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}


def _quality(bundle: Bundle) -> dict[str, float]:
    verified = read_verified(bundle.path)
    return verified.figures() if verified else {}


def _workload(key: tuple[str, int, int]) -> str:
    case, batch_size, prompt_len = key
    return f"{case} batch {batch_size} prompt {prompt_len or 'mixed'}"


def as_json(found: Comparison) -> str:
    values = asdict(found)
    sections = ("config", "provenance", "files", "quality", "speed")
    lists = {name: [change._asdict() for change in getattr(found, name)] for name in sections}
    if found.weights is not None:
        values["weights"]["differ"] = [item._asdict() for item in found.weights.differ]
    return json.dumps({**values, **lists, "equal": found.equal}, indent=2)
