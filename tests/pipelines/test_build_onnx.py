"""An engine for ONNX Runtime, built beside the CPU's: what the bundle has and says, and what is refused."""

import json
import re
import shlex
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.deploy.container import requirements
from pipelines.deploy.options import DeployOptions
from pipelines.deploy.workload import workload
from pipelines.stage import Artifact
from pipelines.stages import compile_onnx
from pipelines.target_config import OnnxTargetConfig
from runtime import LLM, SamplingParams
from runtime.engine import Engine
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.formats.checkpoint import Checkpoint
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.rebuild import rebuild_command
from runtime.inspection import describe
from runtime.llm import DEFAULT_SPECULATION
from runtime.loading import load_backend
from runtime.machine import look
from runtime.readiness import check_bundle
from runtime.scoring import score
from runtime.targets import choose_target
from tests.pipelines.running_stages import fetch_and_convert, stage_context
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.tiny_models import make_hf_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    model = make_hf_folder(root / "tiny", max_len=1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        limits = [f"target.onnx.{limit}" for limit in ("max_batch_size=4", "prefix_slots=2", "max_num_tokens=64")]
        wanted = (f"model={model}", "experiment=smoke", "target=[cpu,onnx]", *limits, "tracking=off")
        done = command(root, *wanted, real=True)
    assert done.returncode == 0, done.stderr
    return (root / "bundles/latest").resolve()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return fetch_and_convert(make_hf_folder(folder / "tiny", max_len=1024), folder, "bfloat16")


def compiled(checkpoint: Path, out: Path, config: OnnxTargetConfig) -> Path:
    """Run the stage on a checkpoint without a draft head; the new engine's folder."""
    out.mkdir(parents=True)
    (out / "no-draft").mkdir()
    folders = {"convert": checkpoint, "draft": out / "no-draft"}
    inputs = {name: Artifact(path, "0" * 64) for name, path in folders.items()}
    compile_onnx.STAGE.run(config, inputs, out, stage_context(out))
    return out


def test_the_bundle_has_two_engines_over_one_file_of_weights(bundle: Path) -> None:
    opened = open_bundle(bundle)
    needs = opened.manifest["targets"]["onnx"]
    assert (needs["dtype"], needs["arch"]) == ("float32", "any")
    assert needs["limits"] == {"max_batch_size": 4, "max_num_tokens": 64, "max_seq_len": 1024}
    assert needs["requires"] == {"onnxruntime": ">=1.32", "torch": ">=2.11"}
    assert sorted(path.name for path in (bundle / "engines/onnx").iterdir()) == ["engine.json", "model.onnx"]
    assert [path for path in bundle.rglob("*.safetensors") if "attestations" not in path.parts] == [
        bundle / "weights.safetensors"
    ]


def test_it_was_verified_and_measured_beside_the_cpu_s(bundle: Path) -> None:
    report = json.loads((bundle / "attestations/verify_onnx/report.json").read_text())
    assert report["engine"]["passed"]
    assert report["engine"]["figures"]["logits"]["greedy_agreement"] == 1.0
    rows = json.loads((bundle / "attestations/bench_onnx/summary.json").read_text())["rows"]
    assert {row["system"] for row in rows} == {"enginewright", "enginewright_cpu"}


def test_it_runs_with_and_without_drafts(bundle: Path) -> None:
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    texts = [LLM(bundle, target="onnx", speculation=replace(DEFAULT_SPECULATION, mode=mode, drafter="ngram"))
             .generate(["hello hello hello", "a"], params) for mode in ("off", "8,1,4")]  # fmt: skip
    assert [output.text for output in texts[0]] == [output.text for output in texts[1]]


def test_the_doctor_says_that_it_runs_and_how_it_is_built_again(bundle: Path) -> None:
    assert check_bundle(bundle, "onnx", look()).runs
    words = dict(word.split("=", 1) for word in shlex.split(rebuild_command(bundle, open_bundle(bundle).manifest))[2:])
    assert words["TARGET"] == "cpu,onnx"
    ours = sorted(word for word in words["ARGS"].split() if word.startswith("target.onnx."))
    assert ours == ["target.onnx.dtype=float32", "target.onnx.max_batch_size=4", "target.onnx.max_num_tokens=64",
                    "target.onnx.max_seq_len=1024", "target.onnx.prefix_slots=2"]  # fmt: skip


def test_the_cpu_s_engine_is_preferred_and_onnx_comes_before_nothing() -> None:
    assert choose_target(["cpu", "onnx"], None, look())[0] == "cpu"
    assert choose_target(["onnx"], None, look())[0] == "onnx"
    without_gpu = replace(look(), gpus=())
    assert choose_target(["cuda", "onnx"], None, without_gpu)[0] == "onnx"


def test_the_same_inputs_give_the_same_engine(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (compiled(checkpoint, tmp_path / name, OnnxTargetConfig()) for name in "ab")
    for name in ("model.onnx", "engine.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_float16_halves_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    spec = Checkpoint(checkpoint).spec
    half, whole = (
        EnginePlan.read(compiled(checkpoint, tmp_path / dtype, OnnxTargetConfig(dtype=dtype))).kv_cache_bytes(spec)
        for dtype in ("float16", "float32")
    )
    assert 2 * half == whole


def test_a_context_beyond_the_model_s_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EnginewrightError, match=r"max_seq_len is 1025; the model was trained for at most 1024"):
        compiled(checkpoint, tmp_path / "out", OnnxTargetConfig(max_seq_len=1025))


def test_what_cannot_be_loaded_is_one_line_with_a_remedy(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = compiled(checkpoint, tmp_path / "engine", OnnxTargetConfig(max_seq_len=128))
    opened, graph = Checkpoint(checkpoint), engine / "model.onnx"
    plan, whole = EnginePlan.read(engine), graph.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(EnginewrightError, match=message) as caught:
            load_backend(opened, engine)
        assert "\n" not in str(caught.value)

    replace(plan, max_seq_len=512).write(engine)
    refused("max_seq_len is 512; its graph has caches of 192 rows, which hold 128 tokens and a draft tree; build")
    replace(plan, block_size=256).write(engine)
    refused("block_size is 256, its graph has caches of 192 rows; build the bundle again")
    replace(plan, dtype="float16").write(engine)
    refused("the plan says float16, the graph's caches are torch.float32; build")
    plan.write(engine)
    graph.write_bytes(whole[: len(whole) // 2])
    refused(r"model.onnx: ONNX Runtime [\d.]+ does not take it .*; build the bundle again")
    graph.unlink()
    refused("model.onnx: cannot be read .*; build the bundle again")
    graph.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused("the onnx engine needs onnxruntime, which cannot be imported .*; pip install onnxruntime, or run another")


def test_a_replica_installs_onnx_runtime_and_asks_for_no_gpu(bundle: Path) -> None:
    work = workload(open_bundle(bundle), DeployOptions(target="onnx"))
    assert work.gpus == 0
    assert f"onnxruntime=={version('onnxruntime')}" in requirements(work).splitlines()
    assert "cuda-python" not in requirements(work)


def test_the_page_s_program_runs_the_file_without_us(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs/onnx.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "BUNDLE").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    expected = score(Engine(load_backend(open_bundle(bundle).checkpoint(), bundle / "engines/onnx")), [1, 2, 3])
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected[2:], atol=1e-5, rtol=0)


def test_inspect_shows_its_gate_and_its_speed_beside_the_cpu_s(bundle: Path) -> None:
    text = describe(open_bundle(bundle))
    assert "onnx: passed: greedy agreement 100.00%" in text
    assert re.search(r"onnx, medians on .*\n +prefill  batch   1 prompt    16: [\d,]+ tok/s \([\d.]+x cpu\)", text)
