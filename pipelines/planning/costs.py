"""What a stage will cost: seconds, peak memory, disk.

Time is that of an earlier run of the stage in this cache, in proportion to the bytes it worked on; without one it is a
formula from bytes and the assumed rates below. Memory and disk always are formulas. Each figure says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.config import BuildConfig
from pipelines.hardware import fingerprint
from pipelines.planning.model import KnownModel
from pipelines.planning.planner import Earlier, StagePlan
from pipelines.planning.sizes import ModelSizes
from runtime.machine import gpu_names

# Assumed of a machine that has not run the stage yet.
NETWORK_BYTES_PER_S = 10e6
COPY_BYTES_PER_S = 300e6
CONVERT_BYTES_PER_S = 100e6  # of converted weights
MEMORY_BYTES_PER_S = 10e9  # a decode step reads every weight
FLOPS_PER_S = 200e9  # of prefill

PYTHON_BYTES = 200_000_000  # a process with the command line's libraries
TORCH_BYTES = 700_000_000  # with torch and transformers too
REPORT_BYTES = 2_000_000
KERNEL_BYTES = 20_000_000  # of all architectures
KERNEL_SECONDS = 60.0  # to compile them all on two cores
PLAN_STAGES = ("compile_tensorrt_rtx", "compile_tensorrt")
PLAN_SHARE = 1.2  # of the weights: a plan of TensorRT-RTX
PLAN_SECONDS, PLAN_BYTES_PER_S = 5.0, 15e6  # to build one, of its weights; measured on one of two cores
GPU_SECONDS = 60.0  # of a check or a measurement on a GPU
# Whatever their settings, the bytes decide.
SAME_WORK = ("fetch", "convert", "compile", "compile_cuda", "compile_onnx", "compile_tensorrt_llm",
             "compile_tensorrt_rtx", "compile_tensorrt", "package")  # fmt: skip


class Time(NamedTuple):
    seconds: float
    basis: str


@dataclass(frozen=True)
class Cost:
    """None: cannot be known before the model is, or before a head was trained here."""

    time: Time | None
    memory_bytes: int | None
    disk_bytes: int | None


def stage_cost(
    plan: StagePlan, plans: Mapping[str, StagePlan], model: KnownModel, sizes: ModelSizes | None, config: BuildConfig
) -> Cost:  # fmt: skip
    """The cost of running one stage."""
    num_bytes = model.source_bytes if plan.name == "fetch" else sizes.weights if sizes else None
    time = measured(plan, plans["convert"].earlier, num_bytes) or assumed(plan.name, model, sizes, config)
    return Cost(time, memory_bytes(plan.name, sizes, config), disk_bytes(plan.name, model, sizes, config))


def measured(plan: StagePlan, converted: Sequence[Earlier], num_bytes: int | None) -> Time | None:
    """The time of the artifact most like this one that did the same work on the same hardware."""
    weights = {item.metadata.digest: item.metadata.metrics.get("weights_bytes") for item in converted}
    for item in sorted(plan.earlier, key=lambda item: item is not plan.nearest):
        made_from, metrics = item.metadata.made_from, item.metadata.metrics
        if plan.name not in SAME_WORK and made_from.get("config") != plan.parts["config"]:
            continue
        if made_from.get("hardware", fingerprint()) != fingerprint():
            continue
        if plan.name == "compile_cuda":  # the same kernels, however large the weights
            return Time(item.metadata.seconds, "earlier run")
        before = metrics.get("source_bytes") or metrics.get("weights_bytes")
        before = before or weights.get(made_from.get("inputs", {}).get("convert", ""))
        if not before or not num_bytes:
            return Time(item.metadata.seconds, "earlier run")
        scaled = item.metadata.seconds * num_bytes / before
        same = abs(num_bytes / before - 1) < 0.01
        return Time(scaled, "earlier run" if same else f"earlier run, x{num_bytes / before:.2g} bytes")
    return None


def assumed(stage: str, model: KnownModel, sizes: ModelSizes | None, config: BuildConfig) -> Time | None:
    """The formula's time; see the rates above."""
    if stage == "fetch":
        if model.source_bytes is None or model.download.num_bytes is None:
            return None
        seconds = model.download.num_bytes / NETWORK_BYTES_PER_S + model.source_bytes / COPY_BYTES_PER_S
        return Time(seconds, "formula: 10 MB/s network, 300 MB/s copy")
    if sizes is None or (stage == "draft" and config.draft.drafter == "train"):
        return None
    if stage == "compile_cuda":
        return Time(KERNEL_SECONDS, "formula: a minute for all architectures")
    if stage in PLAN_STAGES:
        seconds = PLAN_SECONDS + sizes.weights / PLAN_BYTES_PER_S
        return Time(seconds, "formula: 5 s, and weights at 15 MB/s")
    if stage in ("verify_cuda", "bench_cuda", "tune_cuda") or stage.partition("_")[2] in ("tensorrt_rtx", "tensorrt"):
        return Time(GPU_SECONDS, "formula: a minute") if gpu_names() else Time(0.0, "no GPU here")
    formulas: dict[str, Any] = {"convert": convert_time, "verify": verify_time, "bench": bench_time,
                                "verify_onnx": verify_time, "bench_onnx": bench_time}  # fmt: skip
    if stage in formulas:
        time: Time = formulas[stage](sizes, config)
        return time
    return Time(2 * sizes.weights / COPY_BYTES_PER_S, "formula: weights twice at 300 MB/s")


