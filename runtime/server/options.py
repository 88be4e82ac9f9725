"""The server's settings as options of a command line. Imports nothing heavy."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EnginewrightError
from runtime.server.settings import ServerSettings

if TYPE_CHECKING:
    from runtime.speculation.loading import SpeculationOptions

_HELP = {
    "host": "address to listen on",
    "port": "0 takes a free one",
    "model_name": "what clients call the model; by default the bundle's name",
    "api_key_file": "keys that clients must show, one per line; ENGINEWRIGHT_API_KEYS names more",
    "max_queue": "samples that may wait while all slots are taken",
    "max_body_bytes": "longest request body",
    "body_timeout_s": "longest time for a body to arrive",
    "request_timeout_s": "longest time for an answer, waiting included",
    "drain_timeout_s": "how long open requests may go on after SIGTERM",
    "log_prompts": "write prompts and answers to the log",
    "itl_ratio": "how much longer than usual a running answer may wait for a token while prompts are taken in: auto (8 "
    "on CPUs), off, or a number above 1, such as 1.5",
    "traces": "export OpenTelemetry spans: otlp or console",
}
_KINDS = {"port": int, "max_queue": int, "max_body_bytes": int, "api_key_file": Path}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting, with the setting's own default."""
    for field in fields(ServerSettings):
        flag, text = "--" + field.name.replace("_", "-"), _HELP[field.name]
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=text)
            continue
        kind: Any = _KINDS.get(field.name, float if isinstance(field.default, float) else str)
        shown = text if field.default is None else f"{text} (default: {field.default})"
        parser.add_argument(flag, type=kind, default=field.default, help=shown)


def serve_command(options: argparse.Namespace, speculation: "SpeculationOptions") -> None:
    """Serve the bundle that the options name.

    Raises:
        EnginewrightError: a setting out of bounds, or the packages of the server are not installed.
    """
    settings = ServerSettings(**{field.name: getattr(options, field.name) for field in fields(ServerSettings)})
    try:
        from runtime.server.run import serve
    except ImportError as error:
        raise EnginewrightError(
            f"serving needs {error.name}, which is not installed: pip install fastapi uvicorn prometheus-client"
        ) from error
    serve(options.bundle, options.target, settings, speculation)
