"""Many callers, one engine: a thread runs the steps, asyncio callers get their deltas."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from runtime.errors import EnginewrightError
from runtime.llm import DEFAULT_SPECULATION, load_bundle
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions
from runtime.text_engine import Completion, Prompt, RequestOutput, StreamDelta, TextEngine

_CLOSED = "this AsyncLLM was closed; open the bundle again"
_Subscriber = Callable[[StreamDelta | BaseException], Any]


class OpenRequest(NamedTuple):
    """Prompts in the engine: what becomes of each, and the deltas of all of them as they come."""

    outputs: list[RequestOutput]
    deltas: AsyncIterator[StreamDelta]

    @property
    def completions(self) -> list[Completion]:
        """All samples of the first prompt, then of the next."""
        return [completion for output in self.outputs for completion in output.completions]


class AsyncLLM:
    """A loaded bundle behind a thread of its own. Use it as an async context manager, or call `close`.

    If a step fails, every open stream and every later call raises that error: no request waits forever.
    """

    def __init__(
        self,
        bundle: str | Path | TextEngine,
        target: str | None = None,
        speculation: SpeculationOptions = DEFAULT_SPECULATION,
        trust: str | Path | None = None,
        itl_ratio: str = "auto",
    ) -> None:
        if not isinstance(bundle, TextEngine):
            bundle = load_bundle(bundle, target, speculation, trust=trust, itl_ratio=itl_ratio)
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

    @property
    def text_engine(self) -> TextEngine:
        """For what never changes, such as the tokenizer and the limits, and for counters; its thread alone calls it."""
        return self._text_engine

    @property
    def failure(self) -> BaseException | None:
        """What ended the engine, if anything did; `close` counts."""
        return self._failure

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, cache_salt: str = ""
    ) -> AsyncIterator[StreamDelta]:
        """Yield deltas of one prompt as its tokens come; leaving the iterator early cancels what is left.

        cache_salt: prefixes are shared with requests of the same salt alone.

        Raises:
            EnginewrightError: the prompt is empty or too long, or a parameter does not fit the model.
        """
        async with self.open([prompt], params, cache_salt) as request:
            async for delta in request.deltas:
                yield delta

    @asynccontextmanager
    async def open(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None, cache_salt: str = ""
    ) -> AsyncIterator[OpenRequest]:
        """Submit prompts together; leaving the block, however, cancels what is left of them.

        Raises:
            EnginewrightError: a prompt is empty or too long, or a parameter does not fit the model; none is in the
                engine then.
        """
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[StreamDelta | BaseException] = asyncio.Queue()

        def publish(item: StreamDelta | BaseException) -> None:
            with suppress(RuntimeError):  # a closed loop: the caller is gone, and its prompts are on their way out
                loop.call_soon_threadsafe(deltas.put_nowait, item)

        if params is not None and params.structured is not None:  # a complex grammar would hold up the others' steps
            await asyncio.to_thread(self._text_engine.grammars.compile, params.structured)
        submission = self._call(lambda: self._submit(prompts, params, cache_salt, publish))
        try:
            outputs = await asyncio.wrap_future(submission)
            yield OpenRequest(outputs, _until_finished(outputs, deltas))
        finally:  # the caller may have been cancelled while its prompts were on their way to the engine
            with suppress(EnginewrightError):  # a closed engine has nothing left to cancel
                self._call(lambda: self._withdraw(submission))

    def _call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run `function` on the engine's thread."""
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
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
        self, prompts: Sequence[Prompt], params: SamplingParams | None, cache_salt: str, subscriber: _Subscriber
    ) -> list[RequestOutput]:
        if self._failure is not None:
            raise self._failure
        outputs: list[RequestOutput] = []
        try:
            for prompt in prompts:
                outputs.append(self._text_engine.submit(prompt, params or SamplingParams(), cache_salt))
        except BaseException:
            self._cancel(outputs)
            raise
        self._subscribers |= {completion: subscriber for output in outputs for completion in output.completions}
        return outputs

    def _withdraw(self, submission: "Future[list[RequestOutput]]") -> None:
        """Cancel what is left of prompts, which have arrived by now if they ever do."""
        if not submission.cancelled() and submission.exception() is None:
            self._cancel(submission.result())

    def _cancel(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
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


async def _until_finished(
    outputs: list[RequestOutput], deltas: "asyncio.Queue[StreamDelta | BaseException]"
) -> AsyncIterator[StreamDelta]:
    open_samples = sum(len(output.completions) for output in outputs)
    while open_samples:
        delta = await deltas.get()
        if isinstance(delta, BaseException):
            raise delta
        yield delta
        open_samples -= delta.finish_reason is not None