def convert_time(sizes: ModelSizes, config: BuildConfig) -> Time:
    return Time(sizes.weights / CONVERT_BYTES_PER_S, "formula: weights at 100 MB/s")


def verify_time(sizes: ModelSizes, config: BuildConfig) -> Time:
    """The reference generates prompt by prompt in float32."""
    steps = config.verify.num_prompts * config.verify.num_new_tokens
    return Time(steps * 4 * sizes.parameters / MEMORY_BYTES_PER_S, f"formula: {steps} steps of fp32 weights at 10 GB/s")


def bench_time(sizes: ModelSizes, config: BuildConfig) -> Time:
    """Every repeat and warm-up of every workload, for one system or two."""
    bench = config.bench
    steps = len(bench.batch_sizes) * len(bench.prompt_lens) * bench.new_tokens
    prompt_tokens = sum(bench.batch_sizes) * sum(bench.prompt_lens)
    once = steps * sizes.packed / MEMORY_BYTES_PER_S + prompt_tokens * 2 * sizes.parameters / FLOPS_PER_S
    runs = (bench.repeats + bench.warmups) * (2 if bench.baseline else 1)
    return Time(runs * once, "formula: decode at 10 GB/s, prefill at 0.2 TFLOP/s")


def memory_bytes(stage: str, sizes: ModelSizes | None, config: BuildConfig) -> int | None:
    """Peak resident bytes. Packed weights lie beside the mapped file's pages while an engine loads."""
    if stage in ("fetch", "package", "publish"):
        return PYTHON_BYTES
    if sizes is None or (stage == "draft" and config.draft.drafter == "train"):
        return None
    engine = sizes.weights + sizes.packed
    bench_tokens = max(config.bench.batch_sizes) * (max(config.bench.prompt_lens) + config.bench.new_tokens)
    widened = 4 * sizes.parameters  # the onnx engine's weights are float32
    if stage in PLAN_STAGES:
        return TORCH_BYTES + int(4.5 * sizes.weights)  # of the process that builds, its mapped weights included
    if stage.partition("_")[2] in ("tensorrt_rtx", "tensorrt"):
        return TORCH_BYTES + sizes.weights
    return {
        "convert": TORCH_BYTES + 3 * sizes.largest_tensor,
        "draft": TORCH_BYTES + engine,
        "compile": TORCH_BYTES + engine,
        "compile_cuda": TORCH_BYTES,
        "compile_onnx": TORCH_BYTES + sizes.weights + widened,
        "verify_onnx": TORCH_BYTES + sizes.weights + widened,
        "bench_onnx": TORCH_BYTES + engine + widened,
        "compile_tensorrt_llm": TORCH_BYTES,
        "verify_cuda": TORCH_BYTES + sizes.weights,
        "bench_cuda": TORCH_BYTES + sizes.weights,
        "tune_cuda": TORCH_BYTES + sizes.weights,
        "verify": TORCH_BYTES + 8 * sizes.parameters + engine,  # source and converted weights, both in fp32
        "bench": TORCH_BYTES + engine + (sizes.weights if config.bench.baseline else 0)
        + 2 * min(bench_tokens * sizes.kv_per_token, sizes.kv_cache),
    }.get(stage)  # fmt: skip


def disk_bytes(stage: str, model: KnownModel, sizes: ModelSizes | None, config: BuildConfig) -> int | None:
    """What the stage leaves; a package links to its inputs, and the bundle is a copy of the weights."""
    if stage == "fetch":
        return model.source_bytes
    if stage == "compile_cuda":
        return KERNEL_BYTES
    plan_bytes = int(PLAN_SHARE * sizes.weights) if sizes else None
    if stage in PLAN_STAGES:
        return plan_bytes
    hosted = config.target.tensorrt_llm
    if stage == "compile_tensorrt_llm" and hosted is not None and hosted.weights == "host":
        return REPORT_BYTES
    if stage == "compile_tensorrt_llm":
        return sizes.weights if sizes else None
    if stage.partition("_")[0] in ("draft", "compile", "tune", "verify", "bench"):  # a drafting model is linked
        return REPORT_BYTES
    if stage == "package" and sizes:
        plans = sum(getattr(config.target, name.removeprefix("compile_")) is not None for name in PLAN_STAGES)
        return sizes.weights + plans * int(PLAN_SHARE * sizes.weights)
    return sizes.weights if sizes else None
