"""The server under test: a process of its own, its metrics and its memory."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil

from runtime.errors import EnginewrightError

START_S, STOP_S = 120, 60
SPECULATION = ("--speculation", "6,2,3", "--drafter", "ngram")
_ADDRESS = re.compile(r"http://[\d.]+:\d+")
_METRIC = re.compile(r"^vllm:(\w+)\{[^}]*\} (\S+)$", re.MULTILINE)
_NOT_TOLD = ("_bucket", "_sum", "_count", "_created")


class Server:
    """A running server. `log` holds what it printed."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.url = url
        self._process = process
        self._memory = psutil.Process(process.pid)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def rss_bytes(self) -> int:
        return int(self._memory.memory_info().rss)

    async def metrics(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """Counters and gauges by vLLM's names, without its prefix; those with several labels are added up."""
        async with session.get(self.url + "/metrics") as response:
            found = _METRIC.findall(await response.text())
        sums: defaultdict[str, float] = defaultdict(float)
        for name, value in found:
            if not name.endswith(_NOT_TOLD):
                sums[name] += float(value)
        return dict(sums)

    async def stop(self) -> int:
        """Ask it to end, as a cluster does; return its exit code. One that does not end is killed: -9."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@asynccontextmanager
async def running(bundle: Path, log: Path, most_waiting: int) -> AsyncIterator[Server]:
    """Start a server over a bundle, with room for `most_waiting` requests in its queue.

    Raises:
        EnginewrightError: it does not come up; says what it printed last.
    """
    command = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", "--max-queue", str(most_waiting)]
    keyless = {name: value for name, value in os.environ.items() if name != "ENGINEWRIGHT_API_KEYS"}
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *SPECULATION], stdout=file, stderr=file, env=keyless)
    try:
        yield Server(process, await _address(process, log))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until the server answers; it says where before it does."""
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while process.poll() is None and time.monotonic() < deadline:
            if found := _ADDRESS.search(log.read_text(errors="replace")):
                with suppress(aiohttp.ClientError):
                    async with session.get(found[0] + "/ready") as response:
                        if response.status == 200:
                            return found[0]
            await asyncio.sleep(0.1)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
    raise EnginewrightError(f"the server did not come up: {last}; all of it is in {log}")
