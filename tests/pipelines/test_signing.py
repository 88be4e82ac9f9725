"""Signed bundles: any tool can read what is signed, and one changed byte anywhere is refused and named."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as GateResult

from pipelines import enginewright
from pipelines.bundles import place_bundle
from pipelines.cache import Metadata
from pipelines.digest import folder_entries
from pipelines.runner import StageResult
from pipelines.signing.sign import sign_bundle
from pipelines.stage import Artifact
from runtime import cli
from runtime.async_llm import AsyncLLM
from runtime.errors import EnginewrightError
from runtime.formats.archive import archive_bundle
from runtime.formats.bundle import open_bundle
from runtime.llm import LLM
from runtime.trust.envelope import read_public_key, read_statement
from runtime.trust.signatures import require_signature
from tests.runtime.golden import make

GOLDEN = Path(make.__file__).parent / "schema-1/bundle"
GOLDEN_FILES = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file())
SIGNATURES = "attestations/signatures"
SIGNED = [f"{SIGNATURES}/{name}" for name in
          ("evidence.intoto.json", "model.sig", "provenance.intoto.json", "verify.intoto.json")]  # fmt: skip
BUILDER = "urn:example:builder"


def write_key(path: Path, key: Any) -> Path:
    """A private key, and its public half beside it as `.pub`."""
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of keys."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine.pem", "other.pem"):
        write_key(folder / name, ec.generate_private_key(ec.SECP256R1()))
    write_key(folder / "rsa.pem", rsa.generate_private_key(65537, 2048))
    write_key(folder / "bitcoin.pem", ec.generate_private_key(ec.SECP256K1()))
    return folder


@pytest.fixture(scope="module")
def original(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = shutil.copytree(GOLDEN, tmp_path_factory.mktemp("signed") / "bundle")
    sign_bundle(bundle, keys / "mine.pem", BUILDER)
    return bundle


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A signed bundle of the test's own."""
    return shutil.copytree(original, tmp_path / "bundle")


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def statement(bundle: Path, name: str) -> dict[str, Any]:
    envelope = json.loads((bundle / SIGNATURES / name).read_text())
    return json.loads(base64.b64decode(envelope["payload"]))  # type: ignore[no-any-return]


def test_a_signed_bundle_loads_wherever_it_is_and_keeps_its_id(bundle: Path, keys: Path, tmp_path: Path) -> None:
    public = keys / "mine.pub"
    moved = shutil.move(bundle, tmp_path / "moved")
    (tmp_path / "latest").symlink_to(moved)
    assert LLM(tmp_path / "latest", trust=public).text_engine.engine
    assert open_bundle(tmp_path / "latest", public).bundle_id == open_bundle(GOLDEN).bundle_id
    archive = archive_bundle(moved, tmp_path / "one.tar.zst")
    assert open_bundle(archive, public).path == tmp_path / "one"


