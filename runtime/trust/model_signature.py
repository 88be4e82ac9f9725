"""The OpenSSF model signature of a bundle: `model-signing` in key mode, which needs no network."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from model_signing import hashing, verifying

from runtime.errors import EnginewrightError
from runtime.formats.manifest import ATTESTATIONS_DIR


def hashing_config() -> hashing.Config:
    """What the signature covers: the deterministic bundle, so all but the attestations."""
    return hashing.Config().set_ignored_paths(paths=[ATTESTATIONS_DIR], ignore_git_paths=False)


def check_model(folder: Path, signature: Path, public_key: Path) -> None:
    """Check every file of a bundle's folder, which is no link.

    Raises:
        EnginewrightError: a file was changed, added or taken away since, or another key signed.
    """
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key).set_hashing_config(hashing_config())
    try:
        verifier.verify(folder, signature)
    except (ValueError, KeyError, TypeError, OSError, InvalidSignature) as error:
        raise EnginewrightError(f"{folder}: not what was signed: {error}; get the bundle again") from error
