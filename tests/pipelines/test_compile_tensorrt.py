"""Plans of TensorRT, without it: what its graph says of our plugins, how they are registered, how a build is set up.

`tensorrt` here is a stand-in that records. Builds by the library itself are skipped unless it is installed.
"""

import inspect
import sys
import typing
from dataclasses import replace
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
import torch

from pipelines.config import BuildConfig
from pipelines.onnx.graph import GraphOptions, step_model
from pipelines.stage import Artifact
from pipelines.stages import compile_tensorrt
from pipelines.target_config import TargetConfig, TensorrtTargetConfig
from pipelines.tensorrt.events import Events
from pipelines.tensorrt.job import PlanJob
from pipelines.tensorrt.plugin_nodes import with_plugins
from pipelines.tensorrt.profiles import step_profiles
from pipelines.tensorrt.worker import _Builder
from plugins.attention.tensorrt import attention_launch, register_attention
from plugins.rope_kv_write.tensorrt import register_rope_kv_write
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import stage_context
from tests.pipelines.unified_models import SIZES as MODEL_SIZES
from tests.pipelines.unified_models import tiny_model, write_checkpoint

SIZES = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64}


def is_installed() -> bool:
    try:
        return bool(version("tensorrt"))
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize(("family", "rope"), [("llama", "rope_kv_write"), ("qwen3", "rope_kv_write_norms")])
def test_a_graph_for_plugins_names_them_and_has_no_functions(family: str, rope: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family)
    model = step_model(checkpoint, GraphOptions("bfloat16", 192))
    made = with_plugins(model, 64)
    assert len(model.functions) == 2
    assert len(made.functions) == 0
    ours = [node for node in made.graph.node if node.domain == "enginewright"]
    assert [node.op_type for node in ours] == [rope, "attention"] * 2
    for node in ours:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        assert (attributes["plugin_namespace"], attributes["aot"]) == (b"enginewright", 1)
        assert attributes["num_kv_heads"] == 2
    with pytest.raises(EnginewrightError, match=r"takes head_dim 64, 96, 128, 256; this model's is 80; write target"):
        with_plugins(model, 80)


class TensorDesc:
    """Of the stand-in."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "BF16", alias_of: "TensorDesc | None" = None) -> None:
        self.shape_expr, self.dtype, self.alias_of = shape, SimpleNamespace(name=dtype), alias_of

    def like(self) -> "TensorDesc":
        return TensorDesc(self.shape_expr, self.dtype.name)

    def aliased(self) -> "TensorDesc":
        return TensorDesc(self.shape_expr, self.dtype.name, self)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[object, object]]:
    """What both ops register with a stand-in that checks signatures as TensorRT documents: plugin -> functions."""
    plugins: dict[str, list[object]] = {}

    def register(name: str) -> object:
        def keep(function: object) -> object:
            hints = typing.get_type_hints(function)
            returned = hints.pop("return")
            assert all(hint in (TensorDesc, int, float) for hint in hints.values())
            assert returned is TensorDesc or set(typing.get_args(returned)) == {TensorDesc}
            plugins[name] = [function]
            return function

        return keep

    def aot_impl(name: str) -> object:
        def keep(function: object) -> object:
            wanted = [*inspect.signature(plugins[name][0]).parameters, "outputs", "tactic"]
            assert list(inspect.signature(function).parameters) == wanted
            assert len(typing.get_args(typing.get_type_hints(function)["return"])) == 4
            plugins[name].append(function)
            return function

        return keep

    module = ModuleType("tensorrt.plugin")
    exprs = type("SymIntExprs", (list,), {"__init__": lambda self, count: list.__init__(self, [None] * count)})
    for name, value in {
        "TensorDesc": TensorDesc, "register": register, "aot_impl": aot_impl, "SymIntExprs": exprs, "SymExprs": list,
        "KernelLaunchParams": type("KernelLaunchParams", (), {}), "SymInt32": lambda value: ("int32", value),
        "ShapeExprs": SimpleNamespace(from_tuple=tuple),
    }.items():  # fmt: skip
        setattr(module, name, value)
    parent = ModuleType("tensorrt")
    parent.plugin = module
    monkeypatch.setitem(sys.modules, "tensorrt", parent)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
    register_attention()
    register_rope_kv_write()
    return {name: (describe, implement) for name, (describe, implement) in plugins.items()}


def test_attention_is_registered_with_its_shape_and_launch(registered: dict[str, tuple]) -> None:
    describe, implement = registered["enginewright::attention"]
    inputs = [TensorDesc(shape) for shape in ((2, 9, 5, 64), (2, 3, 192, 64), (2, 3, 192, 64), (2, 1, 5, 192))]
    assert describe(*inputs, **SIZES, scale=0.125).shape_expr == (2, 5, 9 * 64)
    name, ptx, params, scalars = implement(*inputs, *SIZES.values(), 0.125, outputs=(), tactic=0)
    launch = attention_launch((2, 9, 5, 64), (2, 3, 192, 64), *SIZES.values(), 0.125, "bfloat16")
    assert name == launch.entry.encode()
    assert (params.grid_x, params.grid_y, params.grid_z) == launch.grid
    assert (params.block_x, params.shared_mem) == (launch.block, launch.shared_bytes)
    assert list(scalars) == [("int32", value) for value in launch.scalars]
    assert b".entry attention_tensorrt_kernel(" in ptx


@pytest.mark.parametrize(("name", "num_norms"), [("rope_kv_write", 0), ("rope_kv_write_norms", 2)])
def test_rope_is_registered_with_its_caches_in_place(registered: dict[str, tuple], name: str, num_norms: int) -> None:
    describe, implement = registered[f"enginewright::{name}"]
    cache = (2, 3, 192, 64)
    shapes = [(2, 5, 15 * 64), (192, 32), (192, 32), (2, 5), (2,), cache, cache, *[(64,)] * num_norms]
    inputs = [TensorDesc(shape, "HALF") for shape in shapes]
    q, k, v = describe(*inputs, **SIZES, eps=1e-5)
    assert q.shape_expr == (2, 9, 5, 64)
    assert (k.alias_of, v.alias_of) == (inputs[5], inputs[6])
    entry, ptx, _, _ = implement(*inputs, *SIZES.values(), 1e-5, outputs=(), tactic=0)
    assert entry == f"{name}_tensorrt_kernel".encode()
    assert f".entry {entry.decode()}(".encode() in ptx
    with pytest.raises(ValueError, match="our plugins' kernels are of BF16 and HALF; this graph is of FLOAT"):
        implement(*(TensorDesc(shape, "FLOAT") for shape in shapes), *SIZES.values(), 1e-5, outputs=(), tactic=0)


class Names(Enum):
    """Members of the library's enumerations, whose values do not matter."""

    STRONGLY_TYPED = 1
    PREFER_AOT_PYTHON_PLUGINS = 3
    VERSION_COMPATIBLE = 10
    STRIP_PLAN = 11
    AMPERE_PLUS = 12
    WORKSPACE = 13
    ALIASED_PLUGIN_IO_10_03 = 14
    DETAILED = 15

    def __int__(self) -> int:
        return self.value


