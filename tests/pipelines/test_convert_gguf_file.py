"""A GGUF file is read as the gguf library reads it, and one that is damaged is refused before its sizes are used."""

import struct

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from pipelines.convert.families import FAMILIES
from pipelines.convert.gguf_file import GgufFile
from pipelines.convert.gguf_source import GgufSource
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import make_gguf_file


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return make_gguf_file(tmp_path_factory.mktemp("gguf") / "m.gguf", quantization="Q8_0")


def opened(path):
    """Open as far as a conversion does before it reads tensors."""
    return GgufSource(GgufFile(path))


def damaged(path, tmp_path, change):
    """A copy of the file; `change` alters its bytes in place, or returns others."""
    content = bytearray(path.read_bytes())
    changed = change(content)
    copy = tmp_path / "damaged.gguf"
    copy.write_bytes(content if changed is None else changed)
    return copy


def test_metadata_and_tensors_are_the_librarys(gguf_path):
    ours, reader = GgufFile(gguf_path), GGUFReader(gguf_path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours.metadata[key] == (pytest.approx(value, rel=1e-7) if type(value) is float else value)
    assert list(ours.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        assert np.array_equal(ours.read(tensor.name), dequantize(tensor.data, tensor.tensor_type))


def test_a_float32_is_the_shortest_decimal(gguf_path):
    assert GgufFile(gguf_path).metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6


def test_every_truncation_is_refused_in_one_line(gguf_path, tmp_path):
    tensors = GGUFReader(gguf_path).tensors
    header_len = min(tensor.data_offset for tensor in tensors)
    data_end = max(tensor.data_offset + tensor.n_bytes for tensor in tensors)  # padding follows
    lengths = [0, 3, 4, 7, 8, 23, 24, *range(25, header_len, 997), *range(header_len, data_end, 9973), data_end - 1]
    for length in lengths:
        with pytest.raises(EnginewrightError, match=r"truncated|damaged|is empty") as caught:
            opened(damaged(gguf_path, tmp_path, lambda content, length=length: content[:length]))
        assert "\n" not in str(caught.value)


def patched(offset, code, value):
    def change(content):
        struct.pack_into("<" + code, content, offset, value)

    return change


@pytest.mark.parametrize(
    ("offset", "code", "value", "match"),
    [
        (0, "I", 0x46554747 + 1, "it is not a GGUF file"),
        (4, "I", 1, "GGUF version 1"),
        (4, "I", 3 << 24, "or big-endian"),
        (8, "Q", 2**60, f"claims {2**60} tensors but"),
        (16, "Q", 2**63, f"claims {2**63} metadata keys but"),
        (24, "Q", 2**40, f"claims {2**40} characters but"),
    ],
)
def test_absurd_headers_are_refused(gguf_path, tmp_path, offset, code, value, match):
    with pytest.raises(EnginewrightError, match=match):
        opened(damaged(gguf_path, tmp_path, patched(offset, code, value)))


def tensor_field(content, name, field):
    """Where a field of a tensor's entry lies: dims (count), dim0, type or offset, of a tensor of two dimensions."""
    start = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    return start + {"dims": 0, "dim0": 4, "type": 20, "offset": 24}[field]


@pytest.mark.parametrize(
    ("field", "code", "value", "match"),
    [
        ("dims", "I", 9, "has 9 dimensions"),
        ("dim0", "Q", 0, "has shape"),
        ("dim0", "Q", 65, "has rows of 65, not a multiple of its type's block of 32"),
        ("dim0", "Q", 2**40, r"ends at byte \d+ but the file has \d+; it is truncated"),
        ("type", "I", 999, "has type 999, which the installed gguf library does not know"),
        ("offset", "Q", 2**50, r"ends at byte \d+ but the file has \d+; it is truncated"),
    ],
)
def test_absurd_tensor_entries_are_refused_by_name(gguf_path, tmp_path, field, code, value, match):
    name = "blk.1.ffn_up.weight"
    offset = tensor_field(gguf_path.read_bytes(), name, field)
    with pytest.raises(EnginewrightError, match=f"tensor '?{name}'? {match}"):
        opened(damaged(gguf_path, tmp_path, patched(offset, code, value)))


@pytest.mark.parametrize(
    "key",
    ["llama.block_count", "llama.embedding_length", "llama.attention.head_count", "llama.context_length",
     "llama.feed_forward_length", "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens",
     "tokenizer.ggml.token_type", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.merges",
    ],
)  # fmt: skip
def test_a_missing_key_is_named(key, tmp_path):
    with pytest.raises(EnginewrightError, match=f"metadata key {key} is missing"):
        fetch_and_convert(make_gguf_file(tmp_path / "m.gguf", drop=(key,)), tmp_path / "out")


YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                            "original_max_position_embeddings": 64}}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("qwen2.rope.freq_base", {"family": "qwen2", "tied": False}),
        ("qwen3.attention.layer_norm_rms_epsilon", {"family": "qwen3"}),
        ("llama.rope.scaling.factor", YARN),
        ("llama.rope.scaling.original_context_length", YARN),
    ],
)
def test_a_missing_key_that_only_some_models_need_is_named(key, model, tmp_path):
    with pytest.raises(EnginewrightError, match=f"metadata key {key} is missing"):
        fetch_and_convert(make_gguf_file(tmp_path / "m.gguf", drop=(key,), **model), tmp_path / "out")


