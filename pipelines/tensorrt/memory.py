"""How much memory a process takes at most, seen from outside: a watcher inside would move what it allocates."""

import os
import threading

_PERIOD_SECONDS = 0.02
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WatchedMemory:
    """A process's peaks while this is open, in bytes; 0 on systems that do not tell."""

    def __init__(self, process_id: int) -> None:
        self.peak_bytes = 0  # resident
        self.peak_anonymous_bytes = 0  # of that, what is no file's page: those the system takes back when it is short
        self._path = f"/proc/{process_id}/statm"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "WatchedMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD_SECONDS):
            try:
                with open(self._path, encoding="ascii") as file:
                    _, resident, shared, *_ = map(int, file.read().split())
            except (OSError, ValueError):  # it has ended, or this is no Linux
                return
            self.peak_bytes = max(self.peak_bytes, resident * _PAGE_BYTES)
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, (resident - shared) * _PAGE_BYTES)
