"""The command that builds a bundle again, from what its manifest and its engine's plan say."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.cuda.archs import ARCHS
from runtime.formats.attestations import BENCH_SUMMARY
from runtime.formats.bundle import ENGINES_DIR

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PLAN_SETTINGS = ("max_batch_size", "max_seq_len", "max_num_tokens", "block_size")
OWN_SETTINGS = {"cpu": "linear", "cuda": "kv_cache_fraction"}
BENCH_SETTINGS = ("batch_sizes", "prompt_lens", "new_tokens")


def rebuild_command(folder: Path, manifest: Mapping[str, Any], target: str = "", **changes: str | int) -> str:
    """The exact `make engine` line; one with the name of a local source leaves its place to the reader.

    Args:
        target: one that the bundle is to have, besides those that it has.
        changes: settings of the target that differ from the bundle's, such as `linear="torch"`.
    """
    source, dtype = manifest["provenance"]["source"], str(changes.pop("dtype", manifest["model"]["spec"].get("dtype")))
    targets = sorted({*manifest["targets"], target} - {""})
    overrides = [f"package.name={manifest['model']['name']}"]
    for name in targets:
        overrides += _settings(folder, manifest, name, changes if name == target else {})
    overrides += _bench(folder)
    kind, _, digest = str(source["revision"]).partition(":")
    overrides += [f"model.sha256={digest}"] if kind == "sha256" else []
    is_address = str(source["uri"]).startswith(("pypi:", "hub:"))
    address = source["uri"] if is_address else f"<path of {source['uri']}>"
    parts = ["make engine", f"MODEL={shlex.quote(address)}", f"TARGET={','.join(targets)}"]
    parts += [f"PRECISION={PRECISIONS[dtype]}"] if dtype in PRECISIONS else []
    return " ".join([*parts, f"ARGS={shlex.quote(' '.join(overrides))}"])


def _settings(folder: Path, manifest: Mapping[str, Any], target: str, changes: Mapping[str, str | int]) -> list[str]:
    """One target's overrides."""
    needs = manifest["targets"].get(target, {})
    settings = {**needs.get("limits", {}), **_plan(folder / ENGINES_DIR / target), **changes}
    archs = needs.get("archs", [])
    if target == "cuda" and archs and sorted(archs) != sorted(ARCHS):
        settings["archs"] = f"[{','.join(archs)}]"
    return [f"target.{target}.{name}={value}" for name, value in sorted(settings.items())]


def _plan(folder: Path) -> dict[str, Any]:
    """The settings of an engine's plan that a build takes; none where the plan cannot be read."""
    try:
        plan = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        own = OWN_SETTINGS[plan.get("target", "cpu")]
        settings = {name: plan[name] for name in (*PLAN_SETTINGS, own)}
        return {**settings, "kv_cache_tokens": plan["num_blocks"] * plan["block_size"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _bench(folder: Path) -> list[str]:
    """What the bundle was measured with: other sizes might not fit its limits."""
    try:
        settings = json.loads((folder / BENCH_SUMMARY).read_text(encoding="utf-8"))["settings"]
        return [f"bench.{name}={str(settings[name]).replace(' ', '')}" for name in BENCH_SETTINGS]
    except (OSError, ValueError, KeyError, TypeError):
        return []
