"""`enginewright soak`: a server over a tiny exact engine, minutes of hostile use, and what must hold after."""

import asyncio
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp

from pipelines.hardware import fingerprint
from pipelines.load.endpoint import connector
from pipelines.soak.bundle import exact_copy
from pipelines.soak.cases import Answer, Case, make_cases
from pipelines.soak.crowd import Crowd
from pipelines.soak.options import SoakOptions
from pipelines.soak.server import Server, running
from pipelines.soak.verdict import draw_memory, idle_failures, slope_mb_per_minute
from pipelines.storage import storage_errors
from runtime.errors import EnginewrightError

NUM_CASES = 96
SETTLE_S = 30
REPORT_FILE, MEMORY_FILE, PLOT_FILE, LOG_FILE = "report.json", "memory.jsonl", "memory.png", "server.log"


class Outcome(NamedTuple):
    crowd: Crowd
    memory: list[tuple[float, int]]
    metrics: dict[str, float]
    exit_code: int


def soak(options: SoakOptions) -> dict[str, Any]:
    """Run one soak and write its report.

    Raises:
        EnginewrightError: the server did not come up, or something that must hold did not.
    """
    with storage_errors(options.out_dir, "soak"), TemporaryDirectory() as folder:
        options.out_dir.mkdir(parents=True, exist_ok=True)
        bundle = exact_copy(options.bundle, Path(folder, "bundle"))
        outcome = asyncio.run(_run(bundle, options))
    slope = slope_mb_per_minute(outcome.memory)
    failures = outcome.crowd.failures + idle_failures(outcome.metrics, outcome.exit_code)
    if slope > options.most_mb_per_minute:
        failures.append(f"memory grew by {slope:.2f} MB a minute; at most {options.most_mb_per_minute:g} is allowed")
    report = {
        "passed": not failures, "failures": failures, "minutes": options.minutes, "users": options.users,
        "counts": dict(sorted(outcome.crowd.counts.items())), "memory_mb_per_minute": slope,
        "memory_mb": {"begin": outcome.memory[0][1] / 1e6, "end": outcome.memory[-1][1] / 1e6},
        "metrics": outcome.metrics, "machine": fingerprint(),
    }  # fmt: skip
    out = options.out_dir
    (out / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rows = [{"time_s": round(when, 1), "rss_bytes": size} for when, size in outcome.memory]
    (out / MEMORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    draw_memory(outcome.memory, slope, f"{options.users} users, {options.minutes:g} minutes", out / PLOT_FILE)
    if failures:
        raise EnginewrightError(f"the soak failed: {failures[0]}; {len(failures)} in all are in {out / REPORT_FILE}")
    return report


async def _run(bundle: Path, options: SoakOptions) -> Outcome:
    timeout = aiohttp.ClientTimeout(total=options.timeout_s)
    async with (
        running(bundle, options.out_dir / LOG_FILE, most_waiting=2 * options.users) as server,
        aiohttp.ClientSession(connector=connector(), timeout=timeout) as session,
    ):
        async with session.get(f"{server.url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        crowd = Crowd(session, f"{server.url}/v1", model, options.timeout_s)
        cases = make_cases(NUM_CASES, options.seed)
        known = await _answers_alone(crowd, cases)
        crowd.counts.clear()
        memory = await _use(crowd, cases, known, server, options)
        metrics = await _settled(server, session)
        return Outcome(crowd, memory, metrics, await server.stop())


async def _answers_alone(crowd: Crowd, cases: list[Case]) -> dict[int, Answer]:
    """Every case's answer while nobody else asks."""
    known = {}
    for index, case in enumerate(cases):
        known[index], error = await crowd.answer(case)
        if error is not None:
            raise EnginewrightError(f"case {index} has no answer even alone: {error}; {case}")
    return known


async def _use(
    crowd: Crowd, cases: list[Case], known: dict[int, Answer], server: Server, options: SoakOptions
) -> list[tuple[float, int]]:
    """Let the crowd in; return the server's memory over time."""
    begun = time.monotonic()
    deadline = begun + options.minutes * 60

    def goes_on() -> bool:
        return time.monotonic() < deadline and server.exit_code is None

    memory = []
    async with asyncio.TaskGroup() as group:
        for user in range(options.users):
            group.create_task(crowd.user(known, cases, options.seed * 10**6 + user, goes_on))
        group.create_task(crowd.kill_clients(cases, options.seed, goes_on))
        while goes_on():
            memory.append((time.monotonic() - begun, server.rss_bytes()))
            await asyncio.sleep(min(1.0, max(deadline - time.monotonic(), 0.0)))
    if server.exit_code is not None:
        raise EnginewrightError(
            f"the server ended with {server.exit_code} amid the soak; see {options.out_dir / LOG_FILE}"
        )
    return memory


async def _settled(server: Server, session: aiohttp.ClientSession) -> dict[str, float]:
    """The server's metrics once it is idle, or after a while if it never is."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        metrics = await server.metrics(session)
        if not (metrics["num_requests_running"] or metrics["num_requests_waiting"]) or time.monotonic() > deadline:
            return metrics
        await asyncio.sleep(0.2)
