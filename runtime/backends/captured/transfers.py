"""Small copies between host and device that wait for nobody: pinned memory, reused once the device is done with it."""

from collections import deque

import numpy
import torch


class Download:
    """A device tensor on its way to the host."""

    def __init__(self, pinned: torch.Tensor, event: torch.cuda.Event | None) -> None:
        self._pinned = pinned
        self._event = event

    def wait(self) -> numpy.ndarray:
        """The values, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._pinned.numpy()


class Transfers:
    """Copies on the current stream. On the CPU they are plain copies."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._sent: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def upload(self, words: numpy.ndarray, target: torch.Tensor) -> None:
        """Copy (n,) words to `target`, which the device's earlier work may still read: the copy waits for its turn."""
        if not self._is_cuda:
            target.copy_(torch.from_numpy(words))
            return
        pinned = self._pinned(len(words))
        pinned.numpy()[:] = words
        target.copy_(pinned, non_blocking=True)
        self._sent.append((pinned, _now()))

    def download(self, source: torch.Tensor) -> Download:
        """Start a copy of `source` as it is once the device's work so far is done."""
        if not self._is_cuda:
            return Download(source.clone(), None)
        pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)  # torch keeps pinned memory for reuse
        pinned.copy_(source, non_blocking=True)
        return Download(pinned, _now())

    def _pinned(self, length: int) -> torch.Tensor:
        """Memory that no copy on its way reads."""
        for _ in range(len(self._sent)):
            memory, event = self._sent.popleft()
            if len(memory) == length and event.query():
                return memory
            if not event.query():
                self._sent.append((memory, event))
        return torch.empty(length, dtype=torch.int64, pin_memory=True)


def _now() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event
