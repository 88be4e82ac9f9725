"""Read a model spec out of a Hugging Face config.json."""

import json
from pathlib import Path
from typing import Any

from pipelines.convert.families import Family, hf_family
from pipelines.convert.rope import from_hf
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec

CONFIG = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        EnginewrightError: the file is missing, unreadable, or holds something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnginewrightError(f"{path}: cannot be read as JSON ({error}); fetch the source again") from error
    if not isinstance(fields, dict):
        raise EnginewrightError(f"{path}: holds a {type(fields).__name__}, not an object; fetch the source again")
    return fields


def read_spec(config: dict[str, Any], origin: str) -> ModelSpec:
    """The model that a config.json describes; `origin` names the file in errors.

    Raises:
        EnginewrightError: a key is missing or says something that this version cannot represent.
    """
    architectures = config.get("architectures") or ["(none)"]
    family = hf_family(architectures[0], origin)
    _refuse_variants(config, family, origin)

    def require(key: str) -> Any:
        if not isinstance(config.get(key), int | float):
            raise EnginewrightError(f"{origin}: {key} is {config.get(key)!r}, not a number; fetch the source again")
        return config[key]

    hidden_size, num_heads = require("hidden_size"), require("num_attention_heads")
    max_len = require("max_position_embeddings")
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return ModelSpec(
        architecture=family.architecture,
        vocab_size=require("vocab_size"),
        hidden_size=hidden_size,
        num_layers=require("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or hidden_size // num_heads,
        intermediate_size=require("intermediate_size"),
        max_position_embeddings=max_len,
        norm_eps=float(require("rms_norm_eps")),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=from_hf(rope, max_len, origin),
        sliding_window=_sliding_window(config, family, origin),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def _refuse_variants(config: dict[str, Any], family: Family, origin: str) -> None:
    """Refuse what would convert without an error and give a wrong model."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise EnginewrightError(f"{origin}: hidden_act is {activation!r}; only silu is supported")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise EnginewrightError(f"{origin}: {key} is true, which {family.architecture} is not supported with")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        raise EnginewrightError(f"{origin}: the weights are quantized ({method}); give the unquantized model or a GGUF")


def _sliding_window(config: dict[str, Any], family: Family, origin: str) -> int | None:
    window: int | None = config.get("sliding_window", family.window_default)
    if not window or not config.get("use_sliding_window", family.window_default is not None):
        return None
    num_layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    full = types.count("full_attention") if types else min(config.get("max_window_layers", 0), num_layers)
    if full == num_layers:
        return None
    if full:
        raise EnginewrightError(
            f"{origin}: {full} of {num_layers} layers attend without the sliding window of {window}; "
            "all layers or none must have it"
        )
    return window
