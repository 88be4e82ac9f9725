"""A bundle as one file, `<name>.tar.zst`, and back. The same bundle gives the same bytes.

The manifest comes first and bounds all that follows: an archive holds the files that it names, each with the size that
it says, and attestations. Nothing else is written to disk: no links, no devices, no path out of the folder.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from runtime.errors import EnginewrightError
from runtime.formats.manifest import ATTESTATIONS_DIR, MANIFEST_FILE, checked_manifest, expected_files

SUFFIX = ".tar.zst"
LEVEL = 3
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 10_000
MAX_ATTESTATION_BYTES = 2**30  # of all files below attestations/, which the manifest does not bound
MAX_RATIO = 200  # real bundles have 1 to 3
RATIO_FREE_BYTES = 16 * 2**20  # so little is no bomb, whatever its ratio
BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 2**20
REMEDY = "get the archive again from where it was made (python -m runtime archive)"


def archive_bundle(bundle: Path, out: Path) -> Path:
    """Write a bundle, every file of it checked, as an archive.

    Raises:
        EnginewrightError: the bundle is damaged, or the archive cannot be written.
    """
    folder = bundle_folder(bundle)
    checked_manifest(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names.remove(MANIFEST_FILE)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with (
            temporary.open("wb") as file,
            _zstd().ZstdCompressor(LEVEL, write_checksum=True).stream_writer(file) as sink,
        ):
            for name in [MANIFEST_FILE, *names]:
                _add(sink, folder / name, name)
            sink.write(bytes(2 * BLOCK))
        os.replace(temporary, out)
    except OSError as error:
        raise EnginewrightError(f"{out}: cannot be written ({error.strerror}); name another file") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def extract_bundle(archive: Path, folder: Path | None = None) -> Path:
    """Extract an archive to `folder`, by default the one of its name beside it, and return the folder.

    The folder appears whole, its files checked, or not at all. One that has the same bundle already is left as it is.

    Raises:
        EnginewrightError: the archive is damaged or holds what a bundle does not, or the folder is taken.
    """
    folder = folder or archive.with_name(archive.name.removesuffix(SUFFIX))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with _opened(archive) as stream:
            entries = _entries(stream, archive)
            manifest = _manifest(stream, entries, archive)
            if folder.exists():
                return _require_same(folder, manifest, archive)
            _require_room(folder, manifest, archive)
            temporary.mkdir(parents=True)
            (temporary / MANIFEST_FILE).write_bytes(manifest)
            _write_files(stream, entries, expected_files(manifest, archive), temporary, archive)
        checked_manifest(temporary)
        os.rename(temporary, folder)
    except OSError as error:
        if (folder / MANIFEST_FILE).is_file():  # another process was faster
            return _require_same(folder, manifest, archive)
        raise EnginewrightError(f"{folder}: cannot be written ({error.strerror}); extract with --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def bundle_folder(path: Path) -> Path:
    """A bundle's folder; an archive is extracted to that of its name beside it, unless it is there already.

    Raises:
        EnginewrightError: the archive is damaged, or another bundle is there.
    """
    if path.name.endswith(SUFFIX) and not path.is_dir():
        return extract_bundle(path)
    return path


def archived_digests(archive: Path) -> dict[str, str]:
    """Sha256 of every file in an archive by its name; nothing is written.

    Raises:
        EnginewrightError: the archive cannot be read.
    """
    digests = {}
    with _opened(archive) as stream:
        for info in _entries(stream, archive):
            digest = hashlib.sha256()
            for start in range(0, info.size, CHUNK_BYTES):
                digest.update(stream.read(min(CHUNK_BYTES, info.size - start)))
            stream.read(-info.size % BLOCK)
            digests[info.name] = digest.hexdigest()
    return digests


def _add(sink: Any, path: Path, name: str) -> None:
    """One file, with nothing of the machine and the time in its header."""
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    if len(name.encode()) > tarfile.LENGTH_NAME:
        raise EnginewrightError(f"{path}: a name of more than {tarfile.LENGTH_NAME} bytes; give it a shorter one")
    sink.write(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("rb") as file:
        shutil.copyfileobj(file, sink, CHUNK_BYTES)
    sink.write(bytes(-info.size % BLOCK))


class _Bounded:
    """The decompressed stream, which may not grow out of proportion to the file."""

    def __init__(self, stream: IO[bytes], file: BinaryIO, archive: Path) -> None:
        self.stream, self.file, self.archive = stream, file, archive
        self.num_bytes = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = self.stream.read(size)
        self.num_bytes += len(data)
        if len(data) < size:
            raise EnginewrightError(f"{self.archive}: ends early; {REMEDY}")
        if self.num_bytes > max(RATIO_FREE_BYTES, MAX_RATIO * self.file.tell()):
            raise EnginewrightError(
                f"{self.archive}: decompresses to more than {MAX_RATIO} times its size, which no bundle does; {REMEDY}"
            )
        return data


@contextmanager
def _opened(archive: Path) -> Iterator[_Bounded]:
    zstandard = _zstd()
    try:
        file = archive.open("rb")
    except OSError as error:
        raise EnginewrightError(f"{archive}: cannot be read ({error.strerror}); check the path") from error
    try:
        with file:
            # A window of 128 MiB is the most that a stranger's file may ask for.
            stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(file, read_across_frames=True)
            yield _Bounded(stream, file, archive)
    except zstandard.ZstdError as error:
        raise EnginewrightError(f"{archive}: no zstd data ({error}); {REMEDY}") from error


def _entries(stream: _Bounded, archive: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of plain files. Whoever takes one reads its content before the next."""
    seen: set[str] = set()
    while (header := stream.read(BLOCK)) != bytes(BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise EnginewrightError(f"{archive}: not a tar file ({error}); {REMEDY}") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.DIRTYPE: "a folder",
                    tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}.get(
                        info.type, "a header of another kind")  # fmt: skip
            raise EnginewrightError(f"{archive}: {info.name!r} is {kind}; a bundle holds plain files alone; {REMEDY}")
        if info.name in seen:
            raise EnginewrightError(f"{archive}: {info.name!r} comes twice; {REMEDY}")
        seen.add(info.name)
        if len(seen) > MAX_FILES:
            raise EnginewrightError(f"{archive}: more than {MAX_FILES} files, which no bundle has; {REMEDY}")
        yield info


