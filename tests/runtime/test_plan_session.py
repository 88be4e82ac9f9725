"""The session over a TensorRT plan, with a library that computes on the CPU; and every reason not to load a plan."""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from pipelines.onnx.graph import GraphOptions, write_step_model
from pipelines.tensorrt.profiles import step_profiles
from runtime import tensorrt_engine, tensorrt_library
from runtime.backends.base import EngineLimits
from runtime.backends.slots.backend import OnnxBackend
from runtime.backends.slots.plan_session import PlanSession
from runtime.backends.slots.session import StepInputs
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.tensorrt_plan import PLAN_FILE, TensorrtPlan, weights_digest
from runtime.loading import load_backend
from runtime.speculation.tree import TreeShape
from tests.pipelines.onnx_models import CACHE_LEN, Rows, batch_of, torch_backend
from tests.pipelines.test_onnx_graph import PARENTS, steps
from tests.pipelines.unified_models import tiny_model, write_checkpoint
from tests.runtime.drafting import Always, Oracle
from tests.runtime.fake_tensorrt import FakeTensorrt
from tests.runtime.test_engine import GREEDY, run

LIMITS = EngineLimits(max_batch_size=4, max_seq_len=128, max_num_tokens=64, num_blocks=8, block_size=CACHE_LEN)
PROFILES = step_profiles(LIMITS.max_batch_size, LIMITS.max_num_tokens)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_checkpoint(folder, tiny_model("qwen3"), "qwen3")


@pytest.fixture(scope="module")
def graph(checkpoint, tmp_path_factory):
    return write_step_model(checkpoint, GraphOptions("float32", CACHE_LEN), tmp_path_factory.mktemp("graph"))


@pytest.fixture
def described(checkpoint):
    return TensorrtPlan(
        library="tensorrt_rtx", version="1.7.1", archs=("sm_86", "sm_89"), weights="inside",
        weights_sha256=weights_digest(checkpoint.path), attention="native", cache_len=CACHE_LEN, profiles=PROFILES,
        minimum_driver="580",
    )  # fmt: skip


def make_session(checkpoint, graph, described, runtime_cache=None):
    library = FakeTensorrt(graph, checkpoint.path, PROFILES)
    engine = library.Runtime(None).deserialize_cuda_engine(b"plan")
    session = PlanSession(library, engine, described, checkpoint.spec, torch.float32, "cpu", runtime_cache)
    return session, engine, library


def test_every_kind_of_step_gives_the_decoder_s_logits_each_in_its_profile(checkpoint, graph, described):
    session, engine, _ = make_session(checkpoint, graph, described)
    ours, theirs = OnnxBackend(session, LIMITS), torch_backend(checkpoint, "float32", LIMITS)
    for kind, batch in steps(random.Random(3)):
        logits, _ = ours.forward(batch)
        torch.testing.assert_close(logits, theirs.forward(batch).logits, atol=1e-4, rtol=0, msg=lambda m, k=kind: k + m)
    long = batch_of([Rows(6, 0, [token % 90 for token in range(65)])])
    assert not session.takes(1, 65)
    with pytest.raises(EnginewrightError, match="1 requests with 65 tokens each are over the plan's profiles: decode "
                                                "up to 4 x 64"):  # fmt: skip
        ours.forward(long)
    assert [context.runs > 0 for context in engine.contexts] == [True]  # 64 tokens fit the profile of trees


def test_prompts_longer_than_a_tree_go_through_the_second_profile(checkpoint, graph, described):
    profiles = step_profiles(4, 100)
    library = FakeTensorrt(graph, checkpoint.path, profiles)
    engine = library.Runtime(None).deserialize_cuda_engine(b"plan")
    session = PlanSession(library, engine, replace(described, profiles=profiles), checkpoint.spec, torch.float32, "cpu")
    limits = EngineLimits(4, 128, 100, 8, CACHE_LEN)
    ours, theirs = OnnxBackend(session, limits), torch_backend(checkpoint, "float32", limits)
    batch = batch_of([Rows(0, 0, [token % 90 for token in range(99)])], logit_rows=[98])
    torch.testing.assert_close(ours.forward(batch).logits, theirs.forward(batch).logits, atol=1e-4, rtol=0)
    assert [context.runs for context in engine.contexts] == [0, 1]
    assert not session.takes(2, 65)


def test_drafting_over_a_plan_emits_what_plain_decoding_does(checkpoint, graph, described):
    session, _, _ = make_session(checkpoint, graph, described)
    wanted = [([3, 5, 7, 11], GREEDY), ([2, 4, 8], GREEDY)]
    plain = run(Engine(OnnxBackend(session, LIMITS)), wanted)
    texts = [prompt + request.output_ids for (prompt, _), request in zip(wanted, plain, strict=True)]
    policy = Always(TreeShape(4, 4, 1))
    drafted = run(Engine(OnnxBackend(session, LIMITS, Oracle(texts, vocab_size=96)), policy=policy), wanted)
    assert [request.output_ids for request in drafted] == [request.output_ids for request in plain]
    assert sum(policy.emitted) > len(policy.emitted)


