"""The README of a published bundle: what it is, how it was verified and how fast it was, how to run it.

Every figure is one that the bundle's attestations state, with the machine it was measured on; what they lack is said.
"""

from collections.abc import Iterator
from typing import Any

from pipelines.publish.licence import licence_of
from pipelines.sources import hub_address
from runtime.formats.attestations import (
    BENCH_SUMMARY,
    VERIFY_REPORT,
    device,
    not_run,
    read_accepted_lengths,
    read_measured,
    read_verified,
)
from runtime.formats.bundle import Bundle


def model_card(bundle: Bundle, repo: str) -> str:
    """The card as Markdown with the Hub's front matter; the same for the same bundle."""
    manifest = bundle.manifest
    spec, source = manifest["model"].get("spec", {}), manifest["provenance"].get("source")
    source = source if isinstance(source, dict) else {}
    size = sum(entry["size_bytes"] for entry in manifest["files"].values())
    lines = [
        *front_matter(licence_of(bundle.path), str(source.get("uri", ""))),
        f"# {manifest['model']['name']}",
        "",
        f"An engine bundle of Enginewright: {spec.get('architecture', 'a decoder-only model')} in "
        f"{spec.get('dtype', 'its own dtype')}, for {', '.join(bundle.targets)}; {size / 1e6:.1f} MB.",
        "",
        f"- bundle id: `{bundle.bundle_id}`",
        *([f"- source: `{source['uri']}` at `{source['revision']}`"] if source else []),
        "",
        "## Verified",
        "",
        *verified(bundle),
        "",
        "## Measured",
        "",
        *measured(bundle),
        "",
        "## Run it",
        "",
        "```sh",
        f"enginewright pull hub:{repo} {manifest['model']['name']}",
        f'python -m runtime generate {manifest["model"]["name"]} --prompt "The capital of France is"',
        f"python -m runtime verify {manifest['model']['name']}   # the gate again, on this machine",
        "```",
        "",
        "Loading checks every file against the manifest. There is no pickle in it.",
        "",
    ]
    return "\n".join(lines)


def front_matter(licence: str, uri: str) -> Iterator[str]:
    """What the Hub reads."""
    yield from ("---", "library_name: enginewright", "pipeline_tag: text-generation")
    if licence:
        yield f"license: {licence.lower()}"
    if uri.startswith(hub_address.SCHEME):
        yield f"base_model: {hub_address.parse_address(uri).repo}"
    yield from ("---", "")


def verified(bundle: Bundle) -> Iterator[str]:
    """The engine gate in one line."""
    report = read_verified(bundle.path)
    if report is None:
        yield f"Not verified ({not_run(bundle.path / VERIFY_REPORT) or 'the bundle has no report'})."
        return
    yield (
        f"{'Passed' if report.passed else 'FAILED'} on {device(report.hardware)}, against transformers in fp32 on the "
        f"same weights: greedy agreement {report.greedy_agreement:.2%}, mean KL {report.mean_kl_nats:.2e} nats, "
        f"perplexity ratio {report.perplexity_ratio:.4f}."
    )


def measured(bundle: Bundle) -> Iterator[str]:
    """A table of the engine's medians, and what drafting gave."""
    found = read_measured(bundle.path)
    if found is None:
        yield f"Not measured ({not_run(bundle.path / BENCH_SUMMARY) or 'the bundle has no summary'})."
        return
    yield f"Medians in tokens per second on {device(found.hardware, found.cpu)}."
    yield from ("", "| workload | tokens/s | to transformers |", "|---|---|---|")
    for (case, batch_size, prompt_len), (median, ratio) in found.speeds().items():
        prompt = f"prompt {prompt_len}" if prompt_len else "mixed prompts"
        yield f"| {case}, batch {batch_size}, {prompt} | {median:,.1f} | {_ratio(ratio)} |"
    lengths = read_accepted_lengths(bundle.path)
    yield from ([""] if lengths else [])
    yield from (f"Drafting with {name}: {length:.2f} tokens per step." for name, length in lengths.items())


def _ratio(ratio: Any) -> str:
    return f"{ratio:.2f}" if ratio is not None else "not measured"
