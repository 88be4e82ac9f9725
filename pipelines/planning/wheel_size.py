"""How large a wheel is, asked of the indexes that pip is configured for. Nothing is downloaded.

pip itself has no such question: its dry run fetches the whole wheel from an index without separate metadata.
"""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

TIMEOUT_S = 5.0
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def pips_own_index() -> str:
    """The index that pip takes where none is configured; "" where this pip does not tell."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return ""
    return str(PyPI.simple_url)


class Size(NamedTuple):
    """num_bytes is None where nobody tells; `note` says why, or who told."""

    num_bytes: int | None
    note: str


class Link(NamedTuple):
    name: str
    url: str
    num_bytes: int | None


def wheel_size(dist: str, version: str) -> Size:
    """The size of the wheel that `pip download dist==version` would bring, from the first place that has it."""
    settings = pip_settings()
    for folder in settings.get("find-links", "").split():
        for path in Path(folder.removeprefix("file://")).glob("*.whl"):
            if is_wheel(path.name, dist, version):
                return Size(0, f"lies in {folder}")
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return Size(None, "no folder of find-links has the wheel, and no-index is set")
    urls = [settings.get("index-url") or pips_own_index(), *settings.get("extra-index-url", "").split()]
    reason = "no index over http is configured"
    for url in [url for url in urls if url.startswith("http")]:
        try:
            found = ask_index(url.rstrip("/"), dist, version)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            reason = f"the index does not answer: {type(error).__name__}"
            continue
        if found is not None:
            return Size(found, "as the package index says")
        reason = "the index does not tell"
    return Size(None, reason)


def ask_index(index: str, dist: str, version: str) -> int | None:
    """Read the project's page, then ask for the headers of its wheel where the page has no sizes."""
    import requests

    page = requests.get(f"{index}/{normalized(dist)}/", headers={"Accept": ACCEPT}, timeout=TIMEOUT_S)
    page.raise_for_status()
    links = json_links(page.json()) if "json" in page.headers.get("Content-Type", "") else html_links(page.text)
    link = next((link for link in links if is_wheel(link.name, dist, version)), None)
    if link is None or link.num_bytes is not None:
        return None if link is None else link.num_bytes
    head = requests.head(urljoin(page.url, link.url), allow_redirects=True, timeout=TIMEOUT_S)
    head.raise_for_status()
    length = head.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def json_links(page: dict[str, Any]) -> list[Link]:
    return [Link(item["filename"], item["url"], item.get("size")) for item in page.get("files", [])]


def html_links(page: str) -> list[Link]:
    parser = Links()
    parser.feed(page)
    return [Link(unquote(urlsplit(url).path.rpartition("/")[2]), url, None) for url in parser.urls]


class Links(HTMLParser):
    """Collects where a page's links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (url := dict(attrs).get("href")):
            self.urls.append(url)


def is_wheel(name: str, dist: str, version: str) -> bool:
    """Whether a file is the wheel for any machine of one version; platform wheels are pip's to choose from."""
    parts = name.removesuffix(".whl").split("-")
    is_any = name.endswith("-none-any.whl") and len(parts) >= 5
    return is_any and normalized(parts[0]) == normalized(dist) and parts[1] == version


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pip_settings() -> dict[str, str]:
    """pip's configuration by option; the environment wins over files, as for pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = [line.partition("=") for line in done.stdout.splitlines() if "=" in line]
    ranked = sorted(lines, key=lambda line: (line[0].startswith(":env:"), line[0].startswith("download.")))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in ranked}
