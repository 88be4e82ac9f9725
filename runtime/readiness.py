"""Whether a bundle will run on this machine, and if not, why and which command builds one that does.

Every check is made, so that one look tells everything. Loads no weights; reads every file once for its digest.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import EnginewrightError
from runtime.findings import Finding
from runtime.formats.bundle import ENGINES_DIR, open_bundle
from runtime.formats.checkpoint import DTYPES, CheckpointConfig
from runtime.formats.manifest import MANIFEST_FILE
from runtime.formats.rebuild import rebuild_command
from runtime.formats.tensorrt_llm import TARGET as HOSTED
from runtime.formats.tensorrt_llm import TensorrtLlmPlan
from runtime.gpu_readiness import gpu_findings, plan_findings
from runtime.machine import Machine
from runtime.spec import ModelSpec

ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
BUILT_TARGETS = ("cpu", "cuda", "onnx", "tensorrt_rtx", "tensorrt", HOSTED)
ON_GPU = ("cuda", "tensorrt_rtx", "tensorrt")
USABLE_SHARE = 0.8  # of memory; the rest is Python's, torch's and the system's
MIN_USEFUL_TOKENS = 1024


@dataclass(frozen=True)
class Readiness:
    """All findings about one bundle, and the command that builds it again."""

    bundle: str
    target: str
    findings: tuple[Finding, ...]
    rebuild: str  # empty where the manifest cannot be read, so that nobody knows

    @property
    def runs(self) -> bool:
        return all(finding.level != "fails" for finding in self.findings)


class MemoryNeed(NamedTuple):
    """In bytes but max_seq_len, in tokens."""

    spec: ModelSpec
    element: int  # of one number
    weights: int  # as the engine's layers hold them
    kv_cache: int  # once every block is written
    max_seq_len: int


def check_bundle(path: Path, target: str, machine: Machine) -> Readiness:
    """Check a bundle's manifest, files and engine against this version and this machine."""
    files = _files(path)
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        needs, rebuild = manifest["targets"].get(target), rebuild_command(path, manifest, target)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Readiness(str(path), target, (files,), "")
    if needs is None:
        others = ", ".join(sorted(manifest["targets"])) or "none"
        built = ", ".join(BUILT_TARGETS)
        text = f"no engine for {target!r}; the bundle has {others}, and this version builds {built}"
        rebuild = rebuild_command(path, manifest, target if target in BUILT_TARGETS else "cpu")
        return Readiness(str(path), target, (files, Finding("target", "fails", text)), rebuild)
    if target == HOSTED:
        return Readiness(str(path), target, (files, *_hosted(path / ENGINES_DIR / target)), rebuild)
    findings = [files, Finding("target", "ok", f"{target}, arch {needs.get('arch')}"), *_engine(needs, machine)]
    findings += gpu_findings(needs, machine) if target == "cuda" else []
    findings += plan_findings(needs, machine, target) if target in ("tensorrt_rtx", "tensorrt") else []
    findings += _memory(path, manifest, target, machine)
    fixes = {name: value for finding in findings for name, value in finding.fix.items()}
    if fixes:
        rebuild = rebuild_command(path, manifest, target, **fixes)
    return Readiness(str(path), target, tuple(findings), rebuild)


def _hosted(engine_dir: Path) -> Iterator[Finding]:
    """An engine that another runtime runs never runs in this one."""
    try:
        text = TensorrtLlmPlan.read(engine_dir).not_run
    except EnginewrightError as error:
        yield Finding("target", "fails", str(error))
        return
    yield Finding("target", "fails", text, rebuilding_helps=False)


def _files(path: Path) -> Finding:
    try:
        bundle = open_bundle(path)
    except EnginewrightError as error:
        return Finding("files", "fails", str(error))
    return Finding("files", "ok", f"schema {bundle.manifest['schema']}, every file as the manifest says")


def _engine(needs: Mapping[str, Any], machine: Machine) -> Iterator[Finding]:
    """Architecture, dtype, topology and libraries."""
    arch, dtype, requires = needs.get("arch"), needs.get("dtype"), needs.get("requires", {})
    if arch not in ("any", "nvidia", machine.arch):
        yield Finding("arch", "fails", f"built for {arch}; this machine is {machine.arch}")
    if dtype not in DTYPES:
        yield Finding("dtype", "fails", f"{dtype!r} is none that this version runs ({', '.join(DTYPES)})")
    elif dtype in ("bfloat16", "float16") and not machine.has_bf16 and arch != "nvidia":
        yield Finding("dtype", "note", f"{dtype} runs, but slowly: this CPU has no instructions for it; fp32 is faster")
    else:
        yield Finding("dtype", "ok", str(dtype))
    parallel = needs.get("topology", {}).get("tensor_parallel", 1)
    if parallel != 1:
        yield Finding("topology", "fails", f"tensor_parallel {parallel}; this version runs 1")
    for name, bound in requires.items():
        check = _onednn if name == "torch_backend" else _library
        yield check(name, str(bound))


def _library(name: str, bound: str) -> Finding:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Finding(name, "fails", f"not installed; needed is {bound}: pip install '{name}{bound}'")
    exactly = bound.startswith("==")
    have, wanted = _numbers(installed), _numbers(bound.lstrip(">="))
    if have < wanted or (exactly and have != wanted):
        return Finding(name, "fails", f"{installed} is installed; needed is {bound}: pip install '{name}{bound}'")
    return Finding(name, "ok", f"{installed} ({bound})")


