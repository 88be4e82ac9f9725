"""`python -m pipelines export-hf BUNDLE OUT`: a bundle's model as a Hugging Face folder."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import EnginewrightError

UNITS = {"MB": 10**6, "GB": 10**9}


def run(arguments: Sequence[str]) -> None:
    """Export one bundle, after a check of all its files, and print what was written.

    Raises:
        EnginewrightError: a damaged bundle, a folder that exists, or a size that is none.
    """
    parser = argparse.ArgumentParser("python -m pipelines export-hf", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--max-shard-size", default="5GB", help="of one safetensors file, such as 500MB (default: 5GB)")
    options = parser.parse_args(arguments)
    limit = parse_size(options.max_shard_size)

    from pipelines.export.hf import export_hf
    from runtime.formats.bundle import open_bundle

    for path in export_hf(open_bundle(options.bundle).checkpoint(), options.out, limit):
        print(f"{path.stat().st_size:>14,}  {path}")


def parse_size(text: str) -> int:
    """Bytes of `500MB` or `5GB`."""
    found = re.fullmatch(r"([1-9]\d*)(MB|GB)", text.upper())
    if found is None:
        raise EnginewrightError(f"--max-shard-size is {text!r}; write a number and MB or GB, such as 5GB")
    return int(found[1]) * UNITS[found[2]]
