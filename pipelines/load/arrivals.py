"""When requests are sent: by users who wait for answers, at random, or many at once. Knows no request's content."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pipelines.load.options import LoadOptions

Send = Callable[[int, float], Coroutine[Any, Any, None]]  # a prompt's index, and `time.perf_counter` when it was due


async def run_arrivals(scenario: str, options: LoadOptions, send: Send) -> None:
    """Send every prompt of a scenario and wait for the last answer."""
    if scenario == "poisson":
        await poisson(send, options.requests, options.rate, random.Random(options.seed))
    elif scenario == "burst":
        await bursts(send, options.requests, options.burst)
    else:
        await closed(send, options.requests, options.users)


async def closed(send: Send, num_prompts: int, users: int) -> None:
    """`users` users; each sends its next request when its last is answered."""
    waiting = iter(range(num_prompts))

    async def user() -> None:
        for index in waiting:
            await send(index, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())


async def poisson(send: Send, num_prompts: int, rate: float, rng: random.Random) -> None:
    """Exponential gaps of mean 1 / rate seconds, whether or not answers come. A late send is still due on time."""
    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index in range(num_prompts):
            due += rng.expovariate(rate)
            await asyncio.sleep(due - time.perf_counter())
            group.create_task(send(index, due))


async def bursts(send: Send, num_prompts: int, size: int) -> None:
    """`size` requests at once, and the next burst when all are answered."""
    for first in range(0, num_prompts, size):
        due = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in range(first, min(first + size, num_prompts)):
                group.create_task(send(index, due))
