"""An OCI registry on loopback: the part of the distribution API that pushing and pulling one tag uses.

It wants a bearer token from its own token service, which wants `user:secret`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

CREDENTIALS = base64.b64encode(b"user:secret").decode()


@dataclass
class FakeRegistry:
    """failing_after: every blob's upload after so many is answered with 500."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    failing_after: int | None = None
    is_read_only: bool = False


@contextmanager
def serve() -> Iterator[FakeRegistry]:
    registry = FakeRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": registry}))
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: FakeRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path.startswith("/token"):
            allowed = self.headers.get("Authorization") == f"Basic {CREDENTIALS}"
            self.answer(200 if allowed else 401, json.dumps({"token": "granted"}).encode() if allowed else b"")
            return
        self.read()

    def do_HEAD(self) -> None:
        self.read()

    def read(self) -> None:
        if not self.authorized():
            return
        if found := re.fullmatch(r"/v2/org/model/blobs/sha256:(\w+)", self.path):
            content = self.registry.blobs.get(found[1])
        else:
            content = self.registry.tags.get(self.path.rpartition("/")[2])
        self.answer(200 if content is not None else 404, content or b"")

    def do_POST(self) -> None:
        if self.authorized(writes=True):
            self.answer(202, b"", {"Location": "/v2/org/model/blobs/uploads/1?state=x"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.authorized(writes=True):
            return
        url = urlsplit(self.path)
        if url.path.startswith("/v2/org/model/manifests/"):
            named = [json.loads(content)["config"], *json.loads(content)["layers"]]
            complete = all(entry["digest"].removeprefix("sha256:") in self.registry.blobs for entry in named)
            if complete:
                self.registry.tags[url.path.rpartition("/")[2]] = content
            self.answer(201 if complete else 400, b"")
            return
        digest = unquote(parse_qs(url.query)["digest"][0]).removeprefix("sha256:")
        if self.registry.failing_after is not None and len(self.registry.uploads) >= self.registry.failing_after:
            self.answer(500, b"")
        elif hashlib.sha256(content).hexdigest() != digest or parse_qs(url.query)["state"] != ["x"]:
            self.answer(400, b"")
        else:
            self.registry.blobs[digest] = content
            self.registry.uploads.append(digest)
            self.answer(201, b"")

    def authorized(self, writes: bool = False) -> bool:
        if self.headers.get("Authorization") != "Bearer granted":
            realm = f'Bearer realm="http://{self.registry.address}/token",service="fake",scope="repository:org/model"'
            self.answer(401, b"", {"Www-Authenticate": realm})
            return False
        if writes and self.registry.is_read_only:
            self.answer(403, b"")
            return False
        return True

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
