"""Every file of conf/ composes, and every mistake of a user gives one line that names the key."""

from importlib import resources
from pathlib import Path

import pytest

from pipelines.config import BuildConfig, CachePolicy
from pipelines.loading import derived_name, load_config, translate
from pipelines.target_config import CpuTargetConfig, CudaTargetConfig
from runtime.errors import EnginewrightError

CONF = Path(str(resources.files("conf")))
FILES = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml") if "local" not in path.parts)
NUM_FILES = 34


def test_no_file_is_left_out() -> None:
    assert len(FILES) == NUM_FILES, FILES


@pytest.mark.parametrize("file", FILES)
def test_every_file_composes(file: str, tmp_path: Path) -> None:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    overrides = [f"{group}={name}"] if group else []
    if file == "model/custom.yaml":
        overrides.append(f"model.source='{tmp_path}'")
    if file == "draft/model.yaml":
        overrides.append(f"draft.source='{tmp_path}'")
    if file == "precision/fp32.yaml":
        overrides.append("target=[cpu]")
    assert isinstance(load_config(overrides), BuildConfig)


def test_the_default_is_the_pinned_model_in_bf16_for_cpu_and_cuda() -> None:
    config = load_config()
    assert config.model.name == "smollm2-135m"
    assert config.model.sha256.startswith("bcc81830")
    assert config.convert.dtype == "bfloat16"
    assert config.target.names == ("cpu", "cuda", "tensorrt_rtx")
    assert (config.target.cpu, config.target.cuda) == (CpuTargetConfig(), CudaTargetConfig())
    assert config.cache is CachePolicy.on
    assert config.package.name == "smollm2-135m-bf16"
    assert config.paths.cache == Path.cwd() / ".enginewright/cache"
    assert config.tracking.uri == f"sqlite:///{Path.cwd()}/.enginewright/mlflow/mlflow.db"


def test_gates_follow_the_precision_and_yield_to_the_command_line() -> None:
    single = ["precision=fp32", "target=[cpu]"]
    bf16, fp32 = load_config(["precision=bf16"]).verify.gates, load_config(single).verify.gates
    assert fp32.max_mean_kl < bf16.max_mean_kl
    assert load_config([*single, "verify.gates.max_mean_kl=0.5"]).verify.gates.max_mean_kl == 0.5


def test_fp16_chooses_linears_that_are_fast_on_every_cpu_and_yields_to_the_command_line() -> None:
    fp16 = load_config(["precision=fp16"])
    assert (fp16.convert.dtype, fp16.package.name) == ("float16", "smollm2-135m-fp16")
    assert fp16.target.cpu.linear == "onednn_float32"
    assert load_config(["precision=fp16", "target.cpu.linear=onednn"]).target.cpu.linear == "onednn"
    assert load_config(["precision=fp32", "target=[cpu]"]).target.cpu.linear == "onednn"


def test_one_target_or_a_list_of_targets() -> None:
    assert load_config(["target=cpu"]).target == load_config(["target=[cpu]"]).target
    assert load_config(["target.cpu.max_batch_size=32"]).target.cpu == CpuTargetConfig(max_batch_size=32)


def test_kernels_are_measured_only_for_a_target_that_has_some() -> None:
    assert load_config(["compile.tune=true"]).compile.tune
    with pytest.raises(EnginewrightError, match=r"compile\.tune is True; it must be False without target cuda"):
        load_config(["compile.tune=true", "target=[cpu]"])


def test_lists_become_tuples() -> None:
    assert load_config(["bench.batch_sizes=[2,3]"]).bench.batch_sizes == (2, 3)


def test_environment_wins_over_files_and_the_command_line_over_both() -> None:
    environment = {"ENGINEWRIGHT_HOME": "/a b/it's", "MLFLOW_TRACKING_URI": "http://host"}
    config = load_config([], environment)
    assert (config.paths.root, config.tracking.uri) == ("/a b/it's", "http://host")
    assert load_config(["paths.root=/c"], environment).paths.root == "/c"
    assert translate(["-m", "verify.num_prompts=1,2"], {"ENGINEWRIGHT_HOME": "/h"}) == [
        "-m", "paths.root='/h'", "verify.num_prompts=1,2",
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["My Model's.Q4_K_M.gguf", "plain.gguf"])
def test_a_gguf_file_is_a_model(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / file).touch()
    expected = {"My Model's.Q4_K_M.gguf": "my-model-s", "plain.gguf": "plain"}[file]
    monkeypatch.chdir(tmp_path)
    for spelled in (str(tmp_path / file), file):
        model = load_config([f"model={spelled}"]).model
        assert (model.name, model.source) == (expected, str(tmp_path / file))


def test_a_folder_and_a_package_are_models(tmp_path: Path) -> None:
    assert load_config([f"model={tmp_path}"]).model.source == str(tmp_path)
    source = "pypi:dist==1.0#pkg/Some-Model.Q8_0.gguf"
    model = load_config([f"model={source}", "model.name=mine"]).model
    assert (model.name, model.source) == ("mine", source)


def test_names_come_from_files_and_folders() -> None:
    assert derived_name("/x/SmolLM2-135M-Instruct.Q4_1.gguf") == "smollm2-135m-instruct"
    assert derived_name("/models/Llama-3.2-1B/") == "llama-3.2-1b"
    assert derived_name("hub:org/Some_Name") == "some_name"


