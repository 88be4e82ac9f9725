"""The command that builds a bundle again, from what its manifest and its engine's plan say."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.cuda.archs import ARCHS, RTX_ARCHS
from runtime.formats.attestations import BENCH_SUMMARY
from runtime.formats.bundle import DRAFT_DIR, DRAFT_FILE, ENGINES_DIR

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
PLAN_SETTINGS = ("max_batch_size", "max_seq_len", "max_num_tokens", "block_size")
OWN_SETTINGS = {"cpu": "linear", "cuda": "kv_cache_fraction"}
SLOT_SETTINGS = ("max_batch_size", "max_seq_len", "max_num_tokens", "dtype")  # of engines with a slot for each request
HOSTED = "tensorrt_llm"  # whose plan holds its settings as they were
PLAN_TARGETS = {"tensorrt_rtx": ("weights",),
                "tensorrt": ("weights", "attention", "hardware", "version_compatible")}  # fmt: skip
RECIPE_FILE = "recipe.json"  # of a draft head
BENCH_SETTINGS = ("batch_sizes", "prompt_lens", "new_tokens")


def rebuild_command(folder: Path, manifest: Mapping[str, Any], target: str = "", **changes: str | int) -> str:
    """The exact `make engine` line; one with the name of a local source leaves its place to the reader.

    Args:
        target: one that the bundle is to have, besides those that it has.
        changes: settings of the target that differ from the bundle's, such as `linear="torch"`.
    """
    origin, dtype = manifest["provenance"], str(changes.pop("dtype", manifest["model"]["spec"].get("dtype")))
    targets = sorted({*manifest["targets"], target} - {""})
    overrides = [f"package.name={manifest['model']['name']}"]
    for name in targets:
        overrides += _settings(folder, manifest, name, changes if name == target else {})
    overrides += [*_draft(folder / DRAFT_DIR, origin), *_bench(folder), *_pin("model", origin["source"])]
    parts = ["make engine", f"MODEL={shlex.quote(_address(origin['source']))}", f"TARGET={','.join(targets)}"]
    parts += [f"PRECISION={PRECISIONS[dtype]}"] if dtype in PRECISIONS else []
    return " ".join([*parts, f"ARGS={shlex.quote(' '.join(overrides))}"])


def _settings(folder: Path, manifest: Mapping[str, Any], target: str, changes: Mapping[str, str | int]) -> list[str]:
    """One target's overrides."""
    needs = manifest["targets"].get(target, {})
    settings = {**needs.get("limits", {}), **_plan(folder / ENGINES_DIR / target), **changes}
    archs = needs.get("archs", [])
    usual = {"cuda": ARCHS, "tensorrt_rtx": RTX_ARCHS}.get(target)
    if usual and archs and sorted(archs) != sorted(usual):
        settings["archs"] = f"[{','.join(archs)}]"
    return [f"target.{target}.{name}={value}" for name, value in sorted(settings.items())]


def _address(source: Mapping[str, Any]) -> str:
    is_address = str(source["uri"]).startswith(("pypi:", "hub:"))
    return str(source["uri"]) if is_address else f"<path of {source['uri']}>"


def _pin(key: str, source: Mapping[str, Any]) -> list[str]:
    kind, _, digest = str(source["revision"]).partition(":")
    return [f"{key}.sha256={digest}"] if kind == "sha256" else []


def _draft(folder: Path, origin: Mapping[str, Any]) -> list[str]:
    """What drafts for the engine; nothing where a bundle is older than drafters or its folder cannot be read."""
    try:
        fields = json.loads((folder / DRAFT_FILE).read_text(encoding="utf-8"))
        drafter = fields["drafter"]
        if drafter == "model":
            source = origin["draft_source"]
            return ["draft=model", f"draft.source={_address(source)}", "draft.keep=true", *_pin("draft.model", source)]
        if drafter != "redrafter":
            return [f"draft={drafter}"]
        recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    settings = recipe.get("settings")  # not in the recipes of the first shipped heads
    if settings is None or fields.get("shipped"):
        return ["draft=ready"]
    trained = [f"draft.train.{name}={value}" for name, value in sorted(settings.items()) if value != ""]
    return ["draft=train", "draft.keep=true", *trained]


def _plan(folder: Path) -> dict[str, Any]:
    """The settings of an engine's plan that a build takes; none where the plan cannot be read."""
    try:
        plan = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        if plan.get("target") == HOSTED:
            return dict(plan["settings"])
        if plan.get("target") == "onnx":
            spare = plan["num_blocks"] - plan["max_batch_size"]
            return {name: plan[name] for name in SLOT_SETTINGS} | {"prefix_slots": spare}
        if own_plan := PLAN_TARGETS.get(plan.get("target")):
            described = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
            settings = {name: plan[name] for name in SLOT_SETTINGS if name != "dtype"}
            return settings | {name: described[name] for name in own_plan if described[name] not in ("", False)}
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