def test_trees_in_a_batch_share_a_pass(checkpoint, graph, described):
    session, engine, _ = make_session(checkpoint, graph, described)
    backend = OnnxBackend(session, LIMITS)
    backend.forward(batch_of([Rows(0, 0, [1, 2]), Rows(1, 0, [3, 4])]))
    backend.forward(batch_of([Rows(0, 2, [5] * 7, PARENTS), Rows(1, 2, [6] * 7, PARENTS)]))
    assert [context.runs for context in engine.contexts] == [2]


def one_pass(session):
    inputs = StepInputs(
        torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([0]),
        (torch.arange(CACHE_LEN) == 0).view(1, 1, 1, -1), torch.tensor([0]),
    )  # fmt: skip
    shape = (1, session.spec.num_kv_heads, CACHE_LEN, session.spec.head_dim)
    return session.run(inputs, [torch.zeros(shape) for _ in range(2 * session.spec.num_layers)])


def test_what_was_compiled_is_kept_once_and_given_to_the_next_load(checkpoint, graph, described, tmp_path):
    path = tmp_path / "kept" / "bundle.runtime-cache"
    session, _, library = make_session(checkpoint, graph, described, path)
    assert library.cache_loads == []
    one_pass(session)
    assert path.read_bytes() == b"compiled kernels"
    path.write_bytes(b"from before")
    one_pass(session)  # not the first pass of its profile
    assert path.read_bytes() == b"from before"
    _, _, library = make_session(checkpoint, graph, described, path)
    assert library.cache_loads == [b"from before"]


def test_a_folder_that_takes_no_file_keeps_nothing_and_stops_nothing(checkpoint, graph, described, tmp_path):
    (tmp_path / "file").write_text("")
    session, _, _ = make_session(checkpoint, graph, described, tmp_path / "file" / "runtime-cache")
    assert one_pass(session).logits.isfinite().all()


@pytest.fixture
def engine_dir(checkpoint, graph, described, tmp_path, monkeypatch):
    """An engine's folder as the compile stage leaves it, and a library of the plan's version."""
    folder = tmp_path / "engine"
    folder.mkdir()
    shutil.copy(graph, folder)
    (folder / PLAN_FILE).write_bytes(b"plan")
    described.write(folder)
    EnginePlan("float32", "torch", 4, 128, 64, CACHE_LEN, 4, target="tensorrt_rtx").write(folder)
    monkeypatch.setattr(tensorrt_engine, "library_version", lambda library: "1.7.1")
    return folder


def test_a_plan_that_the_gpu_does_not_take_gives_the_library_s_reason_and_the_command(
    checkpoint, graph, engine_dir, monkeypatch
):
    library = FakeTensorrt(graph, checkpoint.path, PROFILES, reason="Target GPU SM 90 is not supported by this plan")
    monkeypatch.setattr(tensorrt_engine, "import_library", lambda name: library)
    message = (r"does not load the plan, which is for sm_86, sm_89: Target GPU SM 90 is not supported by this plan; "
               r"build it again with: make engine TARGET=tensorrt_rtx; or run it with another --target")  # fmt: skip
    with pytest.raises(EnginewrightError, match=message):
        load_backend(checkpoint, engine_dir)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ((9, 0), "TensorRT-RTX makes no plans for sm_90, which this GPU is: run it with --target cuda or cpu"),
        ((12, 1), r"make engine TARGET=tensorrt_rtx ARGS='target.tensorrt_rtx.archs=\[sm_86,sm_89,sm_121\]'"),
    ],
)
def test_the_advice_is_for_this_gpu(gpu, message, checkpoint, graph, engine_dir, monkeypatch):
    library = FakeTensorrt(graph, checkpoint.path, PROFILES, reason="no")
    monkeypatch.setattr(tensorrt_engine, "import_library", lambda name: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    with pytest.raises(EnginewrightError, match=message):
        load_backend(checkpoint, engine_dir)


def test_a_plan_of_another_version_or_other_weights_is_refused_before_it_is_read(
    checkpoint, engine_dir, described, monkeypatch
):
    replace(described, weights_sha256="0" * 64).write(engine_dir)
    with pytest.raises(EnginewrightError, match="built from weights 000000000000, the bundle's are "):
        load_backend(checkpoint, engine_dir)
    monkeypatch.setattr(tensorrt_engine, "library_version", lambda library: "1.8.0")
    with pytest.raises(EnginewrightError, match=r"rtx 1\.7\.1 .* 1\.8\.0 is installed: pip install tensorrt-rtx=="):
        load_backend(checkpoint, engine_dir)


def test_a_damaged_description_is_named(checkpoint, engine_dir):
    (engine_dir / "plan.json").write_text(json.dumps({"schema": 7}))
    with pytest.raises(EnginewrightError, match=r"plan\.json: unreadable \(schema 7, this version reads 1\)"):
        load_backend(checkpoint, engine_dir)


@pytest.mark.parametrize(("library", "extra"), [("tensorrt_rtx", "tensorrt-rtx"), ("tensorrt", "tensorrt")])
def test_a_missing_library_is_told_with_its_extra(library, extra, monkeypatch):
    def missing(name):
        raise tensorrt_library.PackageNotFoundError(name)

    monkeypatch.setattr(tensorrt_library, "version", missing)
    with pytest.raises(EnginewrightError, match=rf"pip install 'enginewright\[{extra}\]' \(its wheels "):
        tensorrt_library.library_version(library)
