"""What changes a digest, and what does not."""

from pathlib import Path

import pytest

from pipelines.codedigest import code_digest, reachable
from pipelines.digest import FileEntry, content_digest, folder_entries, json_digest


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_folder_digest_depends_on_names_and_bytes_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"b.txt": "2", "a/c.txt": "1"})
    second = write(tmp_path / "second", {"a/c.txt": "1", "b.txt": "2"})
    (second / "empty").mkdir()
    assert content_digest(folder_entries(first)) == content_digest(folder_entries(second))
    (second / "b.txt").rename(second / "d.txt")
    assert content_digest(folder_entries(first)) != content_digest(folder_entries(second))


def test_folder_digest_is_the_documented_one(tmp_path: Path) -> None:
    write(tmp_path, {"x.txt": "hello"})
    sha = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert folder_entries(tmp_path) == (FileEntry("x.txt", 5, sha),)
    assert content_digest(folder_entries(tmp_path)) == json_digest([["x.txt", sha]])


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        folder_entries(tmp_path)


TOY = {
    "toy/__init__.py": "",
    "toy/stage.py": "from toy import helper\ndef run():\n    from .deep.inner import work\n    return work()\n",
    "toy/helper.py": "VALUE = 1\n",
    "toy/deep/__init__.py": "",
    "toy/deep/inner.py": "from ..shared import base\ndef work(): return base\n",
    "toy/shared.py": "base = 1\n",
    "toy/unused.py": "x = 1\n",
}


def test_code_is_followed_through_every_kind_of_import(tmp_path: Path) -> None:
    roots = {"toy": write(tmp_path, TOY) / "toy"}
    expected = {"toy", "toy.stage", "toy.helper", "toy.deep", "toy.deep.inner", "toy.shared"}
    assert set(reachable("toy.stage", roots)) == expected


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("toy/shared.py", "base = 2\n", True),
        ("toy/deep/__init__.py", "import os\n", True),
        ("toy/shared.py", "base = 1  # a comment\n\n", False),
        ("toy/unused.py", "x = 2\n", False),
    ],
)
def test_code_digest_follows_meaning(tmp_path: Path, name: str, text: str, changes: bool) -> None:
    roots = {"toy": write(tmp_path, TOY) / "toy"}
    before = code_digest("toy.stage", roots)
    write(tmp_path, {name: text})
    assert (code_digest("toy.stage", roots) != before) is changes


def test_our_own_packages_are_found() -> None:
    assert {"pipelines.runner", "pipelines.stage", "runtime.errors"} <= set(reachable_from_ours())


def reachable_from_ours() -> dict[str, str]:
    from pipelines.codedigest import package_folders

    return reachable("pipelines.runner", package_folders())
