"""Package: everything an engine needs in one folder, with a manifest that is the same whenever the inputs are."""

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.codedigest import code_digest
from pipelines.config import PackageConfig
from pipelines.digest import json_digest
from pipelines.links import link_tree
from pipelines.sbom import LIBRARY as SBOM_LIBRARY
from pipelines.sbom import write_sbom
from pipelines.stage import Artifact, StageContext, StageOutput
from runtime.formats.attestations import NOT_RUN
from runtime.targets import installed

# Stages whose code decides the bytes that the manifest vouches for.
DETERMINING_STAGES = ("fetch", "convert", "draft", "compile", "compile_cuda", "compile_onnx", "compile_tensorrt_rtx",
                      "compile_tensorrt", "compile_tensorrt_llm")  # fmt: skip
# Those whose libraries may be missing, and are of no interest to bundles without their engines.
OPTIONAL_STAGES = {"compile_tensorrt_rtx": "tensorrt-rtx", "compile_tensorrt": "tensorrt"}
# Each target's compile stage.
COMPILING_STAGES = {"cpu": "compile", "cuda": "compile_cuda", "onnx": "compile_onnx",
                    "tensorrt_rtx": "compile_tensorrt_rtx", "tensorrt": "compile_tensorrt",
                    "tensorrt_llm": "compile_tensorrt_llm"}  # fmt: skip
# Stages that a build may leave out, and the file in which each says what it found.
ATTESTING_STAGES = {"verify": "report.json", "bench": "summary.json"}


