"""What a check of a bundle on a machine found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Finding:
    """What one check found. A note does not keep the bundle from running."""

    check: str
    level: Level
    text: str
    fix: Mapping[str, str | int] = field(default_factory=dict)  # settings to build with instead; none: the same again
    rebuilding_helps: bool = True  # else it is the machine that must change
