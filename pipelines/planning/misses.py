"""Why a stage is not in the cache: what of its key differs from an artifact that is."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.plain import flattened

MAX_SETTINGS = 3
HEX_CHARS = 12


def differences(
    parts: Mapping[str, Any], before: Mapping[str, Any], ignored_inputs: Iterable[str] = ()
) -> list[str]:  # fmt: skip
    """A phrase for each part of the key that differs, such as `libraries: torch 2.12.0 -> 2.13.0`.

    Args:
        parts: what the key digests now, `before`: what it did for the artifact; both as pipelines/keys.py makes them.
    """
    found = []
    for name in dict.fromkeys([*parts, *before]):
        now, then = parts.get(name), before.get(name)
        if name == "inputs":
            now, then = ({key: value for key, value in (side or {}).items() if key not in ignored_inputs}
                         for side in (now, then))  # fmt: skip
        if now != then:
            found.append(phrase(name, now, then))
    return found


def only_differs_in_inputs(parts: Mapping[str, Any], before: Mapping[str, Any], unknown: list[str]) -> bool:
    return not differences(parts, before, unknown)


def phrase(name: str, now: Any, then: Any) -> str:
    """One part of the key in words."""
    if name == "code":
        return "code of the stage, or of what it imports, changed"
    if name == "inputs":
        changed = [key for key in dict.fromkeys([*now, *then]) if now.get(key) != then.get(key)]
        return f"inputs: another output of {', '.join(changed)}"
    if name == "external":
        return "your files changed, or lie elsewhere"
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return f"{name}: {shown(then)} -> {shown(now)}"
    before, after = dict(flattened(then)), dict(flattened(now))
    changed = [key for key in dict.fromkeys([*after, *before]) if after.get(key) != before.get(key)]
    words = [f"{key} {shown(before.get(key))} -> {shown(after.get(key))}" for key in changed[:MAX_SETTINGS]]
    more = [f"{len(changed) - MAX_SETTINGS} more"] if len(changed) > MAX_SETTINGS else []
    return f"{name}: {', '.join(words + more)}"


def shown(value: Any) -> str:
    """A value short enough for a line."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:HEX_CHARS] + "..."