def test_the_first_llamas_rotary_base_and_key_heads_need_no_key(tmp_path):
    drop = ("llama.rope.freq_base", "llama.attention.head_count_kv")
    file = make_gguf_file(tmp_path / "m.gguf", drop=drop, kv_heads=4)
    assert opened(file).spec.rope_theta == 10_000.0
    assert opened(file).spec.num_kv_heads == 4


def test_a_file_that_names_no_architecture_is_refused(gguf_path, tmp_path):
    path = damaged(
        gguf_path, tmp_path, lambda content: content.replace(b"general.architecture", b"general.architectura")
    )
    with pytest.raises(EnginewrightError, match=r"metadata key general\.architecture is missing"):
        opened(path)


def test_a_part_of_a_split_model_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EnginewrightError, match="is one of 3 parts of a model; join them with"):
        opened(tmp_path / "part.gguf")


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.attn_k.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(name, tmp_path):
    with pytest.raises(EnginewrightError, match=f"tensor {name} is missing"):
        fetch_and_convert(make_gguf_file(tmp_path / "m.gguf", drop=(name,)), tmp_path / "out")


def test_another_architecture_is_refused_with_the_known_ones(gguf_path, tmp_path):
    path = damaged(gguf_path, tmp_path, lambda content: content.replace(b"llama", b"whale"))
    known = ", ".join(family.gguf_architecture for family in FAMILIES if family.gguf_architecture)
    with pytest.raises(EnginewrightError, match=f"'whale' is not supported; give a model of {known}"):
        opened(path)


def test_metadata_that_the_tensors_do_not_fit_is_refused(gguf_path, tmp_path):
    key = b"llama.feed_forward_length" + struct.pack("<I", 4)
    path = damaged(gguf_path, tmp_path, lambda content: patched(content.index(key) + len(key), "I", 96)(content))
    with pytest.raises(EnginewrightError, match=r"has shape \(128, 64\) but the metadata asks for \(96, 64\)"):
        fetch_and_convert(path, tmp_path / "out")


def test_a_value_of_another_type_is_refused(gguf_path, tmp_path):
    key = b"llama.block_count"
    path = damaged(gguf_path, tmp_path, lambda content: patched(content.index(key) + len(key), "I", 6)(content))
    with pytest.raises(EnginewrightError, match=r"metadata llama\.block_count is .*, not a int"):
        opened(path)