class RecordedConfig:
    """An IBuilderConfig that keeps what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: self.calls.append((name, *arguments))


def test_every_setting_reaches_the_library(tmp_path: Path) -> None:
    config, flags = RecordedConfig(), []
    builder = SimpleNamespace(create_network=flags.append, create_builder_config=lambda: config)
    enums = ("NetworkDefinitionCreationFlag", "BuilderFlag", "HardwareCompatibilityLevel", "MemoryPoolType",
             "PreviewFeature", "ProfilingVerbosity")  # fmt: skip
    library = SimpleNamespace(
        Builder=lambda logger: builder, ILogger=object, IProgressMonitor=object, **dict.fromkeys(enums, Names)
    )
    (tmp_path / "timing.cache").write_bytes(b"before")
    job = PlanJob(
        "tensorrt", step_profiles(2, 64), strip=True, plugins=True, workspace_bytes=1 << 30, version_compatible=True,
        hardware="ampere_plus", timing_cache=str(tmp_path / "timing.cache"),
    )  # fmt: skip
    library.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    library.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    made = _Builder(library, job, Events(sys.stderr))
    made._configure()
    assert flags == [1 << 1 | 1 << 3]
    assert config.hardware_compatibility_level is Names.AMPERE_PLUS
    assert config.calls == [
        ("set_flag", Names.STRIP_PLAN),
        ("set_flag", Names.VERSION_COMPATIBLE),
        ("set_memory_pool_limit", Names.WORKSPACE, 1 << 30),
        ("set_preview_feature", Names.ALIASED_PLUGIN_IO_10_03, True),
        ("create_timing_cache", b"before"),
        ("set_timing_cache", None, False),
    ]
    job.write(tmp_path / "job.json")
    assert PlanJob.read(tmp_path / "job.json") == job


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_gpu_it_says_what_can_be_built_instead(tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"on the GPU that runs the plan, and here is none; .*tensorrt_rtx"):
        compile_tensorrt.STAGE.options(TensorrtTargetConfig(), None, stage_context(tmp_path))


@pytest.mark.skipif(is_installed(), reason="TensorRT is installed here")
def test_without_the_library_the_build_ends_before_any_work() -> None:
    from pipelines.build import run_stages

    config = replace(BuildConfig(), target=TargetConfig(tensorrt=TensorrtTargetConfig()))
    with pytest.raises(
        EnginewrightError, match=r"needs the library tensorrt, .*: pip install 'enginewright\[tensorrt\]'"
    ):
        run_stages(config, runner=None)


@pytest.mark.gpu
@pytest.mark.skipif(not is_installed(), reason="needs the extra tensorrt")
@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_a_plan_builds(attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_SIZES, "head_dim", 64)
    checkpoint = write_checkpoint(tmp_path, tiny_model("llama"), "llama", dtype="bfloat16")
    (tmp_path / "out").mkdir()
    inputs = {"convert": Artifact(checkpoint.path, "")}
    config = TensorrtTargetConfig(max_batch_size=2, max_seq_len=128, max_num_tokens=96, attention=attention)
    output = compile_tensorrt.STAGE.run(config, inputs, tmp_path / "out", stage_context(tmp_path))
    assert output.metrics["plan_bytes"] > 0
