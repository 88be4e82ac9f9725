"""The emulator against what PTX says: collectives, fragments, copies, barriers; what is undefined is an error."""

import ctypes
from pathlib import Path

import pytest
import torch

from plugins.cuda.source import KernelSource
from plugins.sample.philox import philox4x32
from tests.plugins.cuda.emulator.run import EmulationError, emulate, guarded, needs_emulator
from tests.plugins.cuda.launching import LAUNCHING, LaunchingParams

pytestmark = needs_emulator
EMULATED = KernelSource("emulated", str(Path(__file__).with_name("emulated.cu")))


class EmulatedParams(ctypes.Structure):
    """Mirror of the struct in emulated.cu."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("counter", ctypes.c_void_p),
        ("size", ctypes.c_longlong),
    )


def _run(entry: str, grid: int, block: int, shared_bytes: int = 0, size: int = 0, **tensors_and_options) -> None:
    tensors = {name: value for name, value in tensors_and_options.items() if isinstance(value, torch.Tensor)}
    options = {name: value for name, value in tensors_and_options.items() if name not in tensors}
    params = EmulatedParams(size=size, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
    emulate(EMULATED, grid, block, shared_bytes, params, entry=entry, **options)


@pytest.mark.parametrize("reverse", [False, True])
def test_shuffles_and_ballots_are_of_the_own_warp(reverse):
    values, output = torch.arange(64.0), torch.full((4, 64), torch.nan)
    _run("shuffle_kernel", 1, 64, input=values, output=output, reverse=reverse)
    warps = values.view(2, 32)
    assert torch.equal(output[0], values.view(32, 2).flip(1).flatten())
    assert torch.equal(output[1], warps[:, 3:4].expand(2, 32).flatten())
    assert torch.equal(output[2], warps.sum(1, keepdim=True).expand(2, 32).flatten())
    assert torch.equal(output[3], torch.ones(64))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_barrier_orders_shared_memory(reverse):
    values, output = torch.randn(3, 96), torch.full((3, 96), torch.nan)
    _run("reverse_kernel", 3, 96, 96 * 4, input=values, output=output, reverse=reverse)
    assert torch.equal(output, values.flip(1))


def test_a_missing_barrier_reads_poison():
    values, output = torch.randn(1, 96), torch.zeros(1, 96)
    _run("reverse_kernel", 1, 96, 96 * 4, size=1, input=values, output=output)
    assert output.isnan().any()


def test_a_named_barrier_waits_for_the_threads_it_is_given():
    values, output = torch.randn(32), torch.full((64,), torch.nan)
    _run("named_kernel", 1, 96, 128, size=96, input=values, output=output)
    assert torch.equal(output, values.repeat(2))
    with pytest.raises(EmulationError, match=r"deadlock at named_sync\(5\): 64 of 64 live threads"):
        _run("named_kernel", 1, 96, 128, size=128, input=values, output=output)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_mma_give_the_matrix_product(transposed):
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    output = torch.full((16, 8), torch.nan)
    second = b.T.contiguous() if transposed else b
    _run("product_kernel", 1, 32, 768, size=int(transposed), input=a, second=second, output=output)
    # 16 products summed in double, rounded to float32 once.
    torch.testing.assert_close(output.double(), a.double() @ b.double(), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("tiles", [1, 2, 7])
@pytest.mark.parametrize("entry", ["ring_kernel", "bulk_kernel"])
@pytest.mark.parametrize("reverse", [False, True])
def test_pipelines_of_async_copies_deliver_every_tile(tiles, entry, reverse):
    values, output = torch.randn(tiles, 128), torch.full((tiles,), torch.nan)
    block = 32 if entry == "ring_kernel" else 64
    _run(entry, 1, block, 2048, size=tiles, input=guarded(values), output=output, reverse=reverse)
    torch.testing.assert_close(output, values.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_grid_barrier_lets_each_block_see_the_others(reverse):
    values, output = torch.arange(5.0), torch.full((10,), torch.nan)
    counter = torch.zeros(1, dtype=torch.int32)
    options = {"input": values, "output": output, "counter": counter, "reverse": reverse}
    _run("neighbour_kernel", 5, 64, cooperative=True, **options)
    _run("neighbour_kernel", 5, 64, cooperative=True, **options)
    assert torch.equal(output[:5], 2 * values.roll(-1))
    with pytest.raises(EmulationError, match=r"deadlock at .*grid_barrier|deadlock at block_sync"):
        _run("neighbour_kernel", 5, 64, **options)


def test_conversions_round_to_nearest_even_as_torch_does():
    values = torch.cat([torch.randn(1000) * 10.0**e for e in (-8, -6, -3, 0, 3, 5, 38)])
    values = torch.cat(
        [values, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65504.0, 65520.0, 1.00390625, 1.01171875])]
    )
    output = torch.zeros(2, len(values), dtype=torch.int16)
    _run("round_kernel", 1, 32, size=len(values), input=values, output=output)
    assert torch.equal(output[0], values.bfloat16().view(torch.int16))
    assert torch.equal(output[1], values.half().view(torch.int16))


def test_philox_gives_the_words_of_the_python_one():
    output = torch.zeros(32, 4, dtype=torch.int32)
    _run("random_kernel", 1, 32, output=output)
    counter = torch.stack([torch.arange(32), *(torch.full((32,), i) for i in (1, 2, 3))], dim=-1)
    assert torch.equal(output.long() & 0xFFFFFFFF, philox4x32(counter, (4, 5)))


@pytest.mark.parametrize(
    ("offence", "message"),
    [
        (0, r"deadlock at warp_sync: 16 of 16 live threads \(of 96\) wait there, the first is thread \(0, 0, 0\)"),
        (1, r"deadlock at named_sync\(1\): 64 of 64"),
        (2, r"block \(0, 0, 0\) wrote byte 25\d of 256 bytes of shared memory"),
        (3, r"stray access of address 0x\w+ by thread \(0, 0, 0\) of block \(0, 0, 0\)"),
        (4, r"lanes of one warp are in shfl_xor and in warp_sync at once"),
        (5, r"mbarrier_arrive: the mbarrier was not initialised"),
        (6, r"copy_async16: address 0x\w+ is no multiple of 16"),
        (8, r"deadlock at load_acquire: 96 of 96"),
    ],
)
def test_what_a_gpu_leaves_undefined_is_an_error(offence, message):
    tensors = {
        "input": guarded(torch.zeros(1024)),
        "output": torch.zeros(32),
        "counter": torch.zeros(1, dtype=torch.int32),
    }
    with pytest.raises(EmulationError, match=message):
        _run("offence_kernel", 1, 96, 256, size=offence, **tensors)


def test_an_async_copy_is_poison_until_it_is_waited_for():
    output = torch.zeros(32)
    _run("offence_kernel", 1, 32, 512, size=7, input=torch.ones(128), output=output)
    assert output.isnan().all()


def test_bulk_copies_are_refused_below_sm_90():
    values, output = torch.randn(1, 128), torch.zeros(1)
    with pytest.raises(EmulationError, match="mbarrier_arrive_expect needs sm_90"):
        _run("bulk_kernel", 1, 64, 2048, size=1, input=values, output=output, arch=800)


def test_the_kernels_that_are_launched_on_a_gpu_run_here_too():
    output, counter = torch.full((6, 4), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    params = LaunchingParams(output=output.data_ptr(), counter=counter.data_ptr())
    emulate(LAUNCHING, 6, 64, 1024, params, entry="cooperative_kernel", cooperative=True)
    assert output[:, 1].tolist() == [0] * 6
    assert output[:, 0].tolist() == [block * 10 + 9 for block in range(6)]


def test_parameters_of_another_size_are_refused():
    class Shorter(ctypes.Structure):
        _fields_ = (("seed", ctypes.c_longlong),)

    with pytest.raises(EmulationError, match=r"emulated.cu has parameters of 40 bytes, Python of 8"):
        emulate(EMULATED, 1, 32, 0, Shorter(), entry="random_kernel")
