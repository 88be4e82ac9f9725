"""Real failures of a GPU: memory that ends at load and in a captured step, missing kernels, a lost context."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from plugins.cuda.library import forget_folders
from runtime.backends.gpu_errors import gpu_errors
from runtime.cuda_engine import load_on_gpu, make_cuda_backend
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.sampling import SamplingParams
from tests.runtime.test_gpu_readiness import KERNELS
from tests.runtime.tiny import SPEC, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch with CUDA"),
]
WIDE = replace(
    SPEC, vocab_size=32000, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, intermediate_size=512,
    max_position_embeddings=4096,
)  # fmt: skip
PLAN = EnginePlan(
    target="cuda", dtype="bfloat16", linear="torch", max_batch_size=8, max_seq_len=4096, max_num_tokens=2048,
    block_size=32, num_blocks=1024,
)  # fmt: skip


@pytest.fixture
def memory():
    """Gives the process a share of the GPU's memory; all of it again at the end."""
    torch.cuda.empty_cache()
    yield lambda bytes_: torch.cuda.set_per_process_memory_fraction(
        min(bytes_ / torch.cuda.get_device_properties(0).total_memory, 1.0)
    )
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "model", WIDE, dtype="bfloat16")


def generate(engine, prompt_len):
    request = engine.add([3 + i % 50 for i in range(prompt_len)], SamplingParams(max_tokens=4, ignore_eos=True))
    while engine.has_work:
        engine.step()
    return request.output_ids


def fill():
    """Tensors that leave next to nothing of what the process may take."""
    filler = []
    for size in (2**24, 2**22, 2**20, 2**18, 2**16):
        with suppress(torch.OutOfMemoryError):
            while True:
                filler.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    return filler


def test_weights_and_cache_that_do_not_fit_are_errors_at_load(checkpoint, memory):
    memory(torch.cuda.memory_reserved() + 8 * 2**20)
    with pytest.raises(EnginewrightError, match=r"ran out of memory loading the weights: .* more were asked for"):
        load_on_gpu(checkpoint, PLAN)
    memory(torch.cuda.memory_reserved() + 200 * 2**20)
    huge = replace(PLAN, num_blocks=400_000)
    with pytest.raises(EnginewrightError, match=r"ran out of memory taking 12\.2 GiB for the KV cache"):
        load_on_gpu(checkpoint, huge)


def test_a_step_that_does_not_fit_is_an_error_and_the_engine_goes_on(checkpoint, memory):
    engine = Engine(load_on_gpu(checkpoint, PLAN))
    expected = generate(engine, 40)
    torch.cuda.empty_cache()
    memory(torch.cuda.memory_reserved() + 2**20)
    engine.forget_prefixes()
    filler = fill()
    with pytest.raises(EnginewrightError, match=r"ran out of memory in a step: .*GiB are free; stop what else runs"):
        generate(engine, 700)
    filler.clear()
    memory(torch.cuda.get_device_properties(0).total_memory)
    for request in (*engine.scheduler.running, *engine.scheduler.waiting):
        engine.finish(request, "error")
    assert generate(engine, 40) == expected


def test_an_engine_without_its_kernels_is_refused(checkpoint, tmp_path):
    (tmp_path / "kernels.json").write_text(json.dumps({**KERNELS, "archs": ["sm_90a", "compute_80"]}))
    try:
        with pytest.raises(EnginewrightError, match=r"the engine has no kernel .* nor \d+ others; another version"):
            make_cuda_backend(checkpoint, PLAN, tmp_path)
    finally:
        forget_folders()


def test_a_context_that_is_lost_says_to_start_again():
    program = """
import torch
from runtime.backends.gpu_errors import gpu_errors
with gpu_errors("in a step"):
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
    torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "EnginewrightError: the GPU failed in a step: CUDA error: device-side assert triggered; start again"
        in done.stderr
    )


def test_gpu_errors_leave_what_works_alone():
    with gpu_errors("in a step"):
        assert float(torch.ones(3, device="cuda").sum()) == 3.0