class PackageStage:
    name = "package"
    hardware_bound = False
    resources: tuple[Path, ...] = ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """The bill of materials names what the stages before ran with."""
        stages = [stage for stage in DETERMINING_STAGES if installed(OPTIONAL_STAGES.get(stage, SBOM_LIBRARY))]
        return (*_determining_libraries(stages), SBOM_LIBRARY)

    def run(
        self, config: PackageConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write the bundle and open it as a user would."""
        from runtime.formats.bundle import DRAFT_DIR, ENGINES_DIR, open_bundle
        from runtime.formats.manifest import ATTESTATIONS_DIR, write_manifest
        from runtime.tuning import TUNE_DIR

        link_tree(inputs["convert"].path, out_dir)
        link_tree(inputs["draft"].path, out_dir / DRAFT_DIR)
        targets = {target: stage for target, stage in COMPILING_STAGES.items() if stage in inputs}
        for target, stage in targets.items():
            link_tree(inputs[stage].path, out_dir / ENGINES_DIR / target)
        for stage, report in attesting_stages(targets).items():
            folder = out_dir / ATTESTATIONS_DIR / stage
            if stage in inputs:
                link_tree(inputs[stage].path, folder)
            else:
                _say_not_run(folder / report, _why_not_run(stage, inputs))
        if "tune_cuda" in inputs:
            link_tree(inputs["tune_cuda"].path, out_dir / ATTESTATIONS_DIR / TUNE_DIR)
        context.progress.advance(0.5, text="hashing")
        determining = [stage for stage in DETERMINING_STAGES if stage in inputs]
        needs = {target: _needs(target, inputs[stage].path) for target, stage in targets.items()}
        draft_fetched = inputs["draft_fetch"].path if "draft_fetch" in inputs else None
        write_sbom(out_dir, config.name, inputs["fetch"].path, _determining_libraries(determining), draft_fetched)
        write_manifest(out_dir, _model(config, inputs), needs, _provenance(inputs, determining))
        context.progress.advance(0.8, text="opening the bundle")
        bundle = open_bundle(out_dir)
        num_bytes = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
        return StageOutput(
            metrics={"bundle_bytes": num_bytes}, summary=f"id {bundle.bundle_id[:12]}, {num_bytes / 1e6:.1f} MB"
        )


def attesting_stages(targets: Iterable[str]) -> dict[str, str]:
    """The stages that check and measure a bundle of these targets, and the report of each."""
    others = [target for target in targets if target != "cpu"]
    return ATTESTING_STAGES | {
        f"{stage}_{target}": report for target in others for stage, report in ATTESTING_STAGES.items()
    }


def _determining_libraries(names: Iterable[str]) -> tuple[str, ...]:
    stages = [import_module(f"pipelines.stages.{stage}").STAGE for stage in names]
    return tuple(sorted({library for stage in stages for library in stage.libraries}))


def _model(config: PackageConfig, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    checkpoint = json.loads((inputs["convert"].path / "config.json").read_text(encoding="utf-8"))
    return {"name": config.name, "spec": checkpoint}


def _needs(target: str, engine_dir: Path) -> dict[str, Any]:
    return _tensorrt_llm_compatibility(engine_dir) if target == "tensorrt_llm" else _compatibility(engine_dir)


def _tensorrt_llm_compatibility(engine_dir: Path) -> dict[str, Any]:
    from runtime.formats.tensorrt_llm import TensorrtLlmPlan

    plan = TensorrtLlmPlan.read(engine_dir)
    return {
        "arch": "nvidia",
        "built_for": plan.built_for,
        "dtype": plan.dtype,
        "limits": {name: getattr(plan, name) for name in ("max_batch_size", "max_seq_len", "max_num_tokens")},
        "requires": {"tensorrt_llm": f"=={plan.version}"},
        "speculation": plan.speculation,
        "topology": {"tensor_parallel": plan.tp_size, "pipeline_parallel": plan.pp_size},
    }


def _compatibility(engine_dir: Path) -> dict[str, Any]:
    """What the engine needs of the machine that runs it."""
    from runtime.formats.engine_plan import EnginePlan

    plan = EnginePlan.read(engine_dir)
    common = {
        "dtype": plan.dtype,
        "limits": {name: getattr(plan, name) for name in ("max_batch_size", "max_seq_len", "max_num_tokens")},
        "topology": {"tensor_parallel": 1},
    }
    if plan.target == "cuda":
        return common | _cuda_compatibility(engine_dir)
    if plan.target == "onnx":
        return common | {"arch": "any", "requires": {"torch": ">=2.11", "onnxruntime": ">=1.32"}}
    if plan.target in ("tensorrt_rtx", "tensorrt"):
        from runtime.formats.tensorrt_plan import TensorrtPlan

        return common | TensorrtPlan.read(engine_dir).compatibility()
    requires = {"torch": ">=2.11"} | ({"torch_backend": "onednn"} if plan.linear != "torch" else {})
    return common | {"arch": "any", "requires": requires}  # torch dispatches on the CPU it finds


def _cuda_compatibility(engine_dir: Path) -> dict[str, Any]:
    from runtime.formats.kernel_list import KernelList

    kernels = KernelList.read(engine_dir)
    return {
        "arch": "nvidia",
        "archs": list(kernels.archs),
        "never_run": list(kernels.never_run),
        "minimum_driver": kernels.minimum_driver,
        "nvrtc": kernels.nvrtc,
        "requires": {"torch": ">=2.11", "cuda-bindings": ">=13.0"},
    }


def _provenance(inputs: Mapping[str, Artifact], determining: Iterable[str]) -> dict[str, Any]:
    """Where the bytes come from: nothing that differs between two builds of the same inputs."""
    source = json.loads((inputs["fetch"].path / "source.json").read_text(encoding="utf-8"))
    described = {"convert": "config.json"} | dict.fromkeys(COMPILING_STAGES.values(), "engine.json")
    settings = [
        json.loads((inputs[stage].path / name).read_text(encoding="utf-8"))
        for stage, name in described.items()
        if stage in inputs
    ]
    code = {stage: code_digest(f"pipelines.stages.{stage}") for stage in determining}
    drafting = {}
    if "draft_fetch" in inputs:
        drafting["draft_source"] = json.loads((inputs["draft_fetch"].path / "source.json").read_text(encoding="utf-8"))
    digests = {"config_digest": json_digest(settings), "code_digest": json_digest(code)}
    return {"source": source, **drafting, **digests}


def _say_not_run(report: Path, reason: str) -> None:
    """A missing report could be a lost one: say that there never was any."""
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({NOT_RUN: reason}, indent=2) + "\n", encoding="utf-8")


def _why_not_run(stage: str, inputs: Mapping[str, Artifact]) -> str:
    """Why a build has no report of a stage: nobody wanted it, or no machine's build runs that engine."""
    from runtime.formats.tensorrt_llm import TensorrtLlmPlan

    option, _, target = stage.partition("_")
    if target == "tensorrt_llm":
        return TensorrtLlmPlan.read(inputs[COMPILING_STAGES[target]].path).not_run
    if stage == "bench" and COMPILING_STAGES["cpu"] not in inputs:
        return "this bundle has no engine for the CPU"
    return f"built with {option}=off"


STAGE = PackageStage()