@pytest.mark.parametrize("name", [*GOLDEN_FILES, *SIGNED])
def test_one_flipped_byte_is_refused_and_named(bundle: Path, keys: Path, name: str) -> None:
    flip(bundle / name, (bundle / name).stat().st_size // 2)
    with pytest.raises(EnginewrightError, match=name.removeprefix("attestations/")):
        require_signature(bundle, keys / "mine.pub")


def test_no_byte_of_the_statement_that_covers_the_others_may_change(bundle: Path, keys: Path) -> None:
    path, key = bundle / SIGNED[0], read_public_key(keys / "mine.pub")
    size = path.stat().st_size
    read_statement(path, key)
    for index in range(size):
        flip(path, index)
        with pytest.raises(EnginewrightError, match="evidence"):
            read_statement(path, key)
        flip(path, index)
    read_statement(path, key)


@pytest.mark.parametrize("name", ["weights.safetensors", "attestations/verify/report.json", *SIGNED])
def test_a_file_taken_away_is_named(bundle: Path, keys: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(EnginewrightError, match=name):
        require_signature(bundle, keys / "mine.pub")


@pytest.mark.parametrize("name", ["extra.bin", "weights.pkl", "attestations/new/report.json", f"{SIGNATURES}/x.sig"])
def test_a_file_added_is_named(bundle: Path, keys: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    with pytest.raises(EnginewrightError, match=name):
        require_signature(bundle, keys / "mine.pub")


def test_another_key_and_no_signature_are_refused(bundle: Path, keys: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"evidence.intoto.json: not signed by this key, or changed"):
        LLM(bundle, trust=keys / "other.pub")
    with pytest.raises(EnginewrightError, match=r"evidence.intoto.json: the bundle is not signed .*sign it with"):
        AsyncLLM(GOLDEN, trust=keys / "mine.pub")


def test_signatures_of_another_bundle_do_not_carry_over(bundle: Path, keys: Path, tmp_path: Path) -> None:
    other = shutil.copytree(GOLDEN, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"provenance": {"source": "elsewhere"}}))
    shutil.copytree(bundle / SIGNATURES, other / SIGNATURES)
    with pytest.raises(EnginewrightError, match=r"not what was signed: .*manifest.json"):
        require_signature(other, keys / "mine.pub")


def test_one_statement_does_not_stand_for_another(bundle: Path, keys: Path) -> None:
    shutil.copyfile(bundle / SIGNATURES / "verify.intoto.json", bundle / SIGNATURES / "evidence.intoto.json")
    with pytest.raises(EnginewrightError, match=r"evidence.intoto.json: another statement of the signer"):
        require_signature(bundle, keys / "mine.pub")


def test_a_link_in_the_place_of_a_file_is_refused(bundle: Path, keys: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "weights.safetensors", tmp_path / "weights")
    (bundle / "weights.safetensors").symlink_to(tmp_path / "weights")
    with pytest.raises(EnginewrightError, match=r"not what was signed: .*weights.safetensors.*symlink"):
        require_signature(bundle, keys / "mine.pub")


def test_signing_again_replaces_the_signatures(bundle: Path, keys: Path) -> None:
    (bundle / SIGNATURES / "leftover").touch()
    (bundle / "attestations/.signatures.tmp").mkdir()
    (bundle / "attestations/.signatures.tmp/model.sig").touch()  # of a run that was killed
    sign_bundle(bundle, keys / "other.pem", BUILDER)
    require_signature(bundle, keys / "other.pub")
    assert sorted(path.name for path in (bundle / "attestations").iterdir()) == ["bench", "signatures", "verify"]
    assert not (bundle / SIGNATURES / "leftover").exists()


def test_the_provenance_is_slsas_and_names_every_material(original: Path) -> None:
    said, manifest = statement(original, "provenance.intoto.json"), json.loads((GOLDEN / "manifest.json").read_text())
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    ParseDict(said["predicate"], Provenance())  # raises for a field that SLSA does not have
    definition = said["predicate"]["buildDefinition"]
    origin = manifest["provenance"]
    materials = {part["name"]: part["digest"]["sha256"] for part in definition["resolvedDependencies"]}
    assert materials == {entry["path"]: entry["sha256"] for entry in origin["source"]["files"]}
    assert definition["internalParameters"]["code_digest"] == origin["code_digest"]
    assert definition["internalParameters"]["config_digest"] == origin["config_digest"]
    assert definition["externalParameters"]["command"].startswith("make engine MODEL='<path of golden-tiny>'")
    assert said["predicate"]["runDetails"]["builder"]["id"] == BUILDER


def test_the_gates_result_is_a_test_result_and_all_evidence_is_listed(original: Path) -> None:
    said = statement(original, "verify.intoto.json")
    ParseDict(said["predicate"], GateResult())
    assert (said["predicate"]["result"], said["predicate"]["passedTests"]) == ("PASSED", ["engine gate"])
    references = statement(original, "evidence.intoto.json")["predicate"]["references"]
    attested = [name for name in [*GOLDEN_FILES, *SIGNED[1:]] if name.startswith("attestations/")]
    assert [reference["name"] for reference in references] == sorted(attested)
    bundle_id = open_bundle(GOLDEN).bundle_id
    for name in SIGNED:
        if name.endswith(".json"):
            subject = statement(original, Path(name).name)["subject"]
            assert subject == [{"name": "manifest.json", "digest": {"sha256": bundle_id}}]


def test_a_bundle_built_without_the_gate_says_nothing_of_it(keys: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle", ignore=shutil.ignore_patterns("attestations"))
    sign_bundle(bundle, keys / "mine.pem", BUILDER)
    require_signature(bundle, keys / "mine.pub")
    assert not (bundle / SIGNATURES / "verify.intoto.json").exists()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("absent.pem", "cannot be read"),
        ("mine.pub", "no EC private key"),
        ("rsa.pem", "no EC private key .*rsa"),
        ("bitcoin.pem", "no EC private key"),
    ],
)
def test_a_key_that_cannot_sign_leaves_the_bundle_as_it_was(bundle: Path, keys: Path, key: str, message: str) -> None:
    with pytest.raises(EnginewrightError, match=f"{key}: {message}"):
        sign_bundle(bundle, keys / key, BUILDER)
    require_signature(bundle, keys / "mine.pub")


