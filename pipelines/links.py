"""Files of a cached stage in the output of another."""

import os
import shutil
from pathlib import Path


def link_tree(source: Path, destination: Path) -> None:
    """Put the files of a cached stage into this one's folder: hard links, since neither is ever changed."""
    shutil.copytree(source, destination, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)
