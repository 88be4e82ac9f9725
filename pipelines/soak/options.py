"""What `enginewright soak` can be asked for."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.bounds import require


@dataclass(frozen=True)
class SoakOptions:
    """One soak.

    minutes: of use, without the start and the checks at the end.
    users: streams at once.
    most_mb_per_minute: by which the server's resident memory may grow, in a linear fit after the warm-up.
    timeout_s: a request without an end after this long is stuck.
    """

    bundle: Path
    out_dir: Path
    minutes: float = 10.0
    users: int = 200
    most_mb_per_minute: float = 1.0
    timeout_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.minutes > 0, "--minutes", self.minutes, "above 0")
        require(self.users >= 1, "--users", self.users, "at least 1")
