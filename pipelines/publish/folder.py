"""A plain folder, or any URL that fsspec knows: the bundle as it is."""

from pathlib import Path

from pipelines.publish.errors import no_bundle, place_errors
from pipelines.publish.mirror import mirror
from pipelines.publish.publication import Outcome, Publication
from pipelines.publish.tree import Tree
from runtime.formats.manifest import MANIFEST_FILE


class Folder:
    """A folder by its path, or a place by its URL."""

    def __init__(self, location: str) -> None:
        self.location = location

    def publish(self, publication: Publication, replace: bool) -> Outcome:
        with place_errors(self.location):
            return mirror(Tree(self.location), self.location, publication.files, replace)

    def pull(self, folder: Path) -> None:
        with place_errors(self.location):
            pull_tree(Tree(self.location), self.location, folder)


def pull_tree(tree: Tree, location: str, folder: Path) -> None:
    """Write every file of a whole bundle in a tree to a folder."""
    names = tree.sizes()
    if MANIFEST_FILE not in names:
        raise no_bundle(location, f"no {MANIFEST_FILE}" if names else "nothing is there")
    for name in names:
        tree.fetch(name, inside(folder, name, location))


def inside(folder: Path, name: str, location: str) -> Path:
    """The path of a name that a stranger chose, in a folder.

    Raises:
        EnginewrightError: it leads out of the folder.
    """
    if name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise no_bundle(location, f"the name {name!r} leads out of it")
    return folder / name
