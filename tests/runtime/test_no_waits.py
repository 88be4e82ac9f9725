"""A step of captured passes waits for nothing and copies no keys or values to the host.

On a GPU by the profiler's trace; everywhere by asking which values the runtime's own code reads while it launches.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from runtime.engine import Engine
from runtime.formats.engine_plan import EnginePlan
from runtime.sampling import SamplingParams
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.policy import FixedPolicy
from runtime.speculation.tree import TreeShape
from tests.runtime.test_captured import captured
from tests.runtime.tiny import SPEC, make_checkpoint

RUNTIME = str(Path(__file__).parents[2] / "runtime")
READS = {"item", "tolist", "cpu", "numpy", "nonzero", "is_nonzero", "__bool__", "__int__", "__float__", "__index__",
         "__contains__"}  # fmt: skip
TREE = TreeShape(6, 2, 3)
NUM_STEPS = 6
WAITS = {"cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaMemcpy", "cuStreamSynchronize", "cuCtxSynchronize",
         "cuEventSynchronize", "cuMemcpyDtoH"}  # fmt: skip


class HostReads(TorchFunctionMode):
    """Notes every value that code of runtime/ asks a tensor for; what an op does on the CPU is its own business."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        caller = sys._getframe(1)
        if getattr(func, "__name__", "") in READS and caller.f_code.co_filename.startswith(RUNTIME):
            self.found.append(f"{func.__name__} in {Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
        return func(*args, **(kwargs or {}))


def decoding(engine: Engine) -> Engine:
    """The engine with requests that have their first tokens and many to come, all passes of which it has run before."""
    for prompt in range(3):
        engine.add([3 + prompt, 1, 4, 1], SamplingParams(max_tokens=None, ignore_eos=True))
    for _ in range(4):
        engine.step()
    return engine


@pytest.mark.parametrize("drafts", [False, True])
def test_nothing_that_launches_a_step_asks_for_a_value(tmp_path, drafts):
    policy = FixedPolicy(TREE) if drafts else None
    engine = decoding(captured(make_checkpoint(tmp_path), NgramDrafter() if drafts else None, policy))
    launch, reads, plans = engine.backend.step, HostReads(), []

    def watched(plan, state):
        plans.append(plan)
        with reads:
            return launch(plan, state)

    engine.backend.step = watched
    for _ in range(NUM_STEPS):
        engine.step()
    assert [plan.shape for plan in plans[:2]] == [TREE if drafts else None] * 2
    assert reads.found == []


def test_a_value_that_the_runtime_reads_is_noted(tmp_path):
    engine = decoding(captured(make_checkpoint(tmp_path)))
    with HostReads() as reads:
        for _ in range(2):
            engine.step()
    assert {found.split(":")[0] for found in reads.found} == {"numpy in transfers.py"}, "the late read, and no other"


def on_gpu(folder: Path, whole_step: bool, drafts: bool) -> Engine:
    from runtime.cuda_engine import load_on_gpu

    spec = replace(SPEC, hidden_size=128, num_heads=2, num_kv_heads=1, head_dim=64, intermediate_size=256)
    plan = EnginePlan("bfloat16", "torch", 4, 1024, 64, 32, 128, target="cuda", kv_cache_fraction=0.5)
    engine = Engine(load_on_gpu(make_checkpoint(folder, spec), plan, use_whole_step=whole_step))
    if drafts:
        engine.draft_with(NgramDrafter(), FixedPolicy(TREE))
    return decoding(engine)


def traced(engine: Engine, path: Path) -> list[dict]:
    """Events between the first and the last of a few steps."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds) as profile:
        with torch.profiler.record_function("steps"):
            for _ in range(NUM_STEPS):
                engine.step()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    events = [each for each in json.loads(path.read_text())["traceEvents"] if "dur" in each]
    (whole,) = (each for each in events if each["name"] == "steps" and each.get("cat") == "user_annotation")
    return [each for each in events if whole["ts"] <= each["ts"] <= whole["ts"] + whole["dur"]
            or each.get("cat") == "gpu_memcpy"]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("whole_step", [False, True])
def test_a_trace_of_decode_steps_shows_no_wait_but_the_late_read_and_no_copy_of_keys_or_values(
    tmp_path, whole_step, drafts
):
    engine = on_gpu(tmp_path, whole_step, drafts)
    handles = len(engine._in_flight)
    events = traced(engine, tmp_path / "trace.json")
    calls = [each["name"] for each in events if each.get("cat") in ("cuda_runtime", "cuda_driver")]
    assert not WAITS & set(calls)
    assert handles <= 1, "the host is at most one step behind"
    assert calls.count("cudaEventSynchronize") <= NUM_STEPS
    assert calls.count("cudaGraphLaunch") >= NUM_STEPS
    graphs = engine.backend._graphs.values()
    copies = [each for each in events if each.get("cat") == "gpu_memcpy"]
    to_host = {each["args"]["bytes"] for each in copies if "DtoH" in each["name"]}
    to_device = {each["args"]["bytes"] for each in copies if "HtoD" in each["name"]}
    assert to_host <= {graph.results.nbytes for graph in graphs}
    assert to_device <= {graph.words.nbytes for graph in graphs}
    assert to_host
    assert to_device
