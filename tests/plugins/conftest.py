"""Kernels in the tests: the same cases in the host emulator, in both orders of its threads, and on a GPU."""

import pytest

from tests.plugins.cuda.emulator.run import emulate, emulated_tensor, needs_emulator

_PLACES = [
    pytest.param("first thread first", marks=needs_emulator),
    pytest.param("last thread first", marks=needs_emulator),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=_PLACES)
def kernel_device(request, monkeypatch) -> str:
    """The device of a kernel's tensors: "cuda", or "cpu" where its launches go to the emulator."""
    if request.param == "cuda":
        return "cuda"

    def launch(kernel, grid, block, shared_bytes, params, stream, cooperative, dependent, cluster):
        source, entry = kernel
        reverse = request.param == "last thread first"
        places = {"cooperative": cooperative, "cluster": cluster, "reverse": reverse}
        emulate(source, grid, block, shared_bytes, params, entry=entry, **places)

    monkeypatch.setattr("plugins.cuda.run.get_kernel", lambda source, entry, params_type: (source, entry))
    monkeypatch.setattr("plugins.cuda.run.current_stream", lambda: 0)
    monkeypatch.setattr("plugins.cuda.run.launch", launch)
    monkeypatch.setattr("plugins.layer_step.wide.encode_tensor", emulated_tensor)
    monkeypatch.setattr("plugins.layer_step.cuda.takes_wide", lambda device, dtype: True)
    return "cpu"
