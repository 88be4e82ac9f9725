"""Many callers, one engine: a thread runs the steps, asyncio callers get their deltas."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime.errors import EnginewrightError
from runtime.llm import DEFAULT_SPECULATION, load_bundle
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions
from runtime.text_engine import Completion, Prompt, RequestOutput, StreamDelta, TextEngine

_CLOSED = "this AsyncLLM was closed; open the bundle again"
_Subscriber = Callable[[StreamDelta | BaseException], Any]


class AsyncLLM:
    """A loaded bundle behind a thread of its own. Use it as an async context manager, or call `close`.

    If a step fails, every open stream and every later call raises that error: no request waits forever.
    """

    def __init__(
        self,
        bundle: str | Path | TextEngine,
        target: str = "cpu",
        speculation: SpeculationOptions = DEFAULT_SPECULATION,
        trust: Path | None = None,
    ) -> None:
        if not isinstance(bundle, TextEngine):
            bundle = load_bundle(bundle, target, speculation, trust=trust)
        self._text_engine = bundle
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._subscribers: dict[Completion, _Subscriber] = {}
        self._failure: BaseException | None = None
        self._closed = False
        self._closing = threading.Lock()  # no call enters the inbox behind the closing mark
        self._thread = threading.Thread(target=self._run, name="enginewright-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stop the engine's thread after its current step; open streams raise."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        self._thread.join()

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, cache_salt: str = ""
    ) -> AsyncIterator[StreamDelta]:
        """Yield deltas of one prompt as its tokens come; leaving the iterator early cancels what is left.

        cache_salt: prefixes are shared with requests of the same salt alone.

        Raises:
            EnginewrightError: the prompt is empty or too long.
        """
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[StreamDelta | BaseException] = asyncio.Queue()

        def publish(item: StreamDelta | BaseException) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, item)

        output = await asyncio.wrap_future(self._call(lambda: self._submit(prompt, params, cache_salt, publish)))
        open_samples = len(output.completions)
        try:
            while open_samples:
                delta = await deltas.get()
                if isinstance(delta, BaseException):
                    raise delta
                yield delta
                open_samples -= delta.finish_reason is not None
        finally:
            if open_samples and not self._closed:
                self._call(lambda: self._cancel(output))

    def _call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run `function` on the engine's thread."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._closing:
            if self._closed:
                raise EnginewrightError(_CLOSED)
            self._inbox.put(run)
        return future

    def _submit(
        self, prompt: Prompt, params: SamplingParams | None, cache_salt: str, subscriber: _Subscriber
    ) -> RequestOutput:
        if self._failure is not None:
            raise self._failure
        output = self._text_engine.submit(prompt, params or SamplingParams(), cache_salt)
        for completion in output.completions:
            self._subscribers[completion] = subscriber
        return output

    def _cancel(self, output: RequestOutput) -> None:
        self._text_engine.cancel(output)
        for completion in output.completions:
            self._subscribers.pop(completion, None)

    def _run(self) -> None:
        """The engine's thread: take calls, step while there is work, sleep otherwise."""
        while True:
            while not self._inbox.empty() or not self._text_engine.has_work or self._failure is not None:
                call = self._inbox.get()
                if call is None:
                    self._fail(EnginewrightError(_CLOSED))
                    return
                call()
            try:
                for delta in self._text_engine.step():
                    self._publish(delta)
            except BaseException as error:
                self._fail(error)

    def _publish(self, delta: StreamDelta) -> None:
        subscriber = self._subscribers[delta.completion]
        if delta.finish_reason is not None:
            del self._subscribers[delta.completion]
        subscriber(delta)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        for subscriber in self._subscribers.values():
            subscriber(error)
        self._subscribers.clear()