MISTAKES = {
    "verify.num_promts=3": "no setting named 'verify.num_promts'; nearest: 'verify.num_prompts'",
    "+verify.num_promts=3": "no setting named 'verify.num_promts'; nearest: 'verify.num_prompts'",
    "num_prompts=3": "no setting named 'num_prompts'; nearest: 'verify.num_prompts'",
    "modl=x": "no setting named 'modl'; nearest: 'model'",
    "verify.num_prompts=abc": "verify.num_prompts: Value 'abc' of type 'str' could not be converted to Integer",
    "bench.batch_sizes=3": "bench.batch_sizes: Invalid value assigned: int is not a ListConfig, list or tuple",
    "cache=maybe": "cache: Invalid value 'maybe', expected one of [on, off, redo, readonly]",
    "verify.num_prompts=[": "no viable alternative",
    "precision=5": "Config group override must be a string or a list. Got int",
    "precision=bf17": "no precision named 'bf17'; nearest: 'bf16'",
    "experiment=smok": "no experiment named 'smok'; nearest: 'smoke'",
    "target=cpuu": "no target named 'cpuu'; nearest: 'cpu'",
    "compile.tune=maybe": "compile.tune",
    "precision=fp32": "it must be bfloat16 or float16 with target cuda; write target=[cpu] to build for the CPU alone",
    "target.cuda.archs=[sm_70]": "target.cuda.archs is ['sm_70']; it must be some of sm_80, sm_86, sm_89, sm_90a",
    "target.cuda.archs=[]": "target.cuda.archs is []; it must be some of sm_80",
    "target.cuda.block_size=24": "target.cuda.block_size is 24; it must be 16, 32, 64 or another power of two",
    "target.cuda.kv_cache_fraction=1.0": "target.cuda.kv_cache_fraction is 1.0; it must be above 0 and below 1",
    "target.cuda.kv_cache_tokens=8": "target.cuda.kv_cache_tokens is 8; it must be 0 or at least 32",
    "target.cuda.max_num_tokens=8": "target.cuda.max_num_tokens is 8; it must be at least target.cuda.max_batch_size",
    "target.cuda.max_batch_size=4": "bench.batch_sizes is [1, 4, 8]; it must be at most target.cuda.max_batch_size, 4",
    "target.cuda.max_seq_len=256": "bench.prompt_lens is [32, 512]; it must be at most 224",
    "target.onnx.dtype=bfloat16": "target.onnx.dtype is 'bfloat16'; it must be float32 or float16: on CPUs ONNX",
    "target.onnx.max_batch_size=4": "bench.batch_sizes is [1, 4, 8]; it must be at most target.onnx.max_batch_size, 4",
    "target.onnx.max_num_tokens=8": "target.onnx.max_num_tokens is 8; it must be at least target.onnx.max_batch_size",
    "target.onnx.prefix_slots=-1": "target.onnx.prefix_slots is -1; it must be at least 0",
    "target.tensorrt.attention=both": "target.tensorrt.attention is 'both'; it must be plugin or native",
    "target.tensorrt.hardware=all": "target.tensorrt.hardware is 'all'; it must be one of this, same_compute",
    "target.tensorrt.workspace_mib=-1": "target.tensorrt.workspace_mib is -1; it must be at least 0",
    "target.tensorrt_rtx.archs=[sm_90]": "target.tensorrt_rtx.archs is ['sm_90']; it must be some of sm_75, sm_80",
    "target.tensorrt_rtx.max_batch_size=4": "bench.batch_sizes is [1, 4, 8]; it must be at most target.tensorrt_rtx",
    "target=[]": "target is empty; write target=[cpu]",
    "model=smolm2": "no model named 'smolm2'; nearest: 'smollm2-135m'; or give a folder or a .gguf file",
    "model=/nowhere/x.gguf": "no model named '/nowhere/x.gguf', and no such file or folder",
    "model=smollm2-135m,/x.gguf": "mixes names and paths",
    "model=hub:org": "model.source 'hub:org' is not hub:<org>/<name>[@<revision>][#<file>.gguf]",
    "model=hub:org/name#weights.bin": "is not hub:<org>/<name>",
    "model.name=a/b": "model.name is 'a/b'; it names a folder",
    "model.source=''": "model.source is empty",
    "verify.num_prompts=0": "verify.num_prompts is 0; it must be at least 1",
    "bench.prompt_lens=[]": "bench.prompt_lens is []; it must be at least 1",
    "precision.dtype=float8": "precision.dtype is 'float8'; it must be bfloat16, float16 or float32",
    "target.cpu.linear=magic": "target.cpu.linear is 'magic'; it must be onednn, onednn_float32 or torch",
    "target.cpu.max_num_tokens=8": "target.cpu.max_num_tokens is 8; it must be at least target.cpu.max_batch_size, 16",
    "target.cpu.kv_cache_tokens=8": "target.cpu.kv_cache_tokens is 8; it must be 0 or at least 32",
    "target.cpu.max_batch_size=4": "bench.batch_sizes is [1, 4, 8]; it must be at most target.cpu.max_batch_size, 4",
    "target.cpu.max_seq_len=256": "bench.prompt_lens is [32, 512]; it must be at most 224",
    "package.format=tar": "package.format is 'tar'; it must be folder",
}


OTHER_TARGETS = ("onnx", "tensorrt_rtx", "tensorrt")  # whose settings are no mistakes where they are not built


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gives_one_line_that_names_the_key(override: str) -> None:
    with pytest.raises(EnginewrightError) as caught:
        load_config(
            [*(f"target=[{name}]" for name in OTHER_TARGETS if override.startswith(f"target.{name}.")), override]
        )
    assert MISTAKES[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from pipelines.config_errors import explain

    (tmp_path / "local.yaml").write_text("defaults: [build_schema, _self_]\nverify: {num_promts: 3}\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("local")
    assert explain(caught.value) == "no setting named 'verify.num_promts'; nearest: 'verify.num_prompts'"
