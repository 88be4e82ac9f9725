"""What a server is told when it starts. Imports nothing heavy, so that the command line can show the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, and what it lets through.

    Attributes:
        host: 127.0.0.1 serves this machine alone.
        model_name: what clients call the model; None is the bundle's own name.
        api_key_file: one key per line; None asks for no key unless the environment names some.
        max_queue: samples that may wait while all of the engine's slots are taken; the next request gets 429.
        max_body_bytes: a longer request body gets 413.
        body_timeout_s: a body that takes longer to arrive gets 408.
        request_timeout_s: a request that takes longer, waiting included, gets 504 or an error event.
        drain_timeout_s: how long open requests may go on after SIGTERM.
        log_prompts: write prompts and answers to the log.
        itl_ratio: see `runtime.llm.load_bundle`.
        traces: `otlp` or `console` exports OpenTelemetry spans; None exports none.

    Raises:
        EnginewrightError: a value out of its bounds.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    api_key_file: Path | None = None
    max_queue: int = 256
    max_body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    log_prompts: bool = False
    itl_ratio: str = "auto"
    traces: str | None = None

    def __post_init__(self) -> None:
        bounds = {"port": (0, 65535), "max_queue": (0, 10**6), "max_body_bytes": (1024, 2**30)}
        bounds |= dict.fromkeys(("body_timeout_s", "request_timeout_s", "drain_timeout_s"), (0, 86400))
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise EnginewrightError(f"{name} is {value}; it must be between {least} and {most}")


class ServedModel(NamedTuple):
    """What clients are told about the engine."""

    name: str
    bundle_id: str
    target: str
    max_model_len: int  # tokens of prompt and answer together
    created: int  # unix time
