"""A bundle in words. Loads no weights."""

import json
from pathlib import Path
from typing import Any

from runtime.formats.attestations import not_run
from runtime.formats.bundle import ATTESTATIONS_DIR, Bundle


def describe(bundle: Bundle) -> str:
    """What it is, where it came from, what it needs and how it was verified."""
    manifest = bundle.manifest
    spec, source = manifest["model"]["spec"], manifest["provenance"]["source"]
    num_bytes = sum(entry["size_bytes"] for entry in manifest["files"].values())
    lines = [
        f"bundle    {bundle.bundle_id}",
        f"model     {manifest['model']['name']}: {spec['architecture']}, {spec['num_hidden_layers']} layers, "
        f"hidden {spec['hidden_size']}, vocabulary {spec['vocab_size']}, weights in {spec['dtype']}",
        f"source    {source['uri']} ({source['revision']})",
        f"files     {len(manifest['files'])}, {num_bytes / 1e6:.1f} MB, every one as the manifest says",
    ]
    for target, needs in sorted(manifest["targets"].items()):
        limits = ", ".join(f"{name} {value}" for name, value in needs["limits"].items())
        lines.append(f"target    {target}: {needs['dtype']}, arch {needs['arch']}, {limits}")
    return "\n".join([*lines, f"verified  {_verified(bundle.path)}"])


def _verified(path: Path) -> str:
    report = path / ATTESTATIONS_DIR / "verify" / "report.json"
    if reason := not_run(report):
        return f"NOT VERIFIED: {reason}"
    try:
        engine: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["engine"]
        logits = engine["figures"]["logits"]
        return (
            f"{'passed' if engine['passed'] else 'FAILED'}: greedy agreement {logits['greedy_agreement']:.2%}, "
            f"mean KL {logits['mean_kl_nats']:.2e} nats, perplexity x{engine['figures']['perplexity_ratio']:.4f}"
        )
    except (OSError, ValueError, KeyError):
        return "no report in this bundle; run python -m runtime verify"
