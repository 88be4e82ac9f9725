"""What is compiled: one CUDA source file with its macros, and the text of every header it includes.

Headers are found by their names in the file's own folder, in include/ and in plugins/, and handed to the compiler as
text: an image depends on nothing that the digest does not cover, and no path of this machine gets into it.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from plugins.cuda.errors import KernelError

PLUGINS = Path(__file__).resolve().parent.parent
INCLUDE = Path(__file__).resolve().parent / "include"
_LONGEST_VALUES = 32  # characters: archives hold no long paths
_INCLUDE_LINE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class KernelSource:
    """One compilation.

    name: unique together with the values of `defines`, which are (macro, value) pairs.
    file: under plugins/ as `rms_norm/rms_norm.cu`, or absolute.
    """

    name: str
    file: str
    defines: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """The name of the image's file, such as `attention-bfloat16-128`; many macros are named by their digest."""
        values = "-".join(value for _, value in self.defines)
        if len(values) > _LONGEST_VALUES:
            values = hashlib.sha256(repr(self.defines).encode()).hexdigest()[:16]
        return f"{self.name}-{values}" if values else self.name

    @property
    def path(self) -> Path:
        """The source file on this machine."""
        return PLUGINS / self.file

    def text(self) -> str:
        """Return the file's text.

        Raises:
            KernelError: there is no such file.
        """
        return _read(self.path, self.file)

    def headers(self) -> dict[str, str]:
        """Return the text of every header that is included, directly or not, by the name it is included by.

        Raises:
            KernelError: a header is missing, or one name means two files.
        """
        found: dict[str, Path] = {}
        pending = [self.path]
        while pending:
            file = pending.pop()
            for name in _INCLUDE_LINE.findall(_read(file, file.name)):
                header = _locate(name, file)
                if name in found and found[name] != header:
                    raise KernelError(f"{file.name} includes {name!r}, which another file includes as another file")
                if name not in found:
                    found[name] = header
                    pending.append(header)
        return {name: _read(found[name], name) for name in sorted(found)}

    def digest(self) -> str:
        """Return the sha256 of all that is compiled: source, headers and macros; not the compiler or its options."""
        parts = [self.text(), *(f"{name}\n{text}" for name, text in self.headers().items())]
        parts += [f"{macro}={value}" for macro, value in self.defines]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _locate(name: str, includer: Path) -> Path:
    for folder in (includer.parent, INCLUDE, PLUGINS):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise KernelError(f"{includer.name} includes {name!r}, which is in none of its folder, cuda/include/ and plugins/")


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise KernelError(f"cannot read kernel source {name}: {error.strerror}; reinstall Enginewright") from error
