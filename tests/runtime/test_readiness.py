"""Whether a bundle runs here: each reason why not, the command that mends it, and the exit code."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest

from runtime import machine
from runtime.cli import main
from runtime.formats.manifest import write_manifest
from runtime.machine import Gpu, Machine
from runtime.readiness import as_text, check_bundle
from runtime.targets import TARGETS, build_side, installed, run_side
from tests.runtime.tiny import PLAN, SPEC, make_checkpoint, make_tokenizer

HOST = Machine("Linux 6", "x86_64", "a CPU", 2, ("avx2", "avx512_bf16"), 8 * 2**30, 4 * 2**30, (), "")
NEEDS = {
    "arch": "any",
    "dtype": "bfloat16",
    "limits": {"max_seq_len": PLAN.max_seq_len},
    "topology": {"tensor_parallel": 1},
    "requires": {"torch": ">=2.11", "torch_backend": "onednn"},
}


def make_bundle(folder, **needs):
    checkpoint = make_checkpoint(folder, dtype="bfloat16")
    make_tokenizer(folder / "tokenizer")
    (folder / "engines" / "cpu").mkdir(parents=True)
    replace(PLAN, dtype="bfloat16").write(folder / "engines" / "cpu")
    spec = json.loads((checkpoint.path / "config.json").read_text())
    source = {"uri": "tiny.gguf", "revision": "sha256:12ab"}
    write_manifest(folder, {"name": "tiny-bf16", "spec": spec}, {"cpu": NEEDS | needs}, {"source": source})
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def failures(readiness):
    return {finding.check: finding.text for finding in readiness.findings if finding.level == "fails"}


def settings_of(command):
    """The parts of a rebuild command: MODEL, PRECISION and the overrides."""
    words = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    return words | dict(setting.split("=", 1) for setting in words["ARGS"].split())


def test_a_bundle_that_fits_runs_and_the_command_says_so_with_exit_code_0(bundle, capsys):
    assert check_bundle(bundle, "cpu", HOST).runs
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["doctor", str(bundle)])
    assert capsys.readouterr().out.splitlines()[-1] == f"yes: {bundle} runs here"


def test_the_rebuild_command_repeats_what_the_bundle_was_built_with(bundle):
    settings = settings_of(check_bundle(bundle, "cpu", HOST).rebuild)
    assert settings["MODEL"] == "<path of tiny.gguf>"  # where it lies is not in the manifest
    assert settings["PRECISION"] == "bf16"
    assert settings["package.name"] == "tiny-bf16"
    assert settings["model.sha256"] == "12ab"
    assert settings["target.cpu.max_seq_len"] == str(PLAN.max_seq_len)
    assert settings["target.cpu.kv_cache_tokens"] == str(PLAN.num_blocks * PLAN.block_size)


def test_a_changed_file_is_the_reason_and_the_command_exits_with_1(bundle, tmp_path, capsys):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["doctor", str(damaged), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not found["runs"]
    assert "config.json: 2 bytes" in found["findings"][0]["text"]
    assert found["rebuild"].startswith("make engine MODEL=")


def test_without_a_manifest_nobody_knows_the_command(tmp_path):
    readiness = check_bundle(tmp_path, "cpu", HOST)
    assert list(failures(readiness)) == ["files"]
    assert readiness.rebuild == ""
    assert "the command that built it is not known" in as_text(readiness)


def test_a_newer_schema_is_a_reason(bundle, tmp_path):
    newer = shutil.copytree(bundle, tmp_path / "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    assert "schema 99" in failures(check_bundle(newer, "cpu", HOST))["files"]


def test_another_target_is_a_reason_and_the_command_builds_one_that_runs(bundle):
    readiness = check_bundle(bundle, "cuda", HOST)
    assert "no engine for 'cuda'; the bundle has cpu" in failures(readiness)["target"]
    assert settings_of(readiness.rebuild)["TARGET"] == "cpu,cuda"


@pytest.mark.parametrize(
    ("needs", "check", "words"),
    [
        ({"arch": "aarch64"}, "arch", "built for aarch64; this machine is x86_64"),
        ({"dtype": "float8"}, "dtype", "'float8' is none that this version runs"),
        ({"topology": {"tensor_parallel": 4}}, "topology", "tensor_parallel 4; this version runs 1"),
        ({"requires": {"torch": ">=99.1"}}, "torch", "is installed; needed is >=99.1"),
        ({"requires": {"no-such-package": ">=1"}}, "no-such-package", "not installed"),
    ],
)
def test_what_an_engine_needs_and_this_machine_lacks_is_a_reason(tmp_path, needs, check, words):
    found = failures(check_bundle(make_bundle(tmp_path / "other", **needs), "cpu", HOST))
    assert list(found) == [check]
    assert words in found[check]


def test_bfloat16_without_its_instructions_is_a_note(bundle):
    readiness = check_bundle(bundle, "cpu", replace(HOST, flags=("avx2",)))
    assert readiness.runs
    assert "no instructions for it" in next(item.text for item in readiness.findings if item.level == "note")


def test_memory_below_one_longest_request_is_a_reason_and_below_a_full_cache_a_note(bundle):
    weights, per_token = SPEC.num_parameters * 2, SPEC.kv_bytes_per_token(2)
    least = weights + PLAN.max_seq_len * per_token
    full = weights + PLAN.num_blocks * PLAN.block_size * per_token
    short = check_bundle(bundle, "cpu", replace(HOST, memory_bytes=least - 1))
    assert f"one request of {PLAN.max_seq_len} tokens needs" in failures(short)["memory"]
    levels = {
        free: next(item.level for item in check_bundle(bundle, "cpu", replace(HOST, available_bytes=free)).findings
                   if item.check == "memory")
        for free in (full - 1, full)
    }  # fmt: skip
    assert levels == {full - 1: "note", full: "ok"}


def test_weights_that_linear_layers_widen_count_at_four_bytes(tmp_path):
    folder = make_bundle(tmp_path / "widened", dtype="float16")
    replace(PLAN, dtype="float16", linear="onednn_float32").write(folder / "engines" / "cpu")
    least = SPEC.num_parameters * 4 + PLAN.max_seq_len * SPEC.kv_bytes_per_token(2)
    found = {spare: failures(check_bundle(folder, "cpu", replace(HOST, memory_bytes=least + spare)))
             for spare in (-1, 0)}  # fmt: skip
    assert ["memory" in failed for failed in found.values()] == [True, False]


def test_where_a_smaller_engine_fits_the_command_builds_it(tmp_path):
    spec = replace(SPEC, max_position_embeddings=100_000)
    folder = make_bundle(tmp_path / "long")
    plan = replace(PLAN, dtype="bfloat16", max_seq_len=100_000, num_blocks=25_000)
    plan.write(folder / "engines" / "cpu")
    memory = spec.num_parameters * 2 + 50_000 * spec.kv_bytes_per_token(2)
    settings = settings_of(check_bundle(folder, "cpu", replace(HOST, memory_bytes=memory)).rebuild)
    assert 1024 <= int(settings["target.cpu.max_seq_len"]) < 50_000
    assert settings["target.cpu.kv_cache_tokens"] == settings["target.cpu.max_seq_len"]


def test_a_target_can_be_built_where_its_packages_are_and_run_where_its_hardware_is():
    for target in TARGETS:
        build, run = build_side(target), run_side(target, HOST)
        assert build.possible == all(map(installed, target.build_packages))
        assert run.possible == (target.name in ("cpu", "onnx"))
        if not run.possible:
            assert "no NVIDIA GPU and no driver" in run.reason
        if not build.possible:
            assert build.remedy == f"pip install 'enginewright[{target.build_packages[0]}]'"


@pytest.mark.parametrize(
    ("capability", "refused"),
    [((7, 5), {"cuda", "tensorrt_rtx", "tensorrt", "tensorrt_llm"}), ((9, 0), {"tensorrt_rtx"}), ((12, 0), set())],
)
def test_gpus_run_the_targets_of_their_generation(capability, refused):
    host = replace(HOST, gpus=(Gpu("a GPU", 2**30, capability),), driver="580.1")
    wanted = {target.name for target in TARGETS if "needs sm_" in run_side(target, host).reason}
    assert wanted == refused


def test_the_limit_of_a_container_counts_as_memory(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemFree:  1 kB\nMemAvailable:   6000 kB\n")
    assert machine.memory(meminfo, tmp_path) == (8000 * 1024, 6000 * 1024)
    for name, text in (("max", "3000000\n"), ("current", "2000000\n"), ("stat", "anon 1\nfile 500000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert machine.memory(meminfo, tmp_path) == (3_000_000, 1_500_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory(meminfo, tmp_path) == (8000 * 1024, 6000 * 1024)


def test_the_driver_of_a_gpu_is_read_from_its_file(tmp_path):
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC\n")
    assert machine.driver_version(version) == "580.65.06"
    assert machine.driver_version(tmp_path / "none") == ""
