"""in-toto statements in DSSE envelopes: read with a public key, and the one way in which ours are written."""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from runtime.errors import EnginewrightError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
CURVES = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")  # what model-signing takes


def read_public_key(path: Path) -> SSlibKey:
    """An EC public key.

    Raises:
        EnginewrightError: no such file, or something else in it.
    """
    try:
        key = SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
        require_curve(key)
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror}); name the PEM of a public key") from error
    except (ValueError, TypeError) as error:
        raise EnginewrightError(
            f"{path}: no EC public key in PEM ({error}); make it with openssl ec -in <key.pem> -pubout"
        ) from error
    return key


def require_curve(key: SSlibKey) -> None:
    """Raises ValueError for a key that the model signature cannot be made with."""
    if key.scheme not in CURVES:
        raise ValueError(f"{key.scheme}, not one of {', '.join(CURVES)}")


def envelope_bytes(envelope: Envelope) -> bytes:
    """An envelope's file."""
    return json.dumps(envelope.to_dict(), sort_keys=True).encode() + b"\n"


def read_statement(path: Path, key: SSlibKey) -> dict[str, Any]:
    """The statement in an envelope that the key signed.

    Raises:
        EnginewrightError: no such file, another key's signature or none, or other bytes than were written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnginewrightError(
            f"{path}: the bundle is not signed ({error.strerror}); sign it with enginewright sign, or do not require it"
        ) from error
    try:
        envelope = Envelope.from_dict(json.loads(data))
        envelope.verify([key], 1)
        # JSON and base64 leave room for changes that the signature does not see.
        if envelope_bytes(envelope) != data or envelope.payload_type != PAYLOAD_TYPE:
            raise ValueError("not the bytes that signing wrote")
        statement: dict[str, Any] = json.loads(envelope.payload)
    except VerificationError as error:
        raise EnginewrightError(
            f"{path}: not signed by this key, or changed since; get the bundle again, or name its signer's key"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EnginewrightError(f"{path}: not what was signed ({error}); get the bundle again") from error
    return statement
