"""What the command line does with a bundle besides generating: verify, measure and profile it where it is."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.benchmark.samples import Sample, summarise
from runtime.benchmark.settings import ProfileSettings, SuiteSettings
from runtime.benchmark.suite import run_suite, to_samples
from runtime.benchmark.systems import EngineSystem
from runtime.errors import EnginewrightError
from runtime.formats.attestations import not_run
from runtime.formats.bundle import open_bundle
from runtime.formats.engine_plan import EnginePlan
from runtime.formats.manifest import ATTESTATIONS_DIR
from runtime.formats.reference import REFERENCE_FILE, Reference
from runtime.loading import load_engine
from runtime.tuning import TUNE_DIR
from runtime.verification import Gates, figures_json, verify_engine

ReportProgress = Callable[[float, str], None]


def verify_bundle(path: Path, target: str, report: ReportProgress) -> dict[str, Any]:
    """Check a bundle's engine against the reference it carries, under the gates it was built with.

    Raises:
        EnginewrightError: the bundle is damaged or carries no reference.
    """
    bundle = open_bundle(path)
    folder = bundle.path / ATTESTATIONS_DIR / "verify"
    if reason := not_run(folder / "report.json"):
        raise EnginewrightError(
            f"{path}: carries no reference to verify against ({reason}); build it with verify=default"
        )
    reference = Reference.load(folder / REFERENCE_FILE)
    gates = _gates(folder / "report.json")
    engine = load_engine(bundle.checkpoint(), bundle.engine_dir(target), bundle.tokenizer(), bundle=bundle.path)
    figures = verify_engine(engine, reference, report)
    return {"bundle": bundle.bundle_id, "target": target, **figures_json(figures, gates)}


def bench_bundle(
    path: Path, target: str, settings: SuiteSettings, output: Path | None, report: ReportProgress
) -> str:  # fmt: skip
    """Measure a bundle's engine and return a table of medians; `output` gets every timed run.

    Raises:
        EnginewrightError: the bundle is damaged, nothing that was asked for fits it, or `output` cannot be written.
    """
    bundle = open_bundle(path)
    checkpoint = bundle.checkpoint()
    engine = load_engine(checkpoint, bundle.engine_dir(target), bundle.tokenizer(), bundle=bundle.path)
    systems = {"enginewright": EngineSystem(engine)}
    settings = settings.fitted(EnginePlan.read(bundle.engine_dir(target)).max_seq_len)
    if output is not None:
        _write(output, "")  # a path that cannot be written fails before the work
    runs = list(run_suite(systems, settings, checkpoint.spec.vocab_size, report))
    if output is not None:
        _write(output, "".join(json.dumps(asdict(run)) + "\n" for run in runs))
    return _table([sample for run in runs for sample in to_samples(run)])


def profile_bundle(path: Path, target: str, settings: ProfileSettings, as_json: bool) -> str:
    """Say where a bundle's engine spends its time and memory.

    Raises:
        EnginewrightError: the bundle is damaged, or its engine does not hold what was asked for.
    """
    from runtime.benchmark.profile import profile_engine
    from runtime.benchmark.profile_text import as_text

    bundle = open_bundle(path)
    checkpoint = bundle.checkpoint()
    engine = load_engine(checkpoint, bundle.engine_dir(target), bundle.tokenizer())
    profile = profile_engine(engine, checkpoint.spec, settings)
    if as_json:
        return json.dumps(
            {"bundle": bundle.bundle_id, "target": target, **asdict(settings), **asdict(profile)}, indent=1
        )
    return as_text(profile, settings)


def tune_bundle(path: Path, report: ReportProgress) -> Path:
    """Measure which kernels of a bundle's CUDA engine are fastest on this GPU, and keep it in its attestations.

    Raises:
        EnginewrightError: the bundle is damaged, its engine does not run here, or its folder cannot be written.
    """
    from runtime.cuda_engine import tune

    bundle = open_bundle(path)
    return tune(bundle.checkpoint(), bundle.engine_dir("cuda"), bundle.path / ATTESTATIONS_DIR / TUNE_DIR, report)


def _gates(path: Path) -> Gates:
    try:
        return Gates(**json.loads(path.read_text(encoding="utf-8"))["engine"]["gates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: no verification gates ({error!r}); build the bundle again") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _table(samples: list[Sample]) -> str:
    lines = [f"{'case':8} {'batch':>5} {'prompt':>6} {'median':>10} {'min':>10} {'max':>10} unit"]
    lines += [
        f"{row.case:8} {row.batch_size:5} {row.prompt_len or 'mixed':>6} {row.median:10.1f} {row.min:10.1f} "
        f"{row.max:10.1f} {row.unit}"
        for row in summarise(samples)
    ]
    return "\n".join(lines)
