"""Our ops as TensorRT plugins: what their launches are, and that launching them so computes what the ONNX nodes say.

TensorRT itself is not needed: a description is numbers, and a GPU or the emulator launches it as TensorRT would.
"""

import math

import pytest
import torch

from plugins.attention.tensorrt import HEAD_DIMS, attention_launch
from plugins.rms_norm.reference import rms_norm_reference
from plugins.rope_kv_write.tensorrt import rope_kv_write_launch
from plugins.tensorrt_plugins import MAX_SHARED_BYTES, PTX_ARCH, float_bits, launch_ptx
from tests.plugins.cuda.emulator.run import needs_emulator
from tests.plugins.plugin_launching import run_plugin

DEVICES = [
    pytest.param("forwards", marks=needs_emulator),
    pytest.param("reverse", marks=needs_emulator),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
# u, half the spacing of numbers just above 1; see test_attention_cuda.py for where it enters.
ROUNDOFF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
ELEMENT = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
NAN = float("nan")


def place(device):
    return "cuda" if device == "cuda" else "cpu"


def numbers(*shape, dtype, device, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(place(device), dtype)


def test_an_attention_launch_is_these_numbers():
    launch = attention_launch((4, 9, 5, 64), (4, 3, 2048, 64), 9, 3, 64, 0.125, "bfloat16")
    assert (launch.entry, launch.source.id) == ("attention_tensorrt_kernel", "attention_tensorrt-bfloat16-64")
    # 5 rows of 3 heads in tiles of 32; 4 key warps by 2 row warps; 32 rows of 144 bytes, 4 x 2 x 2 chunks of 16 keys
    assert (launch.grid, launch.block) == ((1, 3, 4), 256)
    assert launch.shared_bytes == 32 * 144 + 4 * 2 * 2 * 16 * 144 + 16
    assert launch.scalars == (5, 9, 3, 2048, 0x3E000000)


def test_a_rope_launch_is_these_numbers():
    launch = rope_kv_write_launch((2, 7, 15 * 64), (2, 3, 512, 64), 9, 3, 64, 1e-5, "float16", False)
    assert (launch.entry, launch.source.id) == ("rope_kv_write_tensorrt_kernel", "rope_kv_write_tensorrt-float16-64")
    assert (launch.grid, launch.block, launch.shared_bytes) == ((-(-2 * 7 * 15 // 32), 1, 1), 128, 0)
    assert launch.scalars == (2, 7, 9, 3, 512, float_bits(1e-5))


class Symbol:
    """A size that is known later, as TensorRT's: it takes + * // and gives their text."""

    def __init__(self, text):
        self.text = text

    def __add__(self, other):
        return Symbol(f"({self.text}+{getattr(other, 'text', other)})")

    def __mul__(self, other):
        return Symbol(f"{self.text}*{getattr(other, 'text', other)}")

    def __floordiv__(self, other):
        return Symbol(f"{self.text}//{other}")


def test_sizes_may_be_symbols():
    batch, rows = Symbol("B"), Symbol("S")
    launch = attention_launch((batch, 9, rows, 64), (batch, 3, 512, 64), 9, 3, 64, 0.125, "bfloat16")
    assert [getattr(size, "text", size) for size in launch.grid] == ["(S*3+31)//32", 3, "B"]
    assert launch.scalars[0] is rows
    rope = rope_kv_write_launch((batch, rows, 960), (batch, 3, 512, 64), 9, 3, 64, 1e-5, "float16", True)
    assert rope.grid[0].text == "(B*S*15+31)//32"
    assert rope.scalars[:2] == (batch, rows)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_block_needs_no_leave_for_its_shared_memory_and_its_ptx_names_the_entry(head_dim):
    launch = attention_launch((1, 2, 1, head_dim), (1, 2, 64, head_dim), 2, 2, head_dim, 1.0, "float16")
    assert launch.shared_bytes <= MAX_SHARED_BYTES
    ptx = launch_ptx(launch).decode()
    assert f".target sm_{PTX_ARCH.removeprefix('compute_')}" in ptx
    assert f".entry {launch.entry}(" in ptx


def test_other_head_dims_are_refused():
    with pytest.raises(ValueError, match=r"head_dim \(64, 96, 128, 256\), not 80"):
        attention_launch((1, 2, 1, 80), (1, 2, 64, 80), 2, 2, 80, 1.0, "float16")
    with pytest.raises(ValueError, match="not 80"):
        rope_kv_write_launch((1, 1, 480), (1, 2, 64, 80), 2, 2, 80, 1e-5, "float16", False)


def masks(kind, batch, rows, cache_len, contexts):
    """(B, S, cache_len) bool: rows of request b are the last of its contexts[b] keys."""
    mask = torch.zeros(batch, rows, cache_len, dtype=torch.bool)
    for request, context in enumerate(contexts):
        root = context - rows
        for row in range(rows):
            mask[request, row, : root + row + 1] = True
            if kind == "window":
                mask[request, row, : max(0, root + row - 6)] = False
            if kind == "tree":  # each node sees the root and itself, and every second its predecessor
                mask[request, row, root + 1 : root + row] = False
                mask[request, row, root + row - row % 2] = True
    return mask


def attention_expected(q, k, v, mask, scale):
    """Float64, one head at a time."""
    group = q.shape[1] // k.shape[1]
    heads = []
    for head in range(q.shape[1]):
        scores = scale * q[:, head].double() @ k[:, head // group].double().transpose(1, 2)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        heads.append(weights @ v[:, head // group].double().nan_to_num())
    return torch.stack(heads, dim=2).flatten(2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "rows", "num_heads", "num_kv_heads", "head_dim", "dtype"),
    [
        ("causal", 1, 9, 3, 64, torch.bfloat16),
        ("causal", 13, 4, 2, 64, torch.float16),
        ("tree", 7, 6, 2, 64, torch.bfloat16),
        ("window", 5, 2, 2, 96, torch.bfloat16),
        ("causal", 3, 4, 1, 128, torch.bfloat16),
        ("causal", 20, 2, 1, 256, torch.float16),
    ],
)
def test_attention_of_dense_requests_is_float64_s(device, kind, rows, num_heads, num_kv_heads, head_dim, dtype):
    if device == "reverse" and head_dim > 64:
        pytest.skip("the order of the threads is tried with the small heads")
    contexts, cache_len = [rows + 30, rows, rows + 77], 112
    batch = len(contexts)
    q = numbers(batch, num_heads, rows, head_dim, dtype=dtype, device=device)
    caches = [numbers(batch, num_kv_heads, cache_len, head_dim, dtype=dtype, device=device, seed=s) for s in (1, 2)]
    for request, context in enumerate(contexts):  # what no row sees is never read, not even times zero
        for cache in caches:
            cache[request, :, context:] = NAN
    mask = masks(kind, batch, rows, cache_len, contexts).to(place(device))
    out = torch.full((batch, rows, num_heads * head_dim), NAN, dtype=dtype, device=place(device))
    launch = attention_launch(
        q.shape, caches[0].shape, num_heads, num_kv_heads, head_dim, head_dim**-0.5, ELEMENT[dtype]
    )
    run_plugin(launch, [q, *caches, mask], [out], device)
    expected = attention_expected(q.cpu(), *(cache.cpu() for cache in caches), mask.cpu(), head_dim**-0.5)
    unit, largest = ROUNDOFF[dtype], float(caches[1].nan_to_num().abs().max())
    error = (out.cpu().double() - expected).abs()
    assert bool((error <= 1.1 * unit * (largest + expected.abs())).all()), float(error.max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.bfloat16), (96, torch.float16)])
def test_rope_and_the_cache_write_of_dense_requests_are_float64_s(device, has_norms, head_dim, dtype):
    batch, rows, num_heads, num_kv_heads, cache_len, eps = 2, 5, 3, 2, 48, 1e-5
    qkv = numbers(batch, rows, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype, device=device)
    angles = torch.rand(32, head_dim // 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 6
    cos, sin = (table.to(place(device), dtype) for table in (angles.cos(), angles.sin()))
    position_ids = torch.tensor([[3, 4, 4, 5, 6], [20, 21, 22, 23, 31]], device=place(device))
    write_starts = torch.tensor([7, 43], device=place(device))
    norms = [numbers(head_dim, dtype=dtype, device=device, seed=s) for s in (8, 9)] if has_norms else []
    shape = (batch, num_kv_heads, cache_len, head_dim)
    k_cache, v_cache = (torch.full(shape, NAN, dtype=dtype, device=place(device)) for _ in range(2))
    q = torch.full((batch, num_heads, rows, head_dim), NAN, dtype=dtype, device=place(device))
    launch = rope_kv_write_launch(qkv.shape, shape, num_heads, num_kv_heads, head_dim, eps, ELEMENT[dtype], has_norms)
    inputs = [qkv, cos, sin, position_ids, write_starts, k_cache, v_cache, *norms]
    run_plugin(launch, inputs, [q, k_cache, v_cache], device)

    heads = qkv.cpu().double().view(batch, rows, -1, head_dim).transpose(1, 2)
    turned = {}
    for name, first, count, norm in (("q", 0, num_heads, 0), ("k", num_heads, num_kv_heads, 1)):
        part = heads[:, first : first + count]
        if has_norms:
            part = rms_norm_reference(part, norms[norm].cpu(), eps)
        c, s = (table.cpu().double()[position_ids.cpu()].unsqueeze(1) for table in (cos, sin))
        low, high = part.chunk(2, dim=-1)
        turned[name] = torch.cat([low * c - high * s, high * c + low * s], dim=-1)
    # One rounding of a sum of two products of rounded factors; norms add the float32 sum's.
    unit = 2.5 * ROUNDOFF[dtype]
    assert bool(((q.cpu().double() - turned["q"]).abs() <= unit * (turned["q"].abs() + 1)).all())
    for cache, new in ((k_cache, turned["k"]), (v_cache, heads[:, num_heads + num_kv_heads :])):
        for request, start in enumerate(write_starts.tolist()):
            written = cache.cpu()[request, :, start : start + rows].double()
            assert bool(((written - new[request]).abs() <= unit * (new[request].abs() + 1)).all())
        assert int((~cache.isnan()).any(-1).sum()) == batch * num_kv_heads * rows, "another row was written"
