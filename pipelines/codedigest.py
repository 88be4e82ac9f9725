"""The digest of the code that a module runs: itself and every first-party module it imports, transitively.

Found in the source by its import statements, at the top and inside functions alike; nothing is imported. Comments and
layout do not count. Modules reached only by a computed name (importlib) are not seen: a stage imports what it uses.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pipelines.digest import json_digest

FIRST_PARTY = ("pipelines", "runtime", "plugins")


class Source(NamedTuple):
    digest: str  # of the syntax tree
    imports: frozenset[str]  # dotted names, each a module or a name inside one


def code_digest(module: str, roots: Mapping[str, Path] | None = None) -> str:
    """Digest a module with all the first-party code it reaches.

    Args:
        roots: folder of each first-party top-level package; by default ours.
    """
    return json_digest(reachable(module, package_folders() if roots is None else roots))


def reachable(module: str, roots: Mapping[str, Path]) -> dict[str, str]:
    """The digests of all modules that importing and running `module` may execute, by dotted name."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else module_file(name, roots)
        if path is None:
            continue
        source = read_source(path, name, path.name == "__init__.py", path.stat().st_mtime_ns)
        found[name] = source.digest
        waiting += [parent for imported in (name, *source.imports) for parent in with_parents(imported)]
    return found


def with_parents(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b` and `a`: importing a module executes its packages."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def module_file(name: str, roots: Mapping[str, Path]) -> Path | None:
    """The source file of a first-party module; None for anything else."""
    package, *rest = name.split(".")
    if package not in roots:
        return None
    base = roots[package].joinpath(*rest)
    candidates = (base / "__init__.py", base.with_suffix(".py")) if rest else (base / "__init__.py",)
    return next((path for path in candidates if path.is_file()), None)


@cache
def read_source(path: Path, name: str, is_package: bool, mtime_ns: int) -> Source:
    """Parse one file; `mtime_ns` makes an edited file a new one."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = name if is_package else name.rpartition(".")[0]
    imports = frozenset(imported for node in ast.walk(tree) for imported in imported_names(node, package))
    return Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports)


def imported_names(node: ast.AST, package: str) -> Iterator[str]:
    """What one statement imports; `from a import b` may mean the module `a.b` or a name in `a`, so it gives both."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parts, node.module] if node.module else parts)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def package_folders() -> Mapping[str, Path]:
    """Where our packages lie, in a checkout or installed."""
    specs = {name: find_spec(name) for name in FIRST_PARTY}
    return {
        name: Path(spec.submodule_search_locations[0])
        for name, spec in specs.items()
        if spec is not None and spec.submodule_search_locations
    }
