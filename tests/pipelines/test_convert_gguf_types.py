"""Every tensor type that the gguf library can dequantize is read as it does, and the common ones as their formulas say.

Blocks are the library's own where it can quantize, and random valid ones where it cannot.
"""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from pipelines.convert.gguf_file import GgufFile
from runtime.errors import EnginewrightError

ROWS, COLS = 6, 512
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0",
         "TQ2_0", "MXFP4", "NVFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL",
         "IQ4_XS"]  # fmt: skip
OTHERS = ["Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"]


def half(block, at):
    """float16 scales at byte `at` of blocks (n, bytes): (n, 1) float32."""
    return block[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def nibbles(packed):
    """All low halves of bytes (n, b), then all high ones: (n, 2b)."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def q4_k(block):
    """Eight groups of 32, each with a 6-bit scale and a 6-bit minimum, packed in 12 bytes."""
    packed = block[:, 4:16].astype(int)
    scales = [packed[:, i] & 63 if i < 4 else (packed[:, i + 4] & 15) | (packed[:, i - 4] >> 6 << 4) for i in range(8)]
    mins = [packed[:, i + 4] & 63 if i < 4 else (packed[:, i + 4] >> 4) | (packed[:, i] >> 6 << 4) for i in range(8)]
    groups = []
    for group in range(8):
        quants = block[:, 16 + 32 * (group // 2) : 48 + 32 * (group // 2)]
        quants = quants >> 4 if group % 2 else quants & 15
        groups.append(half(block, 0) * scales[group][:, None] * quants - half(block, 2) * mins[group][:, None])
    return np.concatenate(groups, axis=1)


def q6_k(block):
    """Two halves of 128; four low bits of each value in `low`, two high in `high`, a signed scale for 16 values."""
    parts = []
    for side in range(2):
        low, high = block[:, 64 * side : 64 * side + 64], block[:, 128 + 32 * side : 160 + 32 * side]
        for quarter in range(4):
            bits = low[:, 32 * (quarter % 2) : 32 * (quarter % 2) + 32]
            bits = bits >> 4 if quarter > 1 else bits & 15
            parts.append((bits | (high >> 2 * quarter & 3) << 4).astype(np.float32) - 32)
    scales = block[:, 192:208].copy().view(np.int8).astype(np.float32)
    return half(block, 208) * np.repeat(scales, 16, axis=1) * np.concatenate(parts, axis=1)


FORMULAS = {
    "F16": lambda block: block.copy().view(np.float16).astype(np.float32),
    "BF16": lambda block: (block.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32),
    "Q8_0": lambda block: half(block, 0) * block[:, 2:].view(np.int8),
    "Q4_0": lambda block: half(block, 0) * (nibbles(block[:, 2:]) - 8),
    "Q4_1": lambda block: half(block, 0) * nibbles(block[:, 4:]) + half(block, 2),
    "Q4_K": q4_k,
    "Q6_K": q6_k,
}


def make_blocks(name):
    """The bytes of a matrix (ROWS, COLS) in a type, every value finite."""
    kind = GGMLQuantizationType[name]
    rng = np.random.default_rng(7)
    values = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    try:
        return quantize(values, kind)
    except NotImplementedError:
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLS // block_len, block_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # in the library, while a scale's bits are no number
        while not (fine := np.isfinite(dequantize(blocks, kind)).all(axis=1)).all():
            blocks[~fine] = rng.integers(0, 256, (int((~fine).sum()), block_bytes), dtype=np.uint8)
    return blocks.reshape(ROWS, -1)


def write_file(path, name, raw):
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("matrix", raw, raw_dtype=GGMLQuantizationType[name])
    writer.add_tensor("after", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_no_type_is_left_out():
    from gguf import quants

    assert set(TYPES) == {kind.name for kind in quants._type_traits} | {"F32", "F16"}
    # A newer library may know more types; each is then one more test here.
    assert {kind.name for kind in GGMLQuantizationType} - set(TYPES) >= set(OTHERS)


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_read_as_the_library_and_its_formula_say(name, tmp_path):
    raw = make_blocks(name)
    file = GgufFile(write_file(tmp_path / "m.gguf", name, raw))
    found = file.read("matrix")
    expected = dequantize(raw.view(np.uint8) if name not in ("F32", "F16") else raw, GGMLQuantizationType[name])
    assert found.dtype == np.float32
    assert found.shape == (ROWS, COLS)
    assert np.isfinite(found).all()
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 2
    if name in FORMULAS:
        block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
        typed = FORMULAS[name](raw.view(np.uint8).reshape(-1, block_bytes)).reshape(ROWS, COLS)
        # a sum of two products may round in another order
        assert np.allclose(found, typed, rtol=1e-6, atol=1e-6 * float(np.abs(typed).max()))
    assert file.read("after").tolist() == list(range(8))


@pytest.mark.parametrize("name", OTHERS)
def test_a_type_that_cannot_be_dequantized_is_named(name, tmp_path):
    block_len, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    raw = np.ones((ROWS, COLS // block_len * block_bytes), np.uint8)
    file = GgufFile(write_file(tmp_path / "m.gguf", name, raw))
    with pytest.raises(
        EnginewrightError, match=f"tensor matrix has type {name}, which cannot be dequantized; give the"
    ):
        file.read("matrix")
