"""A plan tells what the next build does, and changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.build import run_build, run_stages
from pipelines.cache import Cache
from pipelines.config import BuildConfig
from pipelines.loading import load_config
from pipelines.planning import model as planning_model
from pipelines.planning.gpus import GPU_TYPES, bound, decode_bounds
from pipelines.planning.misses import differences
from pipelines.planning.plan import make_plan, plan_as_plain
from pipelines.planning.planner import Planner
from pipelines.planning.sizes import ModelSizes, model_sizes
from pipelines.planning.wheel_size import Size, html_links, is_wheel, json_links
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec
from tests.pipelines.running_stages import STAGES
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

TOYS = "tests.pipelines.toy_engine"
SIZES = ModelSizes(125_000_000, 250_000_000, 250_000_000, 20_000, 10**9, 8192, 10**8, 250_000_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("models") / "tiny", max_len=1024)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def config_of(home: Path, model: Path, *overrides: str) -> BuildConfig:
    return load_config([f"paths.root={home}", "tracking=off", f"model={model}", "target=[cpu]", *overrides])


def build(config: BuildConfig) -> None:
    """Build with the toy stages."""
    from rich.console import Console

    with open(os.devnull, "w") as nowhere:
        run_build(config, Console(file=nowhere), TOYS)


def outcomes(config: BuildConfig) -> dict[str, str]:
    planned = run_stages(config, Planner(Cache(config.paths.cache), config.cache), TOYS)
    return {name: stage.outcome for name, stage in planned.items()}


def reasons(config: BuildConfig) -> dict[str, str]:
    planned = run_stages(config, Planner(Cache(config.paths.cache), config.cache), TOYS)
    return {name: stage.why for name, stage in planned.items() if stage.runs}


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")] if path.exists()}


def test_a_plan_makes_no_folder_no_lock_and_no_run(home: Path, model: Path) -> None:
    before = tree(home.parent)
    done = plan_command(home, f"model={model}", "--json")
    assert done.returncode == 0, done.stderr
    assert tree(home.parent) == before
    assert not home.exists()
    build(config_of(home, model))
    built = tree(home.parent)
    assert plan_command(home, f"model={model}").returncode == 0
    assert tree(home.parent) == built


def plan_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ENGINEWRIGHT_HOME": str(home), "PYTHONPATH": str(REPOSITORY),
                   "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    return subprocess.run([sys.executable, "-m", "pipelines.enginewright", "plan", *arguments], cwd=home.parent,
                          capture_output=True, text=True, env=environment, timeout=60)  # fmt: skip


def test_what_was_built_is_cached_and_another_setting_names_itself(home: Path, model: Path) -> None:
    config = config_of(home, model)
    assert outcomes(config) == dict.fromkeys(STAGES, "build")
    assert reasons(config)["fetch"] == "not in the cache"
    build(config)
    assert outcomes(config) == dict.fromkeys(STAGES, "cached")
    other = config_of(home, model, "bench.repeats=7")
    assert outcomes(other) == dict.fromkeys(STAGES, "cached") | {"bench": "build", "package": "depends"}
    assert reasons(other)["bench"] == "config: repeats 3 -> 7"
    assert reasons(other)["package"] == "cached if bench gives the same output as before"


def test_a_changed_file_is_the_reason_and_what_follows_depends_on_its_bytes(home: Path, model: Path) -> None:
    copy = shutil.copytree(model, home.parent / "copy")
    build(config_of(home, copy))
    os.utime(copy / "config.json")
    config = config_of(home, copy)
    assert reasons(config)["fetch"] == "your files changed, or lie elsewhere"
    assert outcomes(config) == {"fetch": "build"} | dict.fromkeys(STAGES[1:], "depends")


def test_the_cache_policy_decides(home: Path, model: Path) -> None:
    build(config_of(home, model))
    assert set(outcomes(config_of(home, model, "cache=redo")).values()) == {"build"}
    assert set(outcomes(config_of(home, model, "cache=off")).values()) == {"build"}
    readonly = config_of(home, model, "cache=readonly", "bench.repeats=7")
    assert outcomes(readonly)["bench"] == "stops"


def test_a_damaged_artifact_is_told(home: Path, model: Path) -> None:
    config = config_of(home, model)
    build(config)
    next((home / "cache/convert").glob("*/content/*")).unlink()
    assert reasons(config)["convert"] == "the cached output is damaged"


def test_each_part_of_a_key_has_its_words() -> None:
    before = {"config": {"a": {"b": 1}}, "libraries": {"torch": "2.12"}, "code": "1", "inputs": {"x": "1"},
              "hardware": {"cores": 2}, "target": "cpu"}  # fmt: skip
    now = {"config": {"a": {"b": 2}}, "libraries": {"torch": "2.13"}, "code": "2", "inputs": {"x": "2"},
           "hardware": {"cores": 4}, "target": "cuda"}  # fmt: skip
    assert differences(now, before) == [
        "config: a.b 1 -> 2", "libraries: torch 2.12 -> 2.13", "code of the stage, or of what it imports, changed",
        "inputs: another output of x", "hardware: cores 2 -> 4", "target: cpu -> cuda",
    ]  # fmt: skip
    assert differences(before, before) == []


def test_a_local_model_is_known_before_it_is_fetched(home: Path, model: Path) -> None:
    plan = make_plan(config_of(home, model))
    assert plan.sizes is not None
    assert plan.sizes.weights == 2 * plan.sizes.parameters
    assert plan.download_bytes == 0
    assert plan.model.source_bytes == sum(path.stat().st_size for path in model.iterdir())
    assert plan.seconds
    assert plan.memory_bytes
    assert all(cost.time and cost.time.basis.startswith("formula") for cost in plan.costs.values())
    gguf = make_gguf_file(home.parent / "tiny.gguf", hf_folder=model)
    from_gguf = make_plan(config_of(home, gguf))
    assert from_gguf.sizes == plan.sizes


def test_earlier_runs_give_the_time_in_proportion_to_their_bytes(home: Path, model: Path) -> None:
    build(config_of(home, model))
    (artifact,) = (home / "cache/convert").glob("*/artifact.json")
    metadata = json.loads(artifact.read_text())
    sizes = make_plan(config_of(home, model)).sizes
    assert sizes is not None
    metadata |= {"seconds": 8.0, "metrics": {"weights_bytes": sizes.weights / 2}}
    artifact.write_text(json.dumps(metadata))
    shutil.rmtree(home / "cache/fetch")  # what the toy stage wrote is no model
    plan = make_plan(config_of(home, model), TOYS)
    time = plan.costs["convert"].time
    assert time is not None
    assert time.seconds == pytest.approx(16.0)
    assert time.basis == "earlier run, x2 bytes"


def test_a_model_that_was_never_fetched_says_what_is_not_known(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning_model, "wheel_size", lambda dist, version: Size(1000, "told"))
    plan = make_plan(load_config([f"paths.root={home}"]))
    found = plan_as_plain(plan)
    assert found["download"] == {"bytes": 1000, "note": "told"}
    assert found["sizes"] is None
    assert found["decode_bounds"] == []
    assert found["seconds"] is None
    assert "was never fetched" in found["note"]


@pytest.mark.parametrize("override", ["model=smolm2", "verify.num_promts=3", "precision=bf17", "target=[tensorrtt]"])
def test_a_mistake_is_the_same_line_as_of_a_build(home: Path, override: str) -> None:
    home.mkdir()
    done, built = plan_command(home, override), command(home, override, real=True)
    assert (done.returncode, done.stdout, done.stderr) == (built.returncode, "", built.stderr)
    assert done.returncode == 1


def test_a_source_that_a_build_refuses_is_refused(home: Path, model: Path) -> None:
    copy = shutil.copytree(model, home.parent / "copy")
    (copy / "config.json").unlink()
    with pytest.raises(EnginewrightError, match=r"^fetch: .*has no config\.json"):
        make_plan(config_of(home, copy))
    gguf = make_gguf_file(home.parent / "short.gguf")
    os.truncate(gguf, gguf.stat().st_size - 4096)
    with pytest.raises(EnginewrightError, match=r"^fetch: .*truncated"):
        make_plan(config_of(home, gguf))
    with pytest.raises(EnginewrightError, match=r"^fetch: model\.source .* is not pypi:"):
        make_plan(load_config([f"paths.root={home}", "model=pypi:tiny#x.gguf"]))


def test_the_bound_is_bandwidth_over_bytes_and_a_model_that_does_not_fit_has_none() -> None:
    l4 = next(gpu for gpu in GPU_TYPES if gpu.name == "L4")
    one = bound(l4, SIZES, 1, 2048)
    assert one.tokens_per_s == pytest.approx(300e9 / (2.5e8 + 2048 * 2e4))
    large = ModelSizes(12 * 10**9, 24 * 10**9, 24 * 10**9, 20_000, 10**9, 8192, 10**8, 24 * 10**9)
    found = {(item.gpu, item.batch_size): item.tokens_per_s for item in decode_bounds(large)}
    assert found["RTX 4090", 1] is None
    assert found["H100 SXM", 1] == pytest.approx(3350e9 / (24e9 + 2048 * 2e4))


def test_an_embedding_that_is_no_head_is_not_read_whole_by_a_step(home: Path, model: Path) -> None:
    tied = ModelSpec("LlamaForCausalLM", 100, 8, 1, 2, 1, 4, 16, 64, tied_head=True)
    free = ModelSpec("LlamaForCausalLM", 100, 8, 1, 2, 1, 4, 16, 64)
    config = config_of(home, model)
    assert model_sizes(tied, config).read_per_step == model_sizes(free, config).read_per_step
    assert model_sizes(tied, config).weights < model_sizes(free, config).weights


def test_fp16_engines_hold_float32_weights_and_the_plan_counts_them(home: Path, model: Path) -> None:
    spec = ModelSpec("LlamaForCausalLM", 100, 8, 1, 2, 1, 4, 16, 64)
    widened = model_sizes(spec, config_of(home, model, "precision=fp16"))
    plain = model_sizes(spec, config_of(home, model, "precision=fp16", "target.cpu.linear=torch"))
    assert (widened.weights, widened.packed) == (2 * spec.num_parameters, 4 * spec.num_parameters)
    assert plain.packed == plain.weights


def test_the_index_tells_the_size_of_a_wheel_for_any_machine() -> None:
    page = '<a href="../files/tiny_wheel-1.0-py3-none-any.whl#sha256=ab">tiny</a><a href="x.tar.gz">x</a>'
    assert [link.name for link in html_links(page)] == ["tiny_wheel-1.0-py3-none-any.whl", "x.tar.gz"]
    assert is_wheel("tiny_wheel-1.0-py3-none-any.whl", "Tiny.Wheel", "1.0")
    assert not is_wheel("tiny_wheel-1.0.1-py3-none-any.whl", "tiny-wheel", "1.0")
    assert not is_wheel("tiny_wheel-1.0-cp311-cp311-linux_x86_64.whl", "tiny-wheel", "1.0")
    assert json_links({"files": [{"filename": "a.whl", "url": "u", "size": 5}]})[0].num_bytes == 5
