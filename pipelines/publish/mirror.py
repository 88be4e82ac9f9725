"""Makes a tree of files hold one bundle and nothing else:

1. What is there is looked at. Only files of a bundle, whole, interrupted or about to be replaced, may be there.
2. Another bundle's manifest is renamed, so that the place no longer looks whole, and then its files are removed.
3. Missing and differing files are sent, the manifest last.

Killed anywhere in between, the place has no manifest, and the next call goes on: a file with the right digest stays.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.publish.errors import another_bundle, shown
from pipelines.publish.publication import Outcome, PublishedFile
from pipelines.publish.tree import Tree
from runtime.errors import EnginewrightError
from runtime.formats.manifest import ATTESTATIONS_DIR, MANIFEST_FILE, expected_files


@dataclass(frozen=True)
class Layout:
    """Where in a tree a bundle lies, and what lies beside it.

    prefix: the bundle's folder, with its `/`. beside: names, and folders with their `/`, that a publication writes too.
    """

    prefix: str = ""
    beside: tuple[str, ...] = ()

    @property
    def manifest(self) -> str:
        return self.prefix + MANIFEST_FILE

    @property
    def replaced(self) -> str:
        """Name of the manifest of a bundle that is giving way."""
        return self.manifest + ".replaced"

    @property
    def varying(self) -> tuple[str, ...]:
        """Names and folders that no manifest vouches for: two copies of one bundle may differ there."""
        return (f"{self.prefix}{ATTESTATIONS_DIR}/", *self.beside)


PLAIN = Layout()


def mirror(
    tree: Tree, location: str, files: Sequence[PublishedFile], replace: bool, layout: Layout = PLAIN
) -> Outcome:  # fmt: skip
    """Make a tree hold these files and no other; they are sent in their order, so what makes it whole comes last.

    Raises:
        EnginewrightError: the tree has another bundle, or files that are no bundle's.
    """
    wanted = {file.name: file for file in files}
    there = tree.sizes()
    ours = wanted[layout.manifest].path.read_bytes()
    theirs = tree.read(layout.manifest) if layout.manifest in there else b""
    is_whole = theirs == ours
    if ours.startswith(theirs) and not is_whole:  # none, or one that a kill cut off
        there.pop(layout.manifest, None)
    _refuse_foreign(tree, location, there, set(wanted), layout)
    if layout.manifest in there and not is_whole:
        if not replace:
            raise another_bundle(location, hashlib.sha256(theirs).hexdigest(), wanted[layout.manifest].sha256)
        tree.rename(layout.manifest, layout.replaced)
        there[layout.replaced] = there.pop(layout.manifest)
    trusts_sizes = is_whole and not tree.is_local  # it was whole once; reading it all again is for `pull`
    missing = [file for file in files if not _is_there(tree, file, there, layout, trusts_sizes)]
    stale = sorted(set(there) - set(wanted), key=lambda name: (name == layout.replaced, name))
    for name in stale:
        if name != layout.replaced:
            tree.remove(name)
    for file in missing:
        if file.name == layout.manifest and layout.replaced in there:
            tree.remove(layout.replaced)
        tree.send(file)
    return Outcome([file.name for file in missing], sum(file.size_bytes for file in missing), stale)


def _refuse_foreign(
    tree: Tree, location: str, there: Mapping[str, int], wanted: set[str], layout: Layout
) -> None:  # fmt: skip
    """Refuse a tree that holds what no publication wrote: it is not ours to remove."""
    unknown = set(there) - wanted
    manifests = [name for name in (layout.manifest, layout.replaced) if name in there]
    for name in manifests:
        named = expected_files(tree.read(name), Path(tree.path(name)))
        unknown -= {name} | {layout.prefix + file for file in named}
    ours = layout.varying if manifests else ()
    if foreign := sorted(name for name in unknown if not name.startswith(ours)):
        what = foreign[0] or "it is a file"
        raise EnginewrightError(
            f"{shown(location)}: has files that are not of this bundle ({what}); empty it, or name another place"
        )


def _is_there(tree: Tree, file: PublishedFile, there: dict[str, int], layout: Layout, trusts_sizes: bool) -> bool:
    if there.get(file.name) != file.size_bytes:
        return False
    if trusts_sizes and not file.name.startswith(layout.varying):
        return True
    return tree.digest(file.name) == file.sha256
