"""An OpenAI-compatible endpoint in a thread, whose every piece of text comes when a test says."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fake:
    """What the endpoint does, and what it was asked. `waits_s`: before each piece of text."""

    waits_s: tuple[float, ...] = (0.05, 0.02, 0.02)
    tokens_per_piece: int = 2
    sends_usage: bool = True
    models: tuple[str, ...] = ("tiny",)
    key: str = ""
    failing: dict[int, tuple[int, str]] = field(default_factory=dict)  # by request: status and message
    breaks_off: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_open: int = 0


@contextmanager
def running(fake: Fake) -> Iterator[Fake]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            if fake.key and self.headers["Authorization"] != f"Bearer {fake.key}":
                self.reply(401, {"error": {"message": "bad key"}})
            else:
                self.reply(200, {"object": "list", "data": [{"id": name} for name in fake.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                index = len(fake.bodies)
                fake.bodies.append(body)
                fake.num_open += 1
                fake.most_at_once = max(fake.most_at_once, fake.num_open)
            try:
                if index in fake.failing:
                    status, message = fake.failing[index]
                    self.reply(status, {"error": {"message": message}})
                else:
                    self.stream(self.path.endswith("/chat/completions"))
            finally:
                with fake.lock:
                    fake.num_open -= 1

        def reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, is_chat: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            if is_chat:
                self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for wait_s in fake.waits_s:
                time.sleep(wait_s)
                self.event({"choices": [{"delta": {"content": "word "}} if is_chat else {"text": "word "}]})
            if fake.breaks_off:
                return
            self.event({"choices": [{"delta": {}, "finish_reason": "length"}]})
            if fake.sends_usage:
                count = len(fake.waits_s) * fake.tokens_per_piece
                self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
            self.wfile.write(b": a comment\n\ndata: [DONE]\n\n")

        def event(self, body: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # more than come at once, or connections would wait

        def handle_error(self, *args: Any) -> None: ...  # of clients that leave

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
