"""A plan of TensorRT-RTX or TensorRT as a session: a context for each profile, all tensors bound by their addresses."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from runtime.backends.slots.session import StepInputs, StepOutputs
from runtime.errors import EnginewrightError
from runtime.formats import step_graph as names
from runtime.formats.tensorrt_plan import TensorrtPlan
from runtime.spec import ModelSpec

if TYPE_CHECKING:
    import tensorrt as trt


class PlanSession:
    """See `StepSession`. Passes run on torch's current stream."""

    slices_cache = False  # a plan's caches have one length
    output_dtype = torch.float32

    def __init__(
        self,
        library: Any,
        engine: "trt.ICudaEngine",
        plan: TensorrtPlan,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: str = "cuda",
        runtime_cache: Path | None = None,
    ) -> None:
        """runtime_cache: where TensorRT-RTX keeps what it compiled for this GPU; None keeps nothing."""
        self.spec, self.dtype, self.device = spec, dtype, torch.device(device)
        self.cache_len = plan.cache_len
        self._library, self._engine, self._plan = library, engine, plan
        self._cache_names = list(names.cache_names(spec.num_layers))
        self._kept = KeptRuntime(library, engine, runtime_cache)
        self._contexts = [self._context(index) for index in range(len(plan.profiles))]

    def takes(self, num_requests: int, num_rows: int) -> bool:
        return any(profile.takes(num_requests, num_rows) for profile in self._plan.profiles)

    def run(self, inputs: StepInputs, caches: Sequence[torch.Tensor]) -> StepOutputs:
        index = self._profile(*inputs.token_ids.shape)
        context = self._contexts[index]
        held = [tensor.contiguous() for tensor in inputs]  # until the pass is enqueued: torch's allocator is by stream
        for name, tensor in zip(names.INPUTS, held, strict=True):
            self._bind(context, name, tensor)
        for name, cache in zip(self._cache_names, caches, strict=True):
            self._bind(context, name, cache)
            context.set_tensor_address(names.NEW + name, cache.data_ptr())
        num_emits = len(inputs.logit_rows)
        outputs = StepOutputs(
            torch.empty(num_emits, self.spec.vocab_size, dtype=self.output_dtype, device=self.device),
            torch.empty(num_emits, self.spec.hidden_size, dtype=self.output_dtype, device=self.device),
        )
        for name, tensor in zip((names.LOGITS, names.HIDDEN), outputs, strict=True):
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(_stream(self.device)):
            raise EnginewrightError(f"{self._plan.library} failed in a step; see its messages above, verify the bundle")
        self._kept.ran(index)
        return outputs

    def _profile(self, batch: int, rows: int) -> int:
        for index, profile in enumerate(self._plan.profiles):
            if profile.takes(batch, rows):
                return index
        most = "; ".join(f"{p.name} up to {p.batch.most} x {p.rows.most}" for p in self._plan.profiles)
        text = f"{batch} requests with {rows} tokens each are over the plan's profiles: {most}"
        raise EnginewrightError(text)

    def _context(self, profile: int) -> "trt.IExecutionContext":
        context: trt.IExecutionContext | None = self._kept.context()
        if context is None or not context.set_optimization_profile_async(profile, _stream(self.device)):
            raise EnginewrightError(
                f"{self._plan.library} makes no context for the profile {self._plan.profiles[profile].name}: the GPU "
                "may have too little memory; stop what else runs on it, or build with lower limits"
            )
        return context

    def _bind(self, context: "trt.IExecutionContext", name: str, tensor: torch.Tensor) -> None:
        if not context.set_input_shape(name, tuple(tensor.shape)):
            raise EnginewrightError(f"the plan does not take {name} of shape {tuple(tensor.shape)}; build it again")
        context.set_tensor_address(name, tensor.data_ptr())


class KeptRuntime:
    """Contexts of TensorRT-RTX with its two extras: compiled kernels that outlive the process, and CUDA graphs.

    Where an engine has no runtime configuration, as TensorRT's have none, contexts are plain.
    """

    def __init__(self, library: Any, engine: Any, path: Path | None) -> None:
        self._engine, self._path = engine, path
        self._has_run: set[int] = set()
        self._config = self._cache = None
        if not hasattr(library, "IRuntimeCache"):
            return
        self._config = engine.create_runtime_config()
        self._config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if path is not None:
            self._cache = self._config.create_runtime_cache()
            if path.is_file():
                self._cache.deserialize(path.read_bytes())  # one of another GPU or driver is refused, and replaced
            self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        if self._config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def ran(self, profile: int) -> None:
        """After the first pass of each profile, write what it compiled, unless the folder may only be read."""
        if self._cache is None or self._path is None or profile in self._has_run:
            return
        self._has_run.add(profile)
        own = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            own.write_bytes(memoryview(self._cache.serialize()))
            own.replace(self._path)
        except OSError:
            return


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream().cuda_stream) if device.type == "cuda" else 0
