"""The page on troubleshooting names errors that really exist."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/troubleshooting.md"
MIN_CHARS = 8  # shorter pieces of a message are in any file


def messages() -> str:
    """The fixed parts of every string in the code, f-strings put together."""
    found = []
    for package in ("pipelines", "runtime"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def documented() -> list[str]:
    """What the first column of the tables with errors quotes."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    quoted = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    return [phrase for phrase in quoted if " " in phrase]


def test_the_tables_were_found() -> None:
    assert len(documented()) > 30


@pytest.mark.parametrize("phrase", documented())
def test_a_documented_error_is_in_the_code(phrase: str) -> None:
    text = messages().lower()
    system_words = ("no space left on device", "file too large", "(read-only file system)", "(permission denied)")
    for piece in re.split(r"\.\.\.|<[a-z]+>", phrase.lower()):
        for system in system_words:
            piece = piece.replace(system, "")
        for part in piece.split(";"):
            if len(part.strip()) >= MIN_CHARS:
                assert part.strip() in text, part
