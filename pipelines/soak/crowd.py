"""Users who finish, leave, send nonsense or die, and what the server did to them."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import aiohttp

from pipelines.load.client import Client
from pipelines.load.options import LoadOptions
from pipelines.load.sample import Sample
from pipelines.soak.cases import Answer, Bad, Case, bad_requests

ACTS = {"finish": 60, "leave": 22, "abort": 8, "err": 10}  # out of 100
MOST_NOTED = 20
GoesOn = Callable[[], bool]
# A client of its own process, which asks for a stream, reads a little and waits to be killed.
DOOMED = """
import http.client, sys, time
host, path, body = sys.argv[1:]
connection = http.client.HTTPConnection(host)
connection.request("POST", path, body, {"Content-Type": "application/json"})
connection.getresponse().readline()
time.sleep(60)
"""


class Crowd:
    """All users of a soak. `failures` holds the first of what should not have happened, `counts` how often what did."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, timeout_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._session = session
        self._url = url
        self._model = model
        self._bad = bad_requests(model)
        self._clients = {
            api: Client(session, url, model, LoadOptions(url=url, api=api, timeout_s=timeout_s))
            for api in ("chat", "completions")
        }

    async def answer(self, case: Case) -> tuple[Answer, str | None]:
        """Ask for a case and read the whole stream; the second is why there is no answer."""
        sample = Sample("soak", 0, 0.0)
        text = await self._clients[case.api].answer(case.prompt, time.perf_counter(), sample, case.fields)
        error = None if sample.error == "no text came" else sample.error  # an answer may begin with its end token
        self.counts["tokens"] += sample.output_tokens
        return Answer(text, sample.finish_reason, sample.output_tokens), error

    async def user(self, known: Mapping[int, Answer], cases: Sequence[Case], seed: int, goes_on: GoesOn) -> None:
        """Act at random, one act after another."""
        rng = random.Random(seed)
        while goes_on():
            (act,) = rng.choices(list(ACTS), list(ACTS.values()))
            index = rng.randrange(len(cases))
            if act == "finish":
                await self._finish(index, cases[index], known[index])
            elif act == "err":
                await self._err(rng.choice(self._bad))
            elif act == "leave":
                await self._leave(cases[index], rng.randint(1, 12))
            else:
                await self._abort(cases[index], rng.uniform(0.0, 0.1))
            self.counts[act] += 1

    async def kill_clients(self, cases: Sequence[Case], seed: int, goes_on: GoesOn) -> None:
        """Start client processes, one after another, and kill each amid its stream."""
        rng = random.Random(seed)
        while goes_on():
            case = rng.choice([case for case in cases if case.api == "completions"])
            body = json.dumps({"prompt": case.prompt, "stream": True, "model": self._model, "max_tokens": 64})
            host, _, path = self._url.removeprefix("http://").partition("/")
            command = [sys.executable, "-c", DOOMED, host, f"/{path}/completions", body]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            await asyncio.sleep(rng.uniform(0.3, 2.0))
            process.kill()
            await asyncio.to_thread(process.wait)
            self.counts["killed"] += 1

    async def _finish(self, index: int, case: Case, expected: Answer) -> None:
        found, error = await self.answer(case)
        if error is not None:
            self._note("stuck" if error == "timeout" else "broken", f"case {index}: {error}")
        elif found != expected:
            self._note("wrong", f"case {index}: {found} in the crowd, {expected} alone")

    async def _leave(self, case: Case, pieces: int) -> None:
        """Close the connection after some pieces of text."""
        try:
            async with self._clients[case.api].ask(case.prompt, case.fields) as reply:
                if reply.status != 200:
                    self._note("broken", f"status {reply.status} before leaving")
                for _ in range(2 * pieces):  # each is followed by an empty line
                    await reply.content.readline()
                reply.close()
        except TimeoutError:
            self._note("stuck", "no text to leave after")
        except aiohttp.ClientError as error:
            self._note("broken", f"before leaving: {type(error).__name__}: {error}")

    async def _abort(self, case: Case, after_s: float) -> None:
        """Close the connection before an answer has begun, most likely."""
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(after_s), self._clients[case.api].ask(case.prompt, case.fields):
                pass

    async def _err(self, bad: Bad) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url + bad.path, data=bad.body, headers=headers) as reply:
                text = await reply.text()
                is_clear = 400 <= reply.status < 500 and bool(json.loads(text)["error"]["message"])
                if not is_clear:
                    self._note("unclear", f"{bad.body[:80]!r}: {reply.status} {text[:80]}")
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            self._note("unclear", f"{bad.body[:80]!r}: {type(error).__name__}: {error}")

    def _note(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.failures) < MOST_NOTED:
            self.failures.append(f"{kind}: {text}")