def _onednn(name: str, bound: str) -> Finding:
    """Whether this torch packs linear layers with the backend the engine was built on; imports torch."""
    try:
        import torch
    except ImportError:
        return Finding("linear layers", "fails", f"torch with {bound} is needed and cannot be imported")
    if bound != "onednn" or not torch.backends.mkldnn.is_available():
        return Finding("linear layers", "fails", f"this torch has no {bound}", {"linear": "torch"})
    return Finding("linear layers", "ok", bound)


def _numbers(text: str) -> list[int]:
    """`2.13.0+cpu` as [2, 13, 0]."""
    return [int(part) for part in text.partition("+")[0].split(".") if part.isdigit()]


def _memory(path: Path, manifest: Mapping[str, Any], target: str, machine: Machine) -> Iterator[Finding]:
    """Weights once and the KV cache, which grows as it is used, against what this process, or the GPU, may have."""
    memory, available = machine.memory_bytes, machine.available_bytes
    if target in ON_GPU:
        if not machine.gpus or not machine.gpus[0].memory_bytes:
            return
        memory = available = machine.gpus[0].memory_bytes
    try:
        need = memory_need(path, manifest, target)
    except (EnginewrightError, OSError, ValueError, KeyError, TypeError) as error:
        yield Finding("memory", "note", f"cannot be told ({error!r:.80})")
        return
    spec, element, longest = need.spec, need.element, need.max_seq_len
    per_token, weights = spec.kv_bytes_per_token(element), need.weights
    held_cache = f"KV cache up to {need.kv_cache / GIB:.2f} GiB" if need.kv_cache else "KV cache of what is left"
    free = "on the GPU" if target in ON_GPU else f"of {memory / GIB:.1f} GiB are free"
    text = f"weights {weights / GIB:.2f} GiB, {held_cache}; {available / GIB:.1f} GiB {free}"
    if weights + longest * per_token > memory:
        text += f"; one request of {longest} tokens needs {(weights + longest * per_token) / GIB:.2f} GiB"
        yield Finding("memory", "fails", text, _smaller_engine(spec, memory, element, longest, target))
    elif weights + need.kv_cache > available:
        yield Finding("memory", "note", f"{text}: full batches of long requests may not fit")
    else:
        yield Finding("memory", "ok", text)


def memory_need(path: Path, manifest: Mapping[str, Any], target: str) -> MemoryNeed:
    """What the engine of a target needs, from its plan.

    Raises:
        EnginewrightError, OSError, ValueError, KeyError, TypeError: the plan or the manifest says something odd.
    """
    spec = CheckpointConfig.from_json(json.dumps(manifest["model"]["spec"]), str(path / MANIFEST_FILE)).spec
    plan = json.loads((path / ENGINES_DIR / target / "engine.json").read_text(encoding="utf-8"))
    element = ELEMENT_BYTES[plan["dtype"]]
    kv_cache = plan["num_blocks"] * plan["block_size"] * spec.kv_bytes_per_token(element)
    weights = spec.num_parameters * weight_bytes(plan["dtype"], plan["linear"])
    return MemoryNeed(spec, element, weights, kv_cache, int(plan["max_seq_len"]))


def weight_bytes(dtype: str, linear: str) -> int:
    """Bytes of one weight as linear layers of a kind hold it."""
    return ELEMENT_BYTES["float32" if linear == "onednn_float32" else dtype]


def _smaller_engine(
    spec: ModelSpec, memory_bytes: int, element: int, longest: int, target: str
) -> dict[str, str | int]:
    """Settings of an engine for this target that this memory holds."""
    if target != "onnx":
        return _smaller(spec, memory_bytes, min(element, 2), longest)
    smaller = _smaller(spec, memory_bytes, element, longest)  # it computes in float32 whatever the weights are
    return {name: value for name, value in smaller.items() if name == "max_seq_len"}


def _smaller(spec: ModelSpec, memory_bytes: int, element: int, longest: int) -> dict[str, str | int]:
    """Settings of an engine in bfloat16 that this memory holds with one longest request; none where none fits."""
    left = int(memory_bytes * USABLE_SHARE) - spec.num_parameters * element
    tokens = min(left // spec.kv_bytes_per_token(element), longest)
    if tokens < MIN_USEFUL_TOKENS:
        return {}
    return {"dtype": "bfloat16", "max_seq_len": tokens, "kv_cache_tokens": tokens}


def as_text(readiness: Readiness) -> str:
    """One line a check, then the verdict."""
    width = max(len(finding.check) for finding in readiness.findings)
    lines = [f"{finding.check:{width}}  {finding.level:5}  {finding.text}" for finding in readiness.findings]
    if readiness.runs:
        return "\n".join([*lines, f"yes: {readiness.bundle} runs here"])
    failures = [finding for finding in readiness.findings if finding.level == "fails"]
    reasons = "; ".join(finding.text for finding in failures)
    if not any(finding.rebuilding_helps for finding in failures):
        return "\n".join([*lines, f"no: {readiness.bundle} does not run here: {reasons}"])
    remedy = f"build it again with:\n  {readiness.rebuild}" if readiness.rebuild else (
        "its manifest cannot be read, so the command that built it is not known; copy the bundle again")  # fmt: skip
    return "\n".join([*lines, f"no: {readiness.bundle} does not run here: {reasons}", remedy])


def as_json(readiness: Readiness) -> str:
    return json.dumps({**asdict(readiness), "runs": readiness.runs}, indent=2)
