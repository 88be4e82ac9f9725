"""A Hugging Face Hub on loopback: the part of its HTTP API that fetching and publishing a model use, and ways for it to
go wrong.

GET  /api/models/<repo>[/revision/<rev>][?blobs=true]    commit and files of a revision
GET  /api/models/<repo>/tree/<commit>                    sizes and digests of a commit's files
HEAD /<repo>/resolve/<rev>/<file>                        where a file lies: Git LFS files on a "CDN" of their own
GET  /<repo>/resolve/<commit>/<file>, /cdn/<sha256>      its content, with ranges
POST /api/repos/create                                   an empty repository
POST /api/models/<repo>/preupload/<rev>                  which files go through Git LFS
POST /<repo>.git/info/lfs/objects/batch                  where those go that the Hub lacks; PUT /lfs/<sha256> takes them
POST /api/models/<repo>/commit/<rev>                     a commit, one JSON document a line
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
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")


@dataclass
class Repository:
    """commits: files by name, by commit. refs: commit by branch. token: what a request must carry; "" for anything."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str = ""
    gated: bool = False
    is_private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit and move the branch to it."""
        commit = hashlib.sha1(repr((sorted(files), len(self.commits))).encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


@dataclass
class FakeHub:
    """damaged: names whose content arrives changed. broken: names whose first transfer ends after so many bytes."""

    url: str = ""
    cdn: str = ""  # another host, as the library does not follow a Hub's redirects to elsewhere while it asks for sizes
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    broken: dict[str, int] = field(default_factory=dict)
    failing: int = 0  # answer everything with this status
    uploads: dict[str, bytes] = field(default_factory=dict)  # Git LFS content by sha256, in no commit yet
    uploads_left: int | None = None  # what comes after so many is answered with 403

    def content_of(self, sha256: str) -> tuple[str, bytes]:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for name, content in files.items():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return name, content
        raise KeyError(sha256)

    def asked(self, verb: str, part: str) -> list[str]:
        return [line for line in self.requests if line.startswith(verb) and part in line]


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Serve until the block ends, on a port of the system's choice."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.cdn = f"http://localhost:{server.server_port}/cdn"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library talk to this Hub alone, with an empty cache of downloads in `folder` and no token of a user's."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's retries


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests look at `requests`."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
        if self.hub.failing:
            self.error(self.hub.failing, "")
        elif found := re.fullmatch(r"/cdn/(\w+)", path):
            self.content(*self.hub.content_of(found[1]))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?", path):
            self.api(*found.groups())
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups())
        else:
            self.error(404, "EntryNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        if self.hub.failing:
            self.error(self.hub.failing, "")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
            self.hub.repositories[name] = Repository(is_private=asked.get("visibility") == "private")
            self.hub.repositories[name].commit({".gitattributes": b"*"})
            self.json({"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":  # of a model card
            self.json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            if self.repository(found[1]) is not None:
                self.json({"files": [self.mode(entry["path"]) for entry in json.loads(body)["files"]]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self.json(
                {"transfer": "basic", "objects": [self.lfs_object(entry) for entry in json.loads(body)["objects"]]}
            )
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.error(404, "EntryNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        digest = urlsplit(self.path).path.rpartition("/")[2]
        self.hub.requests.append(f"PUT /lfs/{digest}")
        if self.hub.uploads_left == 0 or hashlib.sha256(content).hexdigest() != digest:
            self.error(403, "")
            return
        self.hub.uploads_left = self.hub.uploads_left - 1 if self.hub.uploads_left is not None else None
        self.hub.uploads[digest] = content
        self.head(200, {"Content-Length": "0"})

    def chunks(self) -> bytes:
        """A body without a length."""
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def mode(self, path: str) -> dict[str, object]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular", "shouldIgnore": False}

    def lfs_object(self, entry: dict[str, object]) -> dict[str, object]:
        """Where to send one object; nowhere if it is here already."""
        if entry["oid"] in self.hub.uploads:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}}

    def commit(self, name: str, lines: list[dict[str, object]]) -> None:
        if (repository := self.repository(name)) is None:
            return
        files = dict(repository.commits[repository.refs["main"]])
        for kind, value in ((line["key"], line["value"]) for line in lines):
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        self.json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def repository(self, name: str) -> Repository | None:
        """The repository, if it is there and the request's token may see it."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.error(401, "RepoNotFound")
            return None
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.token and sent != repository.token and not repository.gated:
            if sent:
                self.error(401, "", "Invalid credentials in Authorization header")
            else:
                self.error(401, "RepoNotFound")
            return None
        return repository

    def api(self, name: str, kind: str | None, revision: str | None) -> None:
        if (repository := self.repository(name)) is None:
            return
        commit = repository.refs.get(revision or "main", revision or "")
        if commit not in repository.commits:
            self.error(404, "RevisionNotFound")
            return
        files = [_description(path, content) for path, content in repository.commits[commit].items()]
        if kind == "tree":
            self.json([entry["tree"] for entry in files])
        else:
            siblings = [entry["sibling"] for entry in files]
            self.json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (repository := self.repository(name)) is None:
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self.error(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return
        commit = repository.refs.get(revision, revision)
        content = repository.commits.get(commit, {}).get(file)
        if content is None:
            self.error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'}
        if not file.endswith(LFS_SUFFIXES):
            self.content(file, content, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.head(302, {**headers, "Location": f"{self.hub.cdn}/{digest}", "Content-Length": "0"})

    def content(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        if name in self.hub.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        status, extra = 200, {}
        if start:
            status, extra = 206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        self.head(status, {**(headers or {}), **extra, "Content-Length": str(len(body))})
        if self.command == "HEAD":
            return
        if (cut := self.hub.broken.pop(name, None)) is not None:
            self.wfile.write(body[:cut])
            self.close_connection = True  # before the promised length
            return
        self.wfile.write(body)

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def error(self, status: int, code: str, message: str = "") -> None:
        headers = {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {})
        self.head(status, headers | ({"X-Error-Message": message} if message else {}))

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _description(path: str, content: bytes) -> dict[str, dict[str, object]]:
    """One file as the two listings show it."""
    tree: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    sibling: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob_id(content)}
    if path.endswith(LFS_SUFFIXES):
        digest = hashlib.sha256(content).hexdigest()
        tree["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return {"tree": tree, "sibling": sibling}
