"""Rotary position tables: inverse frequencies under every scaling the spec names, and cos/sin rows from them."""

import math
from typing import NamedTuple

import torch

from runtime.spec import ModelSpec, RopeScaling


class RopeTable(NamedTuple):
    """Rows by position. `sin` has its first half negated, so that x * cos + swapped_halves(x) * sin rotates x."""

    cos: torch.Tensor  # (positions, D)
    sin: torch.Tensor  # (positions, D)


def rope_table(spec: ModelSpec, num_positions: int, dtype: torch.dtype, device: str = "cpu") -> RopeTable:
    """Compute the table in float64 and round once."""
    positions = torch.arange(num_positions, dtype=torch.float64)
    angles = torch.outer(positions, inverse_frequencies(spec))
    scale = _attention_factor(spec.rope_scaling)
    cos, sin = torch.cos(angles) * scale, torch.sin(angles) * scale
    return RopeTable(*(torch.cat(halves, dim=1).to(device, dtype) for halves in ([cos, cos], [-sin, sin])))


def inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    """(D / 2,) float64: radians per position of each pair of dimensions.

    Sources: linear, Chen et al. (2023), "Position Interpolation"; llama3, the Llama 3.1 model card's recipe;
    yarn, Peng et al. (2023), "YaRN", section 3.2.
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    base = spec.rope_theta**-exponents
    scaling = spec.rope_scaling
    if scaling.kind == "none":
        return base
    if scaling.kind == "linear":
        return base / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(base, scaling)
    return _yarn(base, scaling, spec)


def _llama3(base: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    turns = scaling.original_max_position_embeddings * base / (2 * math.pi)  # full turns within the old context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return blend * base + (1 - blend) * base / scaling.factor


def _yarn(base: torch.Tensor, scaling: RopeScaling, spec: ModelSpec) -> torch.Tensor:
    """Pairs that turn over `beta_fast` times are kept, those under `beta_slow` interpolated, a ramp between."""

    def dimension_of(turns: float) -> float:
        wavelengths = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return spec.head_dim * math.log(wavelengths) / (2 * math.log(spec.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), spec.head_dim - 1)
    ramp = ((torch.arange(len(base), dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return ramp * base / scaling.factor + (1 - ramp) * base


def _attention_factor(scaling: RopeScaling) -> float:
    """YaRN's temperature on the logits, folded into both cos and sin."""
    return scaling.attention_factor if scaling.kind == "yarn" else 1.0
