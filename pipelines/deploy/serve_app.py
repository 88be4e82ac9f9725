"""A bundle as a Ray Serve application: `serve run ray-serve.yaml` in this folder.

Each replica loads the engine and answers what `python -m runtime serve` answers, the chat page at / included. The
folder needs `runtime/` and `plugins/` beside it, and ray[serve] with the libraries of requirements.txt.
"""

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from runtime.server.app import make_app
from runtime.server.auth import load_keys
from runtime.server.run import load_model
from runtime.server.settings import ServerSettings
from runtime.speculation.loading import SpeculationOptions, default_costs_dir


@serve.deployment
@serve.ingress()
class Engine:
    """One replica. Ray restarts it when its engine has failed."""

    def __init__(self, bundle: str, target: str, public_key: str = "") -> None:
        trust = Path(public_key) if public_key else None
        speculation = SpeculationOptions(costs_dir=default_costs_dir())
        self._llm, self._model = load_model(Path(bundle), target, None, speculation, trust)

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = ServerSettings()
        return make_app(self._llm, self._model, settings, load_keys(settings.api_key_file, os.environ))

    def check_health(self) -> None:
        """Called by Ray.

        Raises:
            BaseException: what ended the engine.
        """
        if self._llm.failure is not None:
            raise self._llm.failure

    def __del__(self) -> None:
        self._llm.close()


def build(arguments: dict[str, str]) -> Any:
    """The application that Ray runs; `arguments` are those of `Engine`."""
    return Engine.bind(**arguments)  # type: ignore[attr-defined]
