"""ONNX Runtime as a session, on the CPU: the caches are bound in place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from runtime.backends.slots.session import StepInputs, StepOutputs
from runtime.errors import EnginewrightError
from runtime.formats import step_graph as names
from runtime.spec import ModelSpec

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_DTYPES: dict[str, tuple[torch.dtype, Any]] = {
    "tensor(float)": (torch.float32, numpy.float32),
    "tensor(double)": (torch.float64, numpy.float64),
    "tensor(float16)": (torch.float16, numpy.float16),
}
_ELEMENTS = {torch.int64: numpy.int64, torch.bool: numpy.bool_, torch.float32: numpy.float32,
             torch.float64: numpy.float64, torch.float16: numpy.float16}  # fmt: skip


class OnnxSession:
    """See `StepSession`.

    Raises:
        EnginewrightError: ONNX Runtime is missing, cannot read the graph, or has no kernels for its dtype.
    """

    device = torch.device("cpu")

    def __init__(self, graph: Path, weights_folder: Path, spec: ModelSpec, num_threads: int = 0) -> None:
        """num_threads: 0 is as many as torch uses."""
        self.spec = spec
        self._session = _open(graph, weights_folder, num_threads or torch.get_num_threads())
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        cache = inputs[next(names.cache_names(spec.num_layers))]
        self.dtype = _DTYPES[cache.type][0]
        self.output_dtype = _DTYPES[outputs[names.LOGITS].type][0]
        self.cache_len = int(cache.shape[2])
        self.slices_cache = isinstance(inputs[names.ATTENTION_MASK].shape[3], str)
        self._cache_names = list(names.cache_names(spec.num_layers))
        self._bindings: dict[tuple[int, ...], Any] = {}  # by the number of slots and the caches' addresses

    def takes(self, num_requests: int, num_rows: int) -> bool:
        return True

    def run(self, inputs: StepInputs, caches: Sequence[torch.Tensor]) -> StepOutputs:
        binding = self._bound(caches)
        held = [tensor.contiguous() for tensor in inputs]  # until the pass has run
        for name, tensor in zip(names.INPUTS, held, strict=True):
            _bind(binding.bind_input, name, tensor)
        num_emits = len(inputs.logit_rows)
        outputs = StepOutputs(
            torch.empty(num_emits, self.spec.vocab_size, dtype=self.output_dtype),
            torch.empty(num_emits, self.spec.hidden_size, dtype=self.output_dtype),
        )
        for name, tensor in zip((names.LOGITS, names.HIDDEN), outputs, strict=True):
            _bind(binding.bind_output, name, tensor)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise EnginewrightError(
                f"ONNX Runtime failed in a step: {_first_line(error)}; verify the bundle"
            ) from error
        return outputs

    def _bound(self, caches: Sequence[torch.Tensor]) -> Any:
        """A binding with the caches as inputs and, at the same addresses, as outputs."""
        key = (len(caches[0]), *(cache.data_ptr() for cache in caches))
        if key not in self._bindings:
            binding = self._session.io_binding()
            for name, cache in zip(self._cache_names, caches, strict=True):
                _bind(binding.bind_input, name, cache)
                _bind(binding.bind_output, names.NEW + name, cache)
            self._bindings[key] = binding
        return self._bindings[key]


def _bind(bind: Any, name: str, tensor: torch.Tensor) -> None:
    bind(name, "cpu", 0, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())


def _open(graph: Path, weights_folder: Path, num_threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EnginewrightError(
            f"the onnx engine needs onnxruntime, which cannot be imported ({error}); pip install onnxruntime, or run "
            "the bundle with --target cpu"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # warnings are about initializers that optimizations have used up
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(weights_folder.resolve()))
    try:
        return onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise EnginewrightError(f"{graph}: cannot be read ({error.strerror}); build the bundle again") from error
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise EnginewrightError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} does not take it ({_first_line(error)}); build the "
            "bundle again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
