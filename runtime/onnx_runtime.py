"""ONNX Runtime: how a graph of ours is opened, and how torch tensors are bound to its inputs and outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from runtime.errors import EnginewrightError

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_ELEMENTS = {torch.int64: numpy.int64, torch.bool: numpy.bool_, torch.float32: numpy.float32,
             torch.float64: numpy.float64, torch.float16: numpy.float16}  # fmt: skip
_DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16, which numpy has no type for


def open_graph(
    graph: Path, weights_folder: Path, num_threads: int = 0, values: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Open a graph on the CPU and return its `onnxruntime.InferenceSession`.

    Args:
        weights_folder: that its initializers' locations are relative to.
        num_threads: 0 is as many as torch uses.
        values: initializers that are given here instead; kept as they are while the session lives.

    Raises:
        EnginewrightError: ONNX Runtime is missing, cannot read the graph, or has no kernels for its dtype.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnginewrightError(
            f"the onnx engine needs onnxruntime, which cannot be imported ({error}); pip install onnxruntime, or run "
            "another target of the bundle"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3  # warnings are about initializers that optimizations have used up
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(weights_folder.resolve()))
    if values:
        held = {name: _ort_value(tensor) for name, tensor in values.items()}
        options.add_external_initializers(list(held), list(held.values()))
    try:
        return onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise EnginewrightError(f"{graph}: cannot be read ({error.strerror}); build the bundle again") from error
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise EnginewrightError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} does not take it ({_first_line(error)}); build the "
            "bundle again"
        ) from error


def run_bound(session: Any, binding: Any) -> None:
    """Run a session on what is bound.

    Raises:
        EnginewrightError: it failed.
    """
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise EnginewrightError(f"ONNX Runtime failed in a step ({_first_line(error)}); verify the bundle") from error


def bind(bind_one: Any, name: str, tensor: torch.Tensor) -> None:
    """Bind a contiguous CPU tensor; `bind_one` is the binding's `bind_input` or `bind_output`."""
    bind_one(name, "cpu", 0, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def dtype_of(value: Any) -> torch.dtype:
    """Of a session's input or output."""
    return _DTYPES[value.type]


def _ort_value(tensor: torch.Tensor) -> Any:
    from onnxruntime import OrtValue

    if tensor.dtype == torch.bfloat16:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.view(torch.int16).numpy(), _BFLOAT16)
    return OrtValue.ortvalue_from_numpy(tensor.numpy())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
