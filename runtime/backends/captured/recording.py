"""How a sequence of operations is kept and run again."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recording(Protocol[T]):
    """Operations that can be run again on what their inputs' memory holds then."""

    result: T  # of the latest run; the same tensors each time where memory is fixed

    def replay(self) -> None: ...


class CudaRecorder:
    """Captures CUDA graphs, which share one pool of memory: what a replay leaves is valid until the next of any."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], T]) -> "Recording[T]":
        """Run once to warm up (libraries set themselves up, allocators grow), then capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                result = run()
        except BaseException:  # memory that a failed capture has taken from a pool is no graph's to reuse
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return _CudaRecording(graph, result)


class _CudaRecording(Generic[T]):
    def __init__(self, graph: torch.cuda.CUDAGraph, result: T) -> None:
        self.result = result
        self.replay = graph.replay


class EagerRecorder:
    """Runs the operations each time: the same results, on any device, without what a graph saves."""

    def record(self, run: Callable[[], T]) -> "Recording[T]":
        return _EagerRecording(run)


class _EagerRecording(Generic[T]):
    def __init__(self, run: Callable[[], T]) -> None:
        self._run = run
        self.result = run()

    def replay(self) -> None:
        self.result = self._run()


Recorder = CudaRecorder | EagerRecorder
