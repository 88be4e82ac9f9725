"""What the process that builds a plan tells its parent, line by line, and how the library's callbacks become that.

Each line is a JSON object with one key: `progress`, `log`, `failed` or `done`.
"""

import json
import os
import threading
from typing import IO, Any

_QUIET = ("already exists, the output tensors", "has Int64 binding")  # of every function's nodes, of every index


class Events:
    """Lines to the parent. What libraries print themselves goes to stderr."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.first_error = ""

    @classmethod
    def on_stdout(cls) -> "Events":
        file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        return cls(file)

    def progress(self, share: float, text: str) -> None:
        self._write("progress", {"share": share, "text": text})

    def log(self, level: str, text: str) -> None:
        self._write("log", {"level": level, "text": text})

    def failed(self, text: str, errno: int | None = None, path: str = "") -> None:
        """errno: of the file system's error, where it was one."""
        self._write("failed", {"text": text, "errno": errno, "path": path})

    def done(self, **result: Any) -> None:
        self._write("done", result)

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps({kind: fields}), file=self._file, flush=True)

    def logger(self, library: Any) -> Any:
        """The library's log, without what it says of every node."""
        events = self

        class Logger(library.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity.name in ("ERROR", "INTERNAL_ERROR"):
                    events.first_error = events.first_error or text
                    events.log("error", text)
                elif severity.name == "WARNING" and not any(part in text for part in _QUIET):
                    events.log("warning", text)
                elif severity.name == "INFO":
                    events.log("info", text)

        return Logger()

    def monitor(self, library: Any) -> Any:
        """The library's progress: phases that lie in each other, as one share."""
        events = self

        class Monitor(library.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                library.IProgressMonitor.__init__(self)
                self._phases = Phases()

            def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
                self._phases.start(name, num_steps)
                events.progress(self._phases.share(), name)

            def step_complete(self, name: str, step: int) -> bool:
                self._phases.complete(name, step)
                events.progress(self._phases.share(), name)
                return True

            def phase_finish(self, name: str) -> None:
                self._phases.finish(name)

        return Monitor()

    def writer(self, library: Any, file: IO[bytes]) -> Any:
        """A file as the library writes to it; `error` is what it refused."""

        class Writer(library.IStreamWriter):  # type: ignore[misc]
            def __init__(self) -> None:
                library.IStreamWriter.__init__(self)
                self.error: OSError | None = None

            def write(self, data: bytes) -> int:
                try:
                    return file.write(data)
                except OSError as error:
                    self.error = self.error or error
                    return 0

        return Writer()


class Phases:
    """The share that is done of phases that are steps of each other, the outermost first."""

    def __init__(self) -> None:
        self._open: list[list[Any]] = []  # name, steps done, steps in all

    def start(self, name: str, num_steps: int) -> None:
        self._open.append([name, 0, max(num_steps, 1)])

    def complete(self, name: str, step: int) -> None:
        for phase in self._open:
            if phase[0] == name:
                phase[1] = min(step + 1, phase[2])

    def finish(self, name: str) -> None:
        self._open = [phase for phase in self._open if phase[0] != name]

    def share(self) -> float:
        share, part = 0.0, 1.0
        for _, done, num_steps in self._open:
            share += part * done / num_steps
            part /= num_steps
        return min(share, 1.0)
