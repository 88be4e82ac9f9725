"""ONNX Runtime as a session, on the CPU: the caches are bound in place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.backends.slots.session import StepInputs, StepOutputs
from runtime.formats import step_graph as names
from runtime.onnx_runtime import bind, dtype_of, open_graph, run_bound
from runtime.spec import ModelSpec


class OnnxSession:
    """See `StepSession`.

    Raises:
        EnginewrightError: as `open_graph`.
    """

    device = torch.device("cpu")

    def __init__(self, graph: Path, weights_folder: Path, spec: ModelSpec, num_threads: int = 0) -> None:
        """num_threads: 0 is as many as torch uses."""
        self.spec = spec
        self._session = open_graph(graph, weights_folder, num_threads)
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        self._cache_names = list(names.cache_names(spec.num_layers))
        cache = inputs[self._cache_names[0]]
        self.dtype = dtype_of(cache)
        self.output_dtype = dtype_of(outputs[names.LOGITS])
        self.cache_len = int(cache.shape[2])
        self.slices_cache = isinstance(inputs[names.ATTENTION_MASK].shape[3], str)
        self._bindings: dict[tuple[int, ...], Any] = {}  # by the number of slots and the caches' addresses

    def takes(self, num_requests: int, num_rows: int) -> bool:
        return True

    def run(self, inputs: StepInputs, caches: Sequence[torch.Tensor]) -> StepOutputs:
        binding = self._bound(caches)
        held = [tensor.contiguous() for tensor in inputs]  # until the pass has run
        for name, tensor in zip(names.INPUTS, held, strict=True):
            bind(binding.bind_input, name, tensor)
        num_emits = len(inputs.logit_rows)
        outputs = StepOutputs(
            torch.empty(num_emits, self.spec.vocab_size, dtype=self.output_dtype),
            torch.empty(num_emits, self.spec.hidden_size, dtype=self.output_dtype),
        )
        for name, tensor in zip((names.LOGITS, names.HIDDEN), outputs, strict=True):
            bind(binding.bind_output, name, tensor)
        run_bound(self._session, binding)
        return outputs

    def _bound(self, caches: Sequence[torch.Tensor]) -> Any:
        """A binding with the caches as inputs and, at the same addresses, as outputs."""
        key = (len(caches[0]), *(cache.data_ptr() for cache in caches))
        if key not in self._bindings:
            binding = self._session.io_binding()
            for name, cache in zip(self._cache_names, caches, strict=True):
                bind(binding.bind_input, name, cache)
                bind(binding.bind_output, names.NEW + name, cache)
            self._bindings[key] = binding
        return self._bindings[key]
