"""The dataclasses of pipelines/config.py as Hydra's schema, and back.

OmegaConf makes frozen dataclasses read-only, also against the overrides of a command line, so the schema is a mutable
mirror of them: same names, types and defaults. `from_container` turns what was composed into the frozen ones.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from runtime.errors import EnginewrightError

T = TypeVar("T")


def mutable_mirror(cls: type[Any]) -> type[Any]:
    """The same dataclass without `frozen`, all the way down."""
    hints = get_type_hints(cls)
    mirrored = []
    for item in fields(cls):
        nested = nested_dataclass(hints[item.name])
        if nested is None:
            mirrored.append((item.name, hints[item.name], field(default=item.default)))
        elif item.default is None:
            mirrored.append((item.name, mutable_mirror(nested) | None, field(default=None)))
        else:
            mirror = mutable_mirror(nested)
            mirrored.append((item.name, mirror, field(default_factory=mirror)))
    return make_dataclass(cls.__name__, mirrored)


def from_container(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a frozen dataclass from plain containers; lists become tuples.

    Raises:
        EnginewrightError: a key that the dataclass does not have, or a value that breaks a bound.
    """
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise EnginewrightError(unknown_key(prefix + key))
        nested = nested_dataclass(hints[key])
        if nested is not None and value is not None:
            value = from_container(nested, value, f"{prefix}{key}.")
        arguments[key] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def nested_dataclass(hint: Any) -> type[Any] | None:
    """The dataclass that a type hint names, plainly or as `X | None`; None where it names something else."""
    options = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
    return next((option for option in options if is_dataclass(option) and isinstance(option, type)), None)


def all_keys(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """Every setting under a dataclass, groups included, as dotted keys."""
    for name, hint in get_type_hints(cls).items():
        yield prefix + name
        if (nested := nested_dataclass(hint)) is not None:
            yield from all_keys(nested, f"{prefix}{name}.")


def unknown_key(key: str) -> str:
    """One line for a key that no dataclass has, with the nearest one that exists."""
    from pipelines.config import BuildConfig

    keys = list(all_keys(BuildConfig))
    group, _, word = key.rpartition(".")
    siblings = {end: other for other in keys for head, _, end in [other.rpartition(".")] if head == group}
    anywhere = {other.rpartition(".")[2]: other for other in keys}
    # A word of the right group first, then the right word of another group, then whatever reads alike.
    found = closest(word, siblings) or closest(word, anywhere) or closest(key, {other: other for other in keys})
    if found and (not siblings or found in siblings.values() or found.endswith("." + word)):
        return f"no setting named {key!r}; nearest: {found!r}"
    return f"no setting named {key!r}; there are: {', '.join(siblings.values())}"


def nearest(word: str, choices: list[str]) -> str:
    """`nearest: 'x'`, or all choices when none is near."""
    found = closest(word, {choice: choice for choice in choices})
    return f"nearest: {found!r}" if found else "there are: " + ", ".join(choices)


def closest(word: str, choices: Mapping[str, str]) -> str:
    """The value of the key most like `word`; empty when none is."""
    return "".join(choices[key] for key in difflib.get_close_matches(word, list(choices), n=1))
