"""Bundles of every schema that was ever released load, verify and generate what they did when they were made."""

import json
from pathlib import Path

import pytest

from runtime.commands import verify_bundle
from runtime.formats.bundle import open_bundle
from tests.runtime.golden import make

GOLDEN = Path(make.__file__).parent
SCHEMAS = [1]
MAX_BYTES = 300_000


def test_there_is_one_golden_bundle_for_each_schema_and_it_is_small():
    folders = sorted(path for path in GOLDEN.glob("schema-*"))
    assert [folder.name for folder in folders] == [f"schema-{schema}" for schema in SCHEMAS]
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_old_bundle_still_generates_the_tokens_that_were_recorded(schema):
    folder = GOLDEN / f"schema-{schema}"
    recorded = json.loads((folder / make.RECORD).read_text())
    found = make.generate(folder / "bundle")
    assert open_bundle(folder / "bundle").manifest["schema"] == schema
    assert found.bundle_id == recorded["bundle_id"]
    assert found.tokens == recorded["tokens"]
    assert len(found.tokens) == len(make.PROMPTS)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_old_bundle_still_passes_its_gate(schema):
    report = verify_bundle(GOLDEN / f"schema-{schema}/bundle", "cpu", lambda fraction, text: None)
    assert report["passed"], report["failures"]
