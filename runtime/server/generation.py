"""One request through the engine, within the server's limits: admitted, timed, observed, and never failing silently."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from runtime.async_llm import AsyncLLM, OpenRequest
from runtime.errors import EnginewrightError
from runtime.sampling import SamplingParams
from runtime.server.errors import ApiError, internal_error
from runtime.server.limits import Admission
from runtime.server.metrics import Metrics
from runtime.server.observer import Observer
from runtime.server.record import RequestRecord
from runtime.text_engine import StreamDelta

_log = logging.getLogger("enginewright.server")


class Asked(NamedTuple):
    """What a request wants of the engine."""

    encode: Callable[[], list[list[int]]]  # its prompts' token ids; slow for long texts, run on a thread
    num_prompts: int
    params: SamplingParams
    cache_salt: str


class Generator:
    """The engine behind the server's queue."""

    def __init__(self, llm: AsyncLLM, admission: Admission, metrics: Metrics, timeout_s: float) -> None:
        self.admission = admission
        self._llm = llm
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._failure_is_logged = False

    @asynccontextmanager
    async def open(self, asked: Asked, record: RequestRecord) -> AsyncIterator[OpenRequest]:
        """Run a request; leaving the block frees what it holds of the engine.

        Raises:
            ApiError: the request is refused, took too long, or was lost with the engine.
        """
        try:
            with self.admission.hold(asked.num_prompts * asked.params.n):
                async with asyncio.timeout(self._timeout_s):
                    prompts = await asyncio.to_thread(asked.encode)
                    async with self._llm.open(prompts, asked.params, asked.cache_salt) as request:
                        observer = Observer(self._metrics, record, request)
                        try:
                            yield request._replace(deltas=_watched(request.deltas, observer))
                        finally:
                            observer.close()
                            if record.prompt is not None:  # the log may have texts
                                record.output = [completion.text for completion in request.completions]
        except TimeoutError as error:
            message = f"the request took longer than {self._timeout_s:g} s, this server's limit; ask for fewer tokens"
            raise ApiError(504, message, "timeout") from error
        except ApiError:
            raise
        except Exception as error:
            raise self._explained(error) from error

    def check(self) -> ApiError | None:
        """Why the server can answer nothing any more; None while it can."""
        failure = self._llm.failure
        if failure is None:
            return None
        if self.admission.is_draining:
            return ApiError(503, "the server shut down before the answer was complete", "draining")
        if not self._failure_is_logged:
            _log.error("the engine failed", exc_info=failure)
            self._failure_is_logged = True
        message = f"the engine failed ({type(failure).__name__}) and the server must be restarted; its log says more"
        return ApiError(500, message, "engine_failed")

    def _explained(self, error: Exception) -> ApiError:
        if (failed := self.check()) is not None:
            return failed
        if isinstance(error, EnginewrightError):
            return ApiError(400, str(error), "invalid_value")
        _log.error("a request failed", exc_info=error)
        return internal_error(error)


async def _watched(deltas: AsyncIterator[StreamDelta], observer: Observer) -> AsyncIterator[StreamDelta]:
    async for delta in deltas:
        observer.see(delta)
        if delta.finish_reason == "error":
            message = f"the answer could not go on: {delta.completion.error}"
            raise ApiError(400, message, "structured_output_failed", "response_format")
        yield delta
