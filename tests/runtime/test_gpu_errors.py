"""What fails on a GPU is one line with the value, the bound and a remedy: errors made up here, real ones on a GPU."""

import re
from dataclasses import replace

import pytest
import torch

from plugins.cuda.errors import KernelError
from runtime import cuda_engine
from runtime.backends.gpu_errors import GIB, gpu_errors
from runtime.batch import PlanRow, StepPlan
from runtime.errors import EnginewrightError
from tests.runtime.test_captured import captured
from tests.runtime.test_gpu_readiness import CUDA_PLAN
from tests.runtime.tiny import PLAN, SPEC, make_checkpoint

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.18 GiB of which"


ERRORS = {
    torch.OutOfMemoryError(OUT_OF_MEMORY): "ran out of memory in a step: 2.50 GiB more were asked for, and 1.0 of 79.0",
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"): "ran out of memory in a step: 1.0 of 79.0 GiB are free;",
    KernelError("x: out of memory (CUDA_ERROR_OUT_OF_MEMORY)"): "build with a lower target.cuda.kv_cache_fraction",
    torch.AcceleratorError("CUDA error: GPU is lost\nx"): "GPU failed in a step: CUDA error: GPU is lost; start again",
    KernelError("no kernel"): "the cuda engine failed in a step: no kernel",
}


@pytest.mark.parametrize(("error", "said"), ERRORS.items(), ids=["torch", "cublas", "driver", "lost", "kernel"])
def test_an_error_of_the_gpu_is_one_line_with_a_remedy(monkeypatch, error, said):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 79 * GIB))
    with pytest.raises(EnginewrightError, match=re.escape(said)) as caught, gpu_errors("in a step"):
        raise error
    assert "\n" not in str(caught.value)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), gpu_errors("in a step"):
        raise RuntimeError("shapes differ")


def test_weights_that_do_not_fit_are_named_before_any_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T1000")
    needed = SPEC.num_parameters * 2
    cuda_engine._require_memory(SPEC, torch.bfloat16, needed)
    with pytest.raises(
        EnginewrightError, match=r"the weights take .* GiB, and .* GiB of T1000 are free; stop what else"
    ):
        cuda_engine._require_memory(SPEC, torch.bfloat16, needed - 1)


def test_an_engine_without_one_of_the_kernels_is_refused_before_any_weight_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    spec = replace(SPEC, head_dim=64, num_heads=2, num_kv_heads=1)
    monkeypatch.setattr(cuda_engine, "has_image", lambda source: True)
    cuda_engine._require_kernels(spec, CUDA_PLAN)
    monkeypatch.setattr(cuda_engine, "has_image", lambda source: source.name != "accept")
    with pytest.raises(EnginewrightError, match=r"no kernel accept for H100; another version .*: build it again"):
        cuda_engine._require_kernels(spec, CUDA_PLAN)


def test_the_largest_steps_are_tried_and_serve_requests_later(tmp_path):
    backend = captured(make_checkpoint(tmp_path)).backend
    backend.try_largest_steps()
    with_prompts, decoding = backend._graphs
    assert (with_prompts[0].num_tokens, with_prompts[0].num_rows) == (PLAN.max_num_tokens, PLAN.max_batch_size + 1)
    assert (decoding[0].num_tokens, decoding[0].num_rows) == (PLAN.max_batch_size, PLAN.max_batch_size)
    full = [PlanRow(slot, None, 9, 1, [slot], True, None) for slot in range(PLAN.max_batch_size)]
    assert backend._buckets.layout(StepPlan(full)) == decoding[0]
    prompt = PlanRow(0, [7] * (PLAN.max_num_tokens - 3), 0, PLAN.max_num_tokens - 3, [9], True, None)
    assert backend._buckets.layout(StepPlan([prompt, *full[1:]])) == with_prompts[0]
