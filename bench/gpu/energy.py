"""Joules per token by the GPU's own counter, whose steps are about 0.1 s apart."""

import time
from collections.abc import Callable

import torch

from bench.gpu.device import energy_mj
from bench.gpu.lines import Line, energy_line

LEAST_S = 1.2  # of one reading: a step of the counter is then under a tenth of it


def measure_energy(system: str, batch_size: int, run: Callable[[], int]) -> Line:
    """Repeat `run`, which gives how many tokens it made, for as long as a reading takes.

    What the GPU draws while it waits for the host is in it.
    """
    run()
    torch.cuda.synchronize()
    num_tokens, before_mj, started = 0, energy_mj(), time.perf_counter()
    while time.perf_counter() - started < LEAST_S:
        num_tokens += run()
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    joules = (energy_mj() - before_mj) / 1e3
    return energy_line(system, batch_size, joules / num_tokens, seconds, joules / seconds)
