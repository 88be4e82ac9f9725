"""A bundle in words, or as plain data. Loads no weights and no torch."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from runtime.formats.attestations import (
    BENCH_SUMMARY,
    VERIFY_REPORT,
    Verified,
    device,
    for_target,
    not_run,
    read_measured,
    read_verified,
)
from runtime.formats.bundle import Bundle
from runtime.formats.rebuild import rebuild_command
from runtime.formats.tensorrt_llm import TARGET, TensorrtLlmPlan


def describe(bundle: Bundle) -> str:
    """What it is, where it came from, what it needs, how it was verified and how fast it was."""
    manifest = bundle.manifest
    spec, source = manifest["model"]["spec"], manifest["provenance"]["source"]
    lines = [
        f"bundle    {bundle.bundle_id}",
        f"model     {manifest['model']['name']}: {spec['architecture']}, {spec['num_hidden_layers']} layers, "
        f"hidden {spec['hidden_size']}, vocabulary {spec['vocab_size']}, weights in {spec['dtype']}",
        f"source    {source['uri']} ({source['revision']})",
        *(f"          {entry['path']} sha256:{entry['sha256']}" for entry in source.get("files", [])),
        *(f"          {name.replace('_', ' ')} {value}" for name, value in _digests(bundle)),
        f"rebuild   {rebuild_command(bundle.path, manifest)}",
    ]
    for target, needs in sorted(manifest["targets"].items()):
        lines += [f"target    {target}: {needs['dtype']}, arch {needs['arch']}, {_pairs(needs['limits'])}"]
        lines += [f"          requires {_pairs(needs['requires'])}"] if needs.get("requires") else []
        lines += _gpus(needs)
        lines += _hosted(bundle) if target == TARGET else []
    verified = [f"verified  {_verified(bundle)}", *_others_verified(bundle)]
    return "\n".join([*lines, *_files(bundle), *verified, *_bench(bundle), *_others_bench(bundle)])


def _gpus(needs: dict[str, Any]) -> Iterator[str]:
    """What a target's kernels were built for and by."""
    if archs := needs.get("archs"):
        never = needs.get("never_run", [])
        told = ", ".join(f"{arch} (never run)" if arch in never else arch for arch in archs)
        made = f"kernels for {told}; NVRTC {needs['nvrtc']}" if "nvrtc" in needs else f"a plan for {told}"
        yield f"          {made}, driver {needs['minimum_driver']} or newer"


def _others_verified(bundle: Bundle) -> Iterator[str]:
    """What the build found of each engine but the CPU's."""
    for target in sorted(set(bundle.manifest["targets"]) - {"cpu"}):
        if reason := not_run(bundle.path / for_target(VERIFY_REPORT, target)):
            yield f"          {target}: NOT VERIFIED: {reason}"
        elif (report := read_verified(bundle.path, target)) is not None:
            yield f"          {target}: {_gate(report)}"


def _hosted(bundle: Bundle) -> Iterator[str]:
    """How far the engine for TensorRT-LLM was taken, and what takes it on."""
    plan = TensorrtLlmPlan.read(bundle.engine_dir(TARGET))
    yield f"          tp {plan.tp_size}, pp {plan.pp_size}, drafts: {plan.speculation}"
    if plan.without_drafter:
        yield f"          without the bundle's drafter: {plan.without_drafter}"
    if plan.built_for:
        yield f"          engine built for {plan.built_for}"
    elif plan.flow == "build":
        yield f"          NOT BUILT: TensorRT-LLM {plan.version} was not where the bundle was built"
    yield f"          {' '.join(plan.command)}"


def as_data(bundle: Bundle) -> dict[str, Any]:
    """The same for machines: the whole manifest, and what the attestations say (null where absent)."""
    verified, measured = read_verified(bundle.path), read_measured(bundle.path)
    return {
        "bundle_id": bundle.bundle_id,
        "path": str(bundle.path),
        "rebuild": rebuild_command(bundle.path, bundle.manifest),
        "size_bytes": _size(bundle),
        "manifest": dict(bundle.manifest),
        "verified": asdict(verified) if verified else None,
        "measured": asdict(measured) if measured else None,
    }


def as_json(bundle: Bundle) -> str:
    return json.dumps(as_data(bundle), indent=2)


def _digests(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What else of the provenance is one word: the digests of configuration and code."""
    yield from ((key, value) for key, value in bundle.manifest["provenance"].items() if isinstance(value, str))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _size(bundle: Bundle) -> int:
    return sum(entry["size_bytes"] for entry in bundle.manifest["files"].values())


def _files(bundle: Bundle) -> Iterator[str]:
    files = bundle.manifest["files"]
    yield f"files     {len(files)}, {_size(bundle) / 1e6:.1f} MB, every one as the manifest says"
    width = max(map(len, files), default=0)
    yield from (f"          {name:{width}} {entry['size_bytes']:>14,} bytes" for name, entry in sorted(files.items()))


def _verified(bundle: Bundle) -> str:
    if reason := not_run(bundle.path / VERIFY_REPORT):
        return f"NOT VERIFIED: {reason}"
    if "cpu" not in bundle.manifest["targets"]:
        return "no engine for the CPU"
    report = read_verified(bundle.path)
    if report is None:
        return "no report in this bundle; run python -m runtime verify"
    return _gate(report)


def _gate(report: Verified) -> str:
    return (
        f"{'passed' if report.passed else 'FAILED'}: greedy agreement {report.greedy_agreement:.2%}, "
        f"mean KL {report.mean_kl_nats:.2e} nats, perplexity x{report.perplexity_ratio:.4f}; on "
        f"{device(report.hardware)}"
    )


def _bench(bundle: Bundle) -> Iterator[str]:
    """The medians of the engine, a line for each workload."""
    if reason := not_run(bundle.path / BENCH_SUMMARY):
        yield f"bench     NOT MEASURED: {reason}"
        return
    measured = read_measured(bundle.path)
    if measured is None:
        yield "bench     no measurement in this bundle; run python -m runtime bench"
        return
    yield f"bench     medians on {device(measured.hardware, measured.cpu)}"
    for (case, batch_size, prompt_len), (median, ratio) in measured.speeds().items():
        beside = f" ({ratio:.2f}x transformers)" if ratio is not None else ""
        yield f"          {case:8} batch {batch_size:3} prompt {prompt_len or 'mixed':>5}: {median:,.0f} tok/s{beside}"


def _others_bench(bundle: Bundle) -> Iterator[str]:
    """The same of each engine but the CPU's, beside that one where both were measured in one run."""
    for target in sorted(set(bundle.manifest["targets"]) - {"cpu"}):
        measured = read_measured(bundle.path, target)
        if measured is None:  # it says itself why
            continue
        of_cpu = measured.speeds("enginewright_cpu")
        yield f"          {target}, medians on {device(measured.hardware, measured.cpu)}"
        for key, (median, _) in measured.speeds().items():
            beside = f" ({median / of_cpu[key][0]:.2f}x cpu)" if key in of_cpu else ""
            yield f"          {key[0]:8} batch {key[1]:3} prompt {key[2] or 'mixed':>5}: {median:,.0f} tok/s{beside}"
