"""Signs a bundle with an EC key: the model signature and the statements, all in one folder of its attestations."""

import os
import shutil
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from model_signing import signing
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from pipelines.signing.statements import evidence, gate_result, provenance
from runtime.errors import EnginewrightError
from runtime.formats.bundle import Bundle, open_bundle
from runtime.trust.envelope import PAYLOAD_TYPE, envelope_bytes, require_curve
from runtime.trust.model_signature import hashing_config
from runtime.trust.signatures import EVIDENCE, MODEL_SIGNATURE, SIGNATURES_DIR, attested_files

PROVENANCE = "provenance.intoto.json"
GATE_RESULT = "verify.intoto.json"


def sign_bundle(path: Path, key_path: Path, builder: str) -> Path:
    """Sign a bundle's folder, replacing its signatures, and return the folder of the signatures, which appears whole.

    Args:
        key_path: an EC private key in PEM, without a password.
        builder: a URI that names who built the bundle, for its provenance.

    Raises:
        EnginewrightError: the bundle is damaged, an archive or read-only, or the key is none to sign with.
    """
    if not path.is_dir():
        raise EnginewrightError(f"{path}: no folder; sign the folder of a bundle, then archive it")
    signer = _read_key(key_path)
    bundle = open_bundle(path.resolve())
    folder = bundle.path / SIGNATURES_DIR
    temporary = folder.with_name(".signatures.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    reports = [name for name in attested_files(bundle.path) if not Path(name).is_relative_to(SIGNATURES_DIR)]
    try:
        temporary.mkdir(parents=True)
        _sign(bundle, key_path, signer, builder, reports, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except OSError as error:
        raise EnginewrightError(f"{folder}: cannot be written ({error.strerror}); sign a copy") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _sign(
    bundle: Bundle, key_path: Path, signer: CryptoSigner, builder: str, reports: list[str], folder: Path
) -> None:  # fmt: skip
    model = signing.Config().use_elliptic_key_signer(private_key=key_path).set_hashing_config(hashing_config())
    model.sign(bundle.path, folder / MODEL_SIGNATURE)
    _write(folder / PROVENANCE, provenance(bundle, builder), signer)
    if result := gate_result(bundle):
        _write(folder / GATE_RESULT, result, signer)
    files = {name: bundle.path / name for name in reports}
    files |= {(SIGNATURES_DIR / path.name).as_posix(): path for path in folder.iterdir()}
    _write(folder / EVIDENCE, evidence(bundle, builder, files), signer)


def _write(path: Path, statement: bytes, signer: CryptoSigner) -> None:
    envelope = Envelope(statement, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    path.write_bytes(envelope_bytes(envelope))


def _read_key(path: Path) -> CryptoSigner:
    try:
        signer = CryptoSigner(load_pem_private_key(path.read_bytes(), None))
        require_curve(signer.public_key)
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror}); name the PEM of a private key") from error
    except (ValueError, TypeError) as error:
        raise EnginewrightError(
            f"{path}: no EC private key in PEM without a password ({error}); make one with "
            "openssl ecparam -name prime256v1 -genkey -noout -out <key.pem>"
        ) from error
    return signer
