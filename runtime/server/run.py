"""Starts a server over a bundle and ends it without losing what it has begun."""

import ipaddress
import logging
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from runtime.async_llm import AsyncLLM
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.llm import load_bundle
from runtime.server.app import make_app
from runtime.server.auth import load_keys
from runtime.server.logs import configure_logs
from runtime.server.settings import ServedModel, ServerSettings
from runtime.server.tracing import make_tracer
from runtime.speculation.loading import SpeculationOptions

_log = logging.getLogger("enginewright.server")
_CLOSING_S = 5  # for the last bytes of answers that are complete


def serve(bundle: Path, target: str, settings: ServerSettings, speculation: SpeculationOptions) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C.

    Raises:
        EnginewrightError: the bundle, the address, the keys or the traces cannot be had; before anything is served.
    """
    keys = load_keys(settings.api_key_file, os.environ)
    tracer = make_tracer(settings.traces) if settings.traces else None
    listener = _bind(settings.host, settings.port)  # taken before the weights are read
    llm, model = load_model(bundle, target, settings.model_name, speculation, itl_ratio=settings.itl_ratio)
    app = make_app(llm, model, settings, keys, tracer)
    configure_logs()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"{model.name} at http://{host}:{listener.getsockname()[1]}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if not keys and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        _log.warning("whoever reaches this address may use it: no API keys were given")
    try:
        DrainingServer(app, llm, settings.drain_timeout_s).run(sockets=[listener])
    finally:
        llm.close()
        if tracer is not None:
            tracer.close()


def load_model(
    bundle: Path,
    target: str,
    name: str | None,
    speculation: SpeculationOptions,
    trust: Path | None = None,
    itl_ratio: str = "auto",
) -> tuple[AsyncLLM, ServedModel]:
    """Load a bundle's engine, and say what clients are told of it; None calls it by its own name.

    Raises:
        EnginewrightError: as `load_bundle`.
    """
    opened = open_bundle(bundle, trust)
    llm = AsyncLLM(load_bundle(opened, target, speculation, itl_ratio=itl_ratio))
    limits = llm.text_engine.engine.backend.limits
    longest = min(limits.max_seq_len, limits.num_blocks * limits.block_size)
    name = name or str(opened.manifest["model"]["name"])
    return llm, ServedModel(name, opened.bundle_id, target, longest, int(time.time()))


class DrainingServer(uvicorn.Server):
    """On the first signal, open requests go on for a while and new ones get 503; the second ends the server at once."""

    def __init__(self, app: FastAPI, llm: AsyncLLM, drain_timeout_s: float) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_S,
        )
        super().__init__(config)
        self._admission = app.state.admission
        self._llm = llm
        self._drain_timeout_s = drain_timeout_s
        self._deadline = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT."""
        if self._admission.is_draining:
            self._deadline = 0.0
            return
        self._admission.is_draining = True
        self._deadline = time.monotonic() + self._drain_timeout_s

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if self._admission.is_draining and not self.should_exit:
            num_open = self._admission.num_open
            if num_open and time.monotonic() >= self._deadline:
                _log.warning("drain time is over", extra={"fields": {"num_open": num_open}})
                self._llm.close()  # open requests are told; it waits for one step
                num_open = 0
            self.should_exit = not num_open
        return await super().on_tick(counter)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.set_inheritable(False)
    except OSError as error:
        raise EnginewrightError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); name another with --host or --port"
        ) from error
    return listener
