"""Bundles: the same content has the same id, and nothing damaged loads."""

import json
import shutil

import pytest

from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.manifest import write_manifest
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.runtime.tiny import PLAN, make_checkpoint, make_tokenizer


def make_bundle(folder):
    make_checkpoint(folder)
    make_tokenizer(folder / "tokenizer")
    (folder / "engines" / "cpu").mkdir(parents=True)
    PLAN.write(folder / "engines" / "cpu")
    (folder / "attestations").mkdir()
    (folder / "attestations" / "verify.json").write_text(json.dumps({"host": folder.name}))
    return write_manifest(folder, {"name": "tiny"}, {"cpu": {"arch": "any"}}, {"source": "random"})


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_equal_inputs_give_equal_ids_whatever_the_attestations_say(tmp_path):
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert first == second == open_bundle(tmp_path / "a").bundle_id


def test_a_bundle_generates_wherever_it_is_moved(bundle, tmp_path):
    params = SamplingParams(max_tokens=8)
    text = LLM(bundle).generate("hello", params)[0].text
    shutil.move(bundle, tmp_path / "moved")
    assert LLM(tmp_path / "moved").generate("hello", params)[0].text == text


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "config.json", "tokenizer/tokenizer.json", "engines/cpu/engine.json"]
)
def test_one_changed_byte_is_refused_and_named(bundle, file):
    data = bytearray((bundle / file).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / file).write_bytes(data)
    with pytest.raises(EnginewrightError, match=rf"{file}: sha256 .* the manifest says"):
        open_bundle(bundle)


def test_a_missing_or_short_file_is_refused_and_named(bundle):
    with (bundle / "weights.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(EnginewrightError, match=r"weights.safetensors: 100 bytes, the manifest says"):
        open_bundle(bundle)
    (bundle / "weights.safetensors").unlink()
    with pytest.raises(EnginewrightError, match=r"weights.safetensors: missing"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a bundle manifest"),
        ("[]", "not a bundle manifest"),
        ('{"schema": 2}', "schema 2, this version reads"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(bundle, text, message):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(EnginewrightError, match=message):
        open_bundle(bundle)


def test_a_folder_that_is_no_bundle_and_a_target_that_is_not_in_it(bundle, tmp_path):
    with pytest.raises(EnginewrightError, match="no engine bundle here"):
        open_bundle(tmp_path)
    with pytest.raises(
        EnginewrightError, match=r"no engine for target 'cuda', only for cpu; build it with make engine"
    ):
        LLM(bundle, target="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_num_tokens": 3}, "below max_batch_size"),
        ({"schema": 9}, "schema 9"),
        ({"target": "tpu"}, "target 'tpu'"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"target": "cuda", "num_blocks": 0, "kv_cache_fraction": 1.5}, "kv_cache_fraction is 1.5"),
    ],
)
def test_an_impossible_engine_plan_is_refused(bundle, change, message):
    path = bundle / "engines" / "cpu" / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EnginewrightError, match=message):
        EnginePlan.read(path.parent)
