"""Rotary scaling as sources state it, turned into RopeScaling with every default resolved.

The formulas that use it are the runtime's (runtime/model/rope.py).
"""

from collections.abc import Mapping
from math import log, pi
from typing import TYPE_CHECKING, Any

from runtime.errors import EnginewrightError
from runtime.spec import RopeScaling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Llama 3.1 and later: the rule's bounds, and the length the models were pretrained on.
LLAMA3_LOW_FREQ_FACTOR = 1.0
LLAMA3_HIGH_FREQ_FACTOR = 4.0
LLAMA3_ORIGINAL_LEN = 8192

KINDS = ("default", "linear", "llama3", "yarn")


def from_hf(fields: Mapping[str, Any], max_position_embeddings: int, origin: str) -> RopeScaling:
    """Read a Hugging Face `rope_parameters` or `rope_scaling` object; `origin` names the file in errors."""
    if any(isinstance(value, Mapping) for value in fields.values()):
        raise EnginewrightError(
            f"{origin}: rotary settings differ by layer ({', '.join(fields)}); all must be the same"
        )
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in KINDS:
        raise EnginewrightError(f"{origin}: rope scaling {kind!r} is not supported; {', '.join(KINDS)} are")
    if fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise EnginewrightError(
            f"{origin}: partial_rotary_factor is {fields['partial_rotary_factor']}; only whole heads (1.0) can rotate"
        )
    try:
        if kind == "default":
            return RopeScaling()
        original = int(fields.get("original_max_position_embeddings") or max_position_embeddings)
        if kind == "linear":
            return RopeScaling("linear", factor=float(fields["factor"]))
        if kind == "llama3":
            return RopeScaling(
                "llama3",
                factor=float(fields["factor"]),
                original_max_position_embeddings=original,
                low_freq_factor=float(fields["low_freq_factor"]),
                high_freq_factor=float(fields["high_freq_factor"]),
            )
        return _yarn_from_hf(fields, max_position_embeddings, original, origin)
    except (KeyError, TypeError, ValueError) as error:
        raise EnginewrightError(f"{origin}: rope scaling {kind!r} is incomplete ({error!r}); fetch it again") from error


def _yarn_from_hf(fields: Mapping[str, Any], max_len: int, original: int, origin: str) -> RopeScaling:
    if not fields.get("truncate", True):
        raise EnginewrightError(f"{origin}: yarn rope scaling with truncate = false is not supported; true is")
    factor = float(fields.get("factor") or max_len / original)
    mscale, mscale_all_dim = fields.get("mscale"), fields.get("mscale_all_dim")
    attention_factor = fields.get("attention_factor")
    if attention_factor is None:
        attention_factor = yarn_attention_factor(factor)
        if mscale and mscale_all_dim:
            attention_factor = yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=float(fields.get("beta_fast") or 32.0),
        beta_slow=float(fields.get("beta_slow") or 1.0),
        attention_factor=float(attention_factor),
    )


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What the cosines and sines are multiplied by (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * log(factor) + 1.0


def llama3_from_factors(factors: "npt.NDArray[np.float32]", theta: float, head_dim: int, origin: str) -> RopeScaling:
    """Recover the llama3 rule from the per-frequency divisors (D/2,) that a GGUF file stores in its place.

    Raises:
        EnginewrightError: the divisors are not that rule's.
    """
    import numpy as np

    scaling = RopeScaling(
        "llama3",
        factor=float(factors.max()),
        original_max_position_embeddings=LLAMA3_ORIGINAL_LEN,
        low_freq_factor=LLAMA3_LOW_FREQ_FACTOR,
        high_freq_factor=LLAMA3_HIGH_FREQ_FACTOR,
    )
    expected = llama3_factors(scaling, theta, head_dim)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise EnginewrightError(
            f"{origin}: rope_freqs.weight is not Llama 3's rule with factor {scaling.factor:g} over "
            f"{LLAMA3_ORIGINAL_LEN} positions; give the model as safetensors"
        )
    return scaling


def llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> "npt.NDArray[np.float64]":
    """The divisor of each rotary frequency, (D/2,): 1 for short wavelengths, `factor` for long ones."""
    import numpy as np

    wavelengths = 2 * pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((scaling.original_max_position_embeddings / wavelengths - low) / (high - low), 0.0, 1.0)
    divisors: npt.NDArray[np.float64] = 1.0 / ((1.0 - smooth) / scaling.factor + smooth)
    return divisors