def _manifest(stream: _Bounded, entries: Iterator[tarfile.TarInfo], archive: Path) -> bytes:
    info = next(entries, None)
    if info is None or info.name != MANIFEST_FILE:
        found = repr(info.name) if info else "nothing"
        raise EnginewrightError(f"{archive}: starts with {found}, a bundle's archive with {MANIFEST_FILE}; {REMEDY}")
    if info.size > MAX_MANIFEST_BYTES:
        raise EnginewrightError(
            f"{archive}: a manifest of {info.size} bytes, more than the {MAX_MANIFEST_BYTES} of any; {REMEDY}"
        )
    data = stream.read(info.size)
    stream.read(-info.size % BLOCK)
    return data


def _write_files(
    stream: _Bounded, entries: Iterator[tarfile.TarInfo], expected: Mapping[str, tuple[int, str]], folder: Path,
    archive: Path,
) -> None:  # fmt: skip
    """Write every entry that the manifest names, and attestations."""
    attested = 0
    for info in entries:
        parts = info.name.split("/")
        if info.name.startswith("/") or "\\" in info.name or "\0" in info.name or {"", ".", ".."} & set(parts):
            raise EnginewrightError(f"{archive}: the name {info.name!r} leads out of the bundle; {REMEDY}")
        if parts[0] == ATTESTATIONS_DIR and len(parts) > 1:
            attested += info.size
            if attested > MAX_ATTESTATION_BYTES:
                raise EnginewrightError(
                    f"{archive}: attestations of more than {MAX_ATTESTATION_BYTES} bytes, at {info.name!r}; {REMEDY}"
                )
        elif info.name not in expected:
            raise EnginewrightError(f"{archive}: {info.name!r} is not in the manifest; {REMEDY}")
        elif info.size != expected[info.name][0]:
            raise EnginewrightError(
                f"{archive}: {info.name!r} has {info.size} bytes, the manifest says {expected[info.name][0]}; {REMEDY}"
            )
        path = folder / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for start in range(0, info.size, CHUNK_BYTES):
                file.write(stream.read(min(CHUNK_BYTES, info.size - start)))
        stream.read(-info.size % BLOCK)


def _require_room(folder: Path, manifest: bytes, archive: Path) -> None:
    """Declared sizes are bounded by the free space, before the first byte is written."""
    need = sum(size for size, _ in expected_files(manifest, archive).values())
    existing = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise EnginewrightError(
            f"{archive}: its files need {need} bytes, {existing} has {free} free; make room, or extract with --out"
        )


def _require_same(folder: Path, manifest: bytes, archive: Path) -> Path:
    path = folder / MANIFEST_FILE
    if path.is_file() and path.read_bytes() == manifest:
        return folder
    raise EnginewrightError(f"{folder}: there already, and not the bundle of {archive}; move it, or extract with --out")


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise EnginewrightError(f"{SUFFIX} needs the library zstandard; pip install zstandard") from error
    return zstandard
