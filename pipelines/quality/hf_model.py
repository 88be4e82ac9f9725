"""transformers' own models, filled with converted weights or loaded from the original source.

They are oracles for verification and opponents in benchmarks; nothing here runs in a served engine.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers import PreTrainedModel as Model
from transformers.utils import logging as hf_logging

from pipelines.quality.hf_config import hf_config
from runtime.errors import EnginewrightError
from runtime.formats.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, Checkpoint

OUTER_NAMES = {EMBEDDING: "model.embed_tokens.weight", FINAL_NORM: "model.norm.weight", LM_HEAD: "lm_head.weight"}
LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "attention.dense.weight": "self_attn.o_proj.weight",
    "post_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.fc.weight": "mlp.gate_proj.weight",
    "mlp.gate.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}


def load_converted(checkpoint: Checkpoint, dtype: torch.dtype, attention: str = "sdpa") -> Model:
    """Build transformers' model of the checkpoint's architecture and fill it with the checkpoint's weights.

    Tensors whose dtype is already `dtype` alias the checkpoint's mapped file. Rotary frequencies stay float32 in
    every dtype, as from_pretrained leaves them; `model.to(dtype)` would round them.

    Raises:
        EnginewrightError: the architecture is unknown, or its tensors are not the checkpoint's.
    """
    config = hf_config(checkpoint.spec)
    with _quiet():
        model, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=dict(hf_tensors(checkpoint)),
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    _require_filled(info, str(checkpoint.path))
    return model.eval()


def load_source(fetched: Path) -> Model:
    """Load what the fetch stage stored, in float32, by transformers alone: offline, without pickles or remote code.

    Raises:
        EnginewrightError: transformers cannot read it, or leaves tensors unfilled.
    """
    origin = json.loads((fetched / "source.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {"use_safetensors": True}
    if origin["kind"] == "gguf":
        options = {"gguf_file": next(entry["path"] for entry in origin["files"] if entry["path"].endswith(".gguf"))}
    try:
        # The GGUF reader's bar heeds no switch of transformers.
        with _quiet(), redirect_stderr(io.StringIO()):
            model, info = AutoModelForCausalLM.from_pretrained(
                fetched / "source",
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise EnginewrightError(f"{fetched / 'source'}: transformers cannot read this source ({reason})") from error
    _require_filled(info, str(fetched / "source"))
    return model.eval()


def hf_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (transformers' name, tensor): the fused QKV apart, everything else renamed."""
    sizes = [checkpoint.spec.q_size, checkpoint.spec.kv_size, checkpoint.spec.kv_size]
    for name, tensor in checkpoint.tensors():
        if name in OUTER_NAMES:
            yield OUTER_NAMES[name], tensor
            continue
        layer, part = name.removeprefix("transformer.layers.").split(".", 1)
        prefix = f"model.layers.{layer}."
        if part in LAYER_NAMES:
            yield prefix + LAYER_NAMES[part], tensor
        else:
            suffix = part.removeprefix("attention.qkv.")
            for letter, piece in zip("qkv", torch.split(tensor, sizes), strict=True):
                yield f"{prefix}self_attn.{letter}_proj.{suffix}", piece


def _require_filled(info: dict[str, Any], origin: str) -> None:
    faults = [(kind, sorted(map(str, info[kind]))) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    for kind, names in faults:
        if names:
            raise EnginewrightError(
                f"{origin}: transformers' model of this architecture has {len(names)} {kind.replace('_', ' ')}, "
                f"the first is {names[0]}; the model spec does not fit the weights"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' own bars and load reports: ours replace them."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
