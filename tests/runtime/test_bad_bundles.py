"""Whatever is wrong with a bundle, the command line says it in one line: the value, the bound it broke, the remedy."""

import json
import shutil
from pathlib import Path

import pytest

from runtime.cli import main
from tests.runtime.golden import make

BUNDLE = Path(make.__file__).parent / "schema-1/bundle"


def manifest(**changes):
    def damage(bundle):
        path = bundle / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def content(name, change):
    def damage(bundle):
        path = bundle / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def missing(name):
    return lambda bundle: (bundle / name).unlink()


def file_named(name):
    def damage(bundle):
        path = bundle / "manifest.json"
        fields = json.loads(path.read_text())
        fields["files"][name] = {"size_bytes": 1, "sha256": "0" * 64}
        path.write_text(json.dumps(fields))

    return damage


REFERENCE, REPORT = "attestations/verify/reference.safetensors", "attestations/verify/report.json"
CASES = {
    "newer schema": (manifest(schema=2), "inspect", "schema 2, this version reads schema 1; use a newer version"),
    "odd schema": (manifest(schema="x"), "inspect", "schema x, this version reads schema 1; use the version"),
    "no manifest": (missing("manifest.json"), "inspect", "no engine bundle here .*; give the folder of a bundle"),
    "manifest cut": (content("manifest.json", lambda data: data[:100]), "inspect", "not a bundle manifest .*build"),
    "manifest empty": (content("manifest.json", lambda data: b""), "inspect", "not a bundle manifest .*build"),
    "manifest no text": (content("manifest.json", lambda data: b"\xff\xfe\0"), "inspect", "not a bundle manifest .*b"),
    "manifest deep": (content("manifest.json", lambda data: b"[" * 10**5), "inspect", "not a bundle manifest .*build"),
    "no targets": (manifest(targets=[]), "inspect", "not a bundle manifest .*targets.*; build the bundle again"),
    "another target": (manifest(targets={"cuda": {}}), "for the CPU", "no engine for target 'cpu', only for cuda; build"),
    "file missing": (missing("tokenizer/tokenizer.json"), "generate", "tokenizer.json: missing .*; copy or build"),
    "one byte": (
        content("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "generate",
        "weights.safetensors: sha256 .*, the manifest says .*; copy or build",
    ),
    "longer": (
        content("weights.safetensors", lambda data: data + b"\0"), "generate",
        r"weights.safetensors: \d+ bytes, the manifest says \d+; copy or build",
    ),
    "added": (lambda bundle: (bundle / "extra").touch(), "inspect", "extra: not in the manifest; remove it"),
    "leads out": (file_named("../../etc/passwd"), "inspect", "the file name '../../etc/passwd' leads out .*; build"),
    "no reference": (missing(REFERENCE), "verify", "reference.safetensors: unreadable .*; verify the engine again"),
    "reference cut": (content(REFERENCE, lambda data: data[:999]), "verify", "reference.safetensors: .*; verify"),
    "reference header": (
        content(REFERENCE, lambda data: b"\xff" * 8 + data[8:]), "verify", "reference.safetensors: .*; verify"
    ),
    "no report": (missing(REPORT), "verify", "report.json: no verification gates .*; build the bundle again"),
    "report cut": (content(REPORT, lambda data: data[:50]), "verify", "report.json: no verification gates .*; build"),
    "no context": (None, "long", r"the prompt has \d+ tokens; this engine holds 1024.*shorten the prompt or compile"),
    "sampling": (None, "sampling", r"sampling parameter top_p is 1.5; it must be above 0 and at most 1"),
}  # fmt: skip
COMMANDS = {
    "generate": ["generate", "--prompt", "x"],
    "long": ["generate", "--prompt", "x y " * 1000],
    "sampling": ["generate", "--prompt", "x", "--top-p", "1.5"],
    "for the CPU": ["generate", "--prompt", "x", "--target", "cpu"],
    "inspect": ["inspect"],
    "verify": ["verify"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_bundle_or_request_is_one_line(tmp_path, case):
    damage, command, words = CASES[case]
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle")
    if damage is not None:
        damage(bundle)
    name, *options = COMMANDS[command]
    with pytest.raises(SystemExit, match=f"^error: .*{words}") as caught:
        main([name, str(bundle), *options])
    assert "\n" not in str(caught.value)


def test_attestations_that_are_gone_keep_no_bundle_from_running(tmp_path, capsys):
    bundle = shutil.copytree(BUNDLE, tmp_path / "bundle", ignore=shutil.ignore_patterns("attestations"))
    main(["generate", str(bundle), "--prompt", "x", "--max-tokens", "2"])
    main(["inspect", str(bundle)])
    assert "no report in this bundle; run python -m runtime verify" in capsys.readouterr().out
