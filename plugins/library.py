"""The `enginewright` namespace of torch.library, where every op is defined once and implemented per device."""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("enginewright", "DEF")


def define(schema: str) -> None:
    """Define an op; every implementation writes caller-allocated outputs and returns nothing."""
    _LIBRARY.define(schema)


def implement(name: str, device: str, function: Callable[..., Any]) -> None:
    """Register `function` as the op's implementation on a dispatch key such as "CPU" or "CUDA"."""
    _LIBRARY.impl(name, function, device)
