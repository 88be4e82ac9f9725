"""Loading and launching on a GPU: graphs, dependent and cooperative launches, large shared memory, clear errors."""

import ctypes

import pytest
import torch

from plugins.cuda.archs import device_archs
from plugins.cuda.errors import KernelError
from plugins.cuda.launch import launch, max_cooperative_blocks, max_shared_bytes
from plugins.cuda.library import add_folder, forget_folders, get_kernel
from plugins.cuda.nvrtc import compile_source
from tests.plugins.cuda.launching import LAUNCHING, LaunchingParams


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _copy_params(source: torch.Tensor, target: torch.Tensor, addend: int = 0) -> LaunchingParams:
    return LaunchingParams(source.data_ptr(), target.data_ptr(), 0, source.numel() // 4, addend, 0)


def _words(count: int) -> torch.Tensor:
    return torch.randint(0, 2**31 - 1, (count, 4), dtype=torch.int32, device="cuda")


@pytest.mark.gpu
def test_a_kernel_copies():
    source, target = _words(1000), _words(1000)
    launch(get_kernel(LAUNCHING, "copy_kernel"), 3, 128, 0, _copy_params(source, target), _stream())
    assert torch.equal(source, target)


@pytest.mark.gpu
def test_a_launch_is_captured_by_a_graph_and_replayed():
    source, target = _words(1000), _words(1000)
    kernel, params = get_kernel(LAUNCHING, "copy_kernel"), _copy_params(source, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(kernel, 3, 128, 0, params, _stream())
    source.copy_(_words(1000))
    graph.replay()
    assert torch.equal(source, target)


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_dependent_launches_keep_their_order(captured):
    buffers = [torch.zeros(100_000, 4, dtype=torch.int32, device="cuda") for _ in range(2)]
    kernel = get_kernel(LAUNCHING, "dependent_kernel")
    all_params = [_copy_params(buffers[i % 2], buffers[(i + 1) % 2], addend=1) for i in range(20)]

    def run() -> None:
        for params in all_params:
            launch(kernel, 782, 128, 0, params, _stream(), dependent=True)

    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
    else:
        run()
    assert torch.equal(buffers[0][:, 0], torch.full((100_000,), 20, dtype=torch.int32, device="cuda"))


@pytest.mark.gpu
def test_a_grid_barrier_shows_every_block_what_the_others_wrote():
    kernel = get_kernel(LAUNCHING, "cooperative_kernel")
    blocks = max_cooperative_blocks(kernel, 256, 100_000)
    output = torch.full((blocks, 4), -1, dtype=torch.int32, device="cuda")
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    params = LaunchingParams(0, output.data_ptr(), counter.data_ptr(), 0, 0, 0)
    for _ in range(2):  # the counter needs no reset
        launch(kernel, blocks, 256, 100_000, params, _stream(), cooperative=True)
    assert output[:, 1].tolist() == [0] * blocks
    assert output[:, 0].tolist() == [block * 10 + 9 for block in range(blocks)]


@pytest.mark.gpu
def test_a_cooperative_grid_that_does_not_fit_is_refused():
    kernel = get_kernel(LAUNCHING, "cooperative_kernel")
    blocks = max_cooperative_blocks(kernel, 256, 0) + 1
    with pytest.raises(KernelError, match=r"launching cooperative_kernel .*more blocks than the GPU runs at once"):
        launch(kernel, blocks, 256, 0, LaunchingParams(), _stream(), cooperative=True)


@pytest.mark.gpu
def test_more_shared_memory_than_a_block_has_is_refused():
    limit = max_shared_bytes(torch.cuda.current_device())
    with pytest.raises(KernelError, match=f"asks for {limit + 1} bytes of shared memory; a block here has {limit}"):
        launch(get_kernel(LAUNCHING, "copy_kernel"), 1, 32, limit + 1, LaunchingParams(), _stream())


@pytest.mark.gpu
def test_parameters_of_another_size_are_refused_at_load():
    class Shorter(ctypes.Structure):
        _fields_ = (("input", ctypes.c_void_p),)

    forget_folders()
    with pytest.raises(KernelError, match="takes 40 bytes of parameters, this Enginewright passes 8"):
        get_kernel(LAUNCHING, "copy_kernel", Shorter)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["own", "ptx"])
def test_images_come_from_a_folder_and_nothing_is_compiled_beside_it(tmp_path, kind):
    arch = device_archs(torch.cuda.get_device_capability())[0 if kind == "own" else -1]
    image = compile_source(LAUNCHING, arch).image
    (tmp_path / arch).mkdir()
    (tmp_path / arch / f"launching.{'ptx' if kind == 'ptx' else 'cubin'}").write_bytes(image)
    forget_folders()
    add_folder(tmp_path)
    try:
        source, target = _words(100), _words(100)
        launch(get_kernel(LAUNCHING, "copy_kernel"), 1, 128, 0, _copy_params(source, target), _stream())
        assert torch.equal(source, target)
        (tmp_path / arch / f"launching.{'ptx' if kind == 'ptx' else 'cubin'}").unlink()
        forget_folders()
        add_folder(tmp_path)
        with pytest.raises(KernelError, match="the engine has no kernel launching for this GPU"):
            get_kernel(LAUNCHING, "copy_kernel")
    finally:
        forget_folders()


def test_a_gpu_takes_its_own_images_first_then_older_ones_of_its_major_version_then_ptx():
    assert device_archs((9, 0)) == ["sm_90a", "sm_90", "compute_80"]
    assert device_archs((8, 9))[:2] == ["sm_89a", "sm_89"]
    assert device_archs((8, 6))[1:3] == ["sm_86", "sm_85"]
    assert "sm_80" in device_archs((8, 7))
    assert "sm_90a" not in device_archs((10, 0))
