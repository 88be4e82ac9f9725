"""One tiny model through the real command line, all stages: as a folder and as a GGUF file, again, and past a gate."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from runtime.formats.bundle import open_bundle
from runtime.formats.rebuild import rebuild_command
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.pipelines.running_stages import STAGES
from tests.pipelines.test_cli import REPOSITORY, command
from tests.pipelines.tiny_models import make_gguf_file, make_hf_folder

SMOKE = ("experiment=smoke", "precision=fp32")
FULL = (
    "bench.baseline=true", "bench.stack.enabled=true", "bench.stack.prefix_len=32", "bench.stack.new_tokens=8",
    "bench.stack.wave=1",
)  # fmt: skip
LAYOUT = {
    "manifest.json", "sbom.cdx.json", "config.json", "weights.safetensors", "engines/cpu/engine.json",
    "draft/draft.json",
    "tokenizer/tokenizer.json", "tokenizer/generation.json", "tokenizer/chat_template.jinja",
    "attestations/verify/report.json", "attestations/verify/reference.safetensors", "attestations/verify/prompts.json",
    "attestations/bench/samples.jsonl", "attestations/bench/speculation.jsonl", "attestations/bench/summary.json",
    "attestations/bench/prefill.png", "attestations/bench/decode.png", "attestations/bench/mixed.png",
    "attestations/bench/stack.jsonl", "attestations/bench/stack.png",
}  # fmt: skip
PROMPTS = ["The engine reads the checkpoint", "def f(x):\n    return", "0 1 2 3"]


@dataclass(frozen=True)
class Built:
    """A root with the builds of one model, and what its command line last said."""

    root: Path
    model: Path
    bundle: Path
    stderr: str


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("models") / "tiny", max_len=1024)


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("folder"), model, *FULL)


def build(root: Path, model: Path, *overrides: str) -> Built:
    done = command(root, f"model={model}", *SMOKE, *overrides, real=True)
    assert done.returncode == 0, done.stderr
    return Built(root, model, (root / "bundles/latest").resolve(), done.stderr)


def stages_that(verb: str, built: Built) -> list[str]:
    return [stage for stage in STAGES if f"{stage}: {verb}" in built.stderr.splitlines()]


def runs_of(root: Path) -> list[dict[str, Run]]:
    """The runs of every build, newest build first, by name; the build's own is `build`."""
    client = MlflowClient(f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("enginewright")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return [
        {"build": parent}
        | {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
        for parent in parents
    ]


def greedy_texts_of_transformers(folder: Path, num_tokens: int) -> list[str]:
    """What transformers makes of the source itself, each prompt alone, past any end token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(tokenizer.decode(ids[-num_tokens:]))
    return texts


def greedy_texts_of_bundle(bundle: Path, num_tokens: int) -> list[str]:
    outputs = LLM(bundle).generate(PROMPTS, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    return [output.text for output in outputs]


def test_a_build_leaves_a_bundle_that_is_whole_and_opens(built: Built) -> None:
    assert stages_that("started", built) == STAGES
    bundle = open_bundle(built.bundle)
    assert built.bundle == built.root / f"bundles/tiny-fp32-{bundle.bundle_id[:12]}"
    assert f"bundles/{built.bundle.name}" in built.stderr
    files = {path.relative_to(built.bundle).as_posix() for path in built.bundle.rglob("*") if path.is_file()}
    assert files - {"tokenizer/tokenizer_config.json"} == LAYOUT
    assert {name for name in files if not name.startswith("attestations/")} == {*bundle.manifest["files"]} | {
        "manifest.json"
    }
    assert str(built.model.parent) not in (built.bundle / "manifest.json").read_text()
    assert not list(built.root.rglob("*.tmp"))
    assert not (built.root / "failed").exists()


def test_the_attestations_say_how_good_and_how_fast_it_was_beside_transformers(built: Built) -> None:
    report = json.loads((built.bundle / "attestations/verify/report.json").read_text())
    assert report["engine"]["passed"]
    assert report["engine"]["figures"]["logits"]["greedy_agreement"] == 1.0
    assert report["engine"]["gates"]["max_mean_kl"] == 1e-8
    samples = (built.bundle / "attestations/bench/samples.jsonl").read_text().splitlines()
    # One repeat of one uniform and one mixed workload on two systems.
    kinds = [(fields["system"], fields["prompt_len"]) for fields in map(json.loads, samples)]
    assert sorted(kinds) == [("enginewright", 0), ("enginewright", 16), ("transformers", 0), ("transformers", 16)]
    rows = json.loads((built.bundle / "attestations/bench/summary.json").read_text())["rows"]
    assert all(row["median"] > 0 and row["ratio"] > 0 for row in rows)
    plots = list((built.bundle / "attestations/bench").glob("*.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in plots)


def test_the_store_has_one_run_for_the_build_and_one_for_each_stage_with_figures(built: Built) -> None:
    runs = runs_of(built.root)[-1]  # the first build's: later tests build in this root too
    assert set(runs) == {"build", *STAGES}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["build"].info.run_name == "tiny-fp32"
    assert all("stage_seconds" in runs[stage].data.metrics and len(runs[stage].data.metrics) > 1 for stage in STAGES)
    datasets = runs["verify"].inputs.dataset_inputs
    assert {entry.dataset.name for entry in datasets} == {"prompts.json", "perplexity.txt"}
    figures = runs["build"].data.metrics
    assert figures["verify/greedy_agreement_share"] == 1.0
    assert figures["bench/decode_b1_p16_tokens_per_s"] > 0
    assert figures["bench/mixed_b2_ratio_to_transformers"] > 0
    assert figures["bench/speculation_off_all_accepted_length"] == 1.0
    assert figures["bench/speculation_ngram_all_accepted_length"] >= 1.0
    assert figures["bench/speculation_ngram_all_ratio_to_plain"] > 0


def test_the_bundle_continues_texts_as_transformers_does(built: Built) -> None:
    assert greedy_texts_of_bundle(built.bundle, 16) == greedy_texts_of_transformers(built.model, 16)


def test_what_was_left_out_is_said_wherever_a_bundle_is_looked_at(model: Path, tmp_path: Path) -> None:
    quick = build(tmp_path, model, "verify=off", "bench=off", "target.cpu.max_batch_size=2")
    assert stages_that("started", quick) == ["fetch", "convert", "draft", "compile", "package"]
    assert quick.stderr.count("not run") == 2
    for report in ("verify/report.json", "bench/summary.json"):
        stage = report.partition("/")[0]
        fields = json.loads((quick.bundle / "attestations" / report).read_text())
        assert fields == {"not_run": f"built with {stage}=off"}
    assert "NOT VERIFIED: built with verify=off" in runtime_command("inspect", quick.bundle).stdout
    done = runtime_command("verify", quick.bundle)
    assert done.returncode == 1
    assert "carries no reference to verify against (built with verify=off)" in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("enginewright")
    (tracked,) = client.search_logged_models([experiment.experiment_id])
    assert tracked.params["not_run"] == "verify,bench"


def test_a_bundle_gives_back_the_models_folder(built: Built, tmp_path: Path) -> None:
    done = command(tmp_path, "export-hf", str(built.bundle), "back", "--max-shard-size", "1MB", real=True)
    assert done.returncode == 0, done.stderr
    assert "back/config.json" in done.stdout
    weights = load_file(tmp_path / "back/model.safetensors")
    expected = load_file(built.model / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert greedy_texts_of_transformers(tmp_path / "back", 8) == greedy_texts_of_transformers(built.model, 8)
    again = command(tmp_path, "export-hf", str(built.bundle), "back", real=True)
    assert (again.returncode, again.stderr) == (1, "error: back: exists already; name a new folder, or remove it\n")
    wrong = command(tmp_path, "export-hf", str(built.bundle), "other", "--max-shard-size", "many", real=True)
    assert wrong.stderr == "error: --max-shard-size is 'many'; write a number and MB or GB, such as 5GB\n"
    assert not (tmp_path / "other").exists()


def test_a_second_build_is_all_cached_and_the_same(built: Built) -> None:
    again = build(built.root, built.model, *FULL)
    assert again.bundle == built.bundle
    assert stages_that("cached", again) == STAGES
    assert stages_that("started", again) == []


def test_the_same_model_at_another_path_is_converted_once_and_gives_the_same_bundle(
    built: Built, tmp_path: Path
) -> None:
    copy = shutil.copytree(built.model, tmp_path / "elsewhere" / built.model.name)
    moved = build(built.root, copy, *FULL)
    assert moved.bundle == built.bundle
    assert stages_that("started", moved) == ["fetch"]


def test_the_rebuild_command_builds_the_same_bundle(built: Built) -> None:
    manifest = json.loads((built.bundle / "manifest.json").read_text())
    words = dict(word.split("=", 1) for word in shlex.split(rebuild_command(built.bundle, manifest))[2:])
    assert (words["MODEL"], words["PRECISION"]) == (f"<path of {built.model.name}>", "fp32")
    again = build(built.root, built.model, *FULL, *words["ARGS"].split())
    assert again.bundle == built.bundle
    # A pin, the drafter that `auto` chose, and limits that were defaults before.
    assert stages_that("started", again) == ["fetch", "draft", "compile"]


def test_building_everything_again_gives_the_same_bundle(built: Built) -> None:
    again = build(built.root, built.model, "cache=redo", "tracking=off")
    assert stages_that("started", again) == STAGES
    assert again.bundle == built.bundle
    assert open_bundle(again.bundle).bundle_id == open_bundle(built.bundle).bundle_id
    assert "gave another output" not in again.stderr


def test_a_gguf_file_of_the_same_weights_with_a_short_context_gives_the_same_texts(
    model: Path, built: Built, tmp_path: Path
) -> None:
    short = shutil.copytree(model, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    gguf = make_gguf_file(tmp_path / "Tiny.F32.gguf", hf_folder=short)
    from_gguf = build(tmp_path, gguf, "tracking=off")
    assert from_gguf.bundle.name == f"tiny-fp32-{open_bundle(from_gguf.bundle).bundle_id[:12]}"
    assert from_gguf.bundle.name != built.bundle.name  # another source, which the manifest names
    assert (from_gguf.bundle / "weights.safetensors").read_bytes() == (
        built.bundle / "weights.safetensors"
    ).read_bytes()
    assert greedy_texts_of_bundle(from_gguf.bundle, 16) == greedy_texts_of_transformers(model, 16)
    # Mixed requests are longer than this by themselves.
    summary = json.loads((from_gguf.bundle / "attestations/bench/summary.json").read_text())
    assert summary["settings"]["mixed_max_len"] == 256


def test_a_bundle_is_verified_and_inspected_where_it_is_moved(built: Built, tmp_path: Path) -> None:
    moved = shutil.copytree(built.bundle, tmp_path / "deployed")
    done = runtime_command("verify", moved)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["bundle"] == open_bundle(built.bundle).bundle_id
    inspected = runtime_command("inspect", moved)
    assert "verified  passed: greedy agreement 100.00%" in inspected.stdout
    assert "source    tiny (sha256:" in inspected.stdout

    # Attestations are no part of what the manifest vouches for: a user may tighten the gates.
    file = moved / "attestations/verify/report.json"
    fields = json.loads(file.read_text())
    fields["engine"]["gates"]["min_greedy_agreement"] = 1.1
    file.write_text(json.dumps(fields))
    failed = runtime_command("verify", moved)
    assert failed.returncode == 1
    assert not json.loads(failed.stdout)["passed"]
    assert failed.stderr.splitlines()[-1] == f"error: {moved}: greedy agreement is 1, the gate is >= 1.1"


def test_a_failed_gate_is_one_line_and_a_kept_report_and_no_bundle(model: Path, tmp_path: Path) -> None:
    overrides = ("experiment=smoke", "precision=bf16", "verify.gates.max_mean_kl=0")
    done = command(tmp_path, f"model={model}", *overrides, real=True)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == done.stderr.splitlines()[-1:]
    assert "mean KL (nats) is " in errors[0]
    assert ", the gate is <= 0" in errors[0]
    kept = Path(errors[0].rpartition("report: ")[2].rstrip(")"))
    assert kept.parent == tmp_path / "failed"
    report = json.loads((kept / "content/report.json").read_text())
    assert not report["engine"]["passed"]
    assert report["engine"]["figures"]["logits"]["mean_kl_nats"] > 0
    assert not (tmp_path / "bundles").exists()
    assert not list((tmp_path / "cache").glob("verify/*/artifact.json"))

    (runs,) = runs_of(tmp_path)
    assert set(runs) == {"build", "fetch", "convert", "draft", "compile", "verify"}
    assert [runs[name].info.status for name in ("build", "convert", "verify")] == ["FAILED", "FINISHED", "FAILED"]
    assert "the gate is <= 0" in runs["build"].data.tags["exception"]


def runtime_command(name: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", name, str(bundle)],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=60,
    )  # fmt: skip