@pytest.mark.parametrize("key", ["mine.pem", "rsa.pub", "bitcoin.pub"])
def test_a_key_that_cannot_check_is_named(bundle: Path, keys: Path, key: str) -> None:
    with pytest.raises(EnginewrightError, match=f"{key}: no EC public key in PEM"):
        require_signature(bundle, keys / key)


def test_a_damaged_bundle_and_an_archive_are_not_signed(bundle: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match="no folder; sign the folder of a bundle"):
        sign_bundle(archive_bundle(bundle, tmp_path / "x.tar.zst"), keys / "mine.pem", BUILDER)
    flip(bundle / "weights.safetensors", 1000)
    with pytest.raises(EnginewrightError, match=r"weights.safetensors: sha256"):
        sign_bundle(bundle, keys / "mine.pem", BUILDER)


def test_the_command_line_signs_checks_and_requires(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, public = shutil.copytree(GOLDEN, tmp_path / "bundle"), str(keys / "mine.pub")
    generate = ["generate", str(bundle), "--prompt", "x", "--max-tokens", "2", "--speculation", "off"]
    cli.main(generate)  # a bundle that is not signed loads, unless a signature is required
    with pytest.raises(SystemExit, match="the bundle is not signed"):
        cli.main([*generate, "--require-signature", public])
    monkeypatch.setenv("ENGINEWRIGHT_REQUIRE_SIGNATURE", public)
    with pytest.raises(SystemExit, match="the bundle is not signed"):
        cli.main(["verify", str(bundle)])
    enginewright.main(["sign", str(bundle), "--key", str(keys / "mine.pem")])
    assert capsys.readouterr().out.splitlines()[-1] == str(bundle / SIGNATURES)
    cli.main(generate)
    cli.main(["verify-signature", str(bundle), "--public-key", public])
    assert capsys.readouterr().out.splitlines()[-1] == f"{bundle}: signed by this key, unchanged"


def test_model_signings_own_command_agrees(bundle: Path, keys: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", bundle, "--public_key", keys / "mine.pub",
               "--signature", bundle / SIGNATURES / "model.sig"]  # fmt: skip
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    flip(bundle / "weights.safetensors", 1000)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


BLOCK = "import sys\nfor name in ('model_signing', 'securesystemslib'): sys.modules[name] = None\n"


@pytest.mark.parametrize(
    "arguments", [["inspect", "--require-signature", "x.pub"], ["verify-signature", "--public-key", "x"]]
)
def test_a_host_without_the_libraries_says_which_extra_has_them(arguments: list[str]) -> None:
    name, *options = arguments
    code = f"{BLOCK}from runtime.cli import main\nmain([{name!r}, {str(GOLDEN)!r}, *{options!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: checking a signature needs the extra trust (")
    assert "pip install 'enginewright[trust]', or model-signing and pyOpenSSL" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_host_without_the_libraries_loads_what_need_not_be_signed() -> None:
    code = f"{BLOCK}from pathlib import Path\nfrom runtime.llm import LLM\nprint(LLM(Path({str(GOLDEN)!r})))"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_a_build_that_finds_its_bundle_signed_leaves_it(keys: Path, tmp_path: Path) -> None:
    package = StageResult(
        Artifact(GOLDEN, "digest"), Metadata("package", "key", {}, files=tuple(folder_entries(GOLDEN))), cached=True
    )
    placed = place_bundle(package, "golden", tmp_path)
    sign_bundle(placed, keys / "mine.pem", BUILDER)
    assert place_bundle(package, "golden", tmp_path) == placed
    require_signature(placed, keys / "mine.pub")
    (placed / "attestations/verify/prompts.json").unlink()  # what was packaged is put back, and nobody signed that
    place_bundle(package, "golden", tmp_path)
    with pytest.raises(EnginewrightError, match="the bundle is not signed"):
        require_signature(placed, keys / "mine.pub")
