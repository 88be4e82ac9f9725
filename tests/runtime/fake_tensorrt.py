"""A TensorRT library without a GPU: the calls that a session makes, answered by ONNX Runtime over the plan's own graph.

It holds the session to what the real one asks: every tensor bound by its address, shapes within the profile, the new
caches at the addresses of the old ones.
"""

from enum import Enum
from types import SimpleNamespace

import numpy
import onnxruntime

from runtime.formats import step_graph as names

_ELEMENTS = {"tensor(int64)": numpy.int64, "tensor(bool)": numpy.bool_, "tensor(float)": numpy.float32}


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1


class ILogger:
    def __init__(self):
        pass


class FakeTensorrt:
    """The module. `reason`: why it loads no plan; None where it loads them."""

    ILogger = ILogger
    IRuntimeCache = object
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")

    def __init__(self, graph, weights_folder, profiles, reason=None):
        self.graph, self.weights_folder, self.profiles, self.reason = graph, weights_folder, profiles, reason
        self.cache_loads = []

    def Runtime(self, logger):  # noqa: N802 - the library's name
        def deserialize(data):
            assert len(data) > 0
            if self.reason is not None:
                logger.log(Severity.ERROR, self.reason)
                return None
            return FakeEngine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    def __init__(self, library):
        self.library = library
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        folder = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder, str(library.weights_folder))
        self.session = onnxruntime.InferenceSession(library.graph.read_bytes(), options)
        self.contexts = []

    def create_runtime_config(self):
        library = self.library

        class Config:
            cuda_graph_strategy = None

            def create_runtime_cache(self):
                return SimpleNamespace(deserialize=library.cache_loads.append, serialize=lambda: b"compiled kernels")

            def set_runtime_cache(self, cache):
                assert cache is not None

        return Config()

    def create_execution_context(self, config=None):
        assert config is not None
        assert config.cuda_graph_strategy == "whole graph"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine):
        self.engine, self.profile, self.runs = engine, None, 0
        self.shapes, self.addresses = {}, {}

    def set_optimization_profile_async(self, index, stream):
        self.profile = self.engine.library.profiles[index]
        return stream == 0

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        batch = shape[0] if name != names.LOGIT_ROWS else self.profile.batch.least
        rows = shape[1] if name == names.TOKEN_IDS else self.profile.rows.least
        emits = shape[0] if name == names.LOGIT_ROWS else self.profile.emits.least
        return self.profile.takes(batch, rows) and self.profile.emits.least <= emits <= self.profile.emits.most

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        session, self.runs = self.engine.session, self.runs + 1
        binding = session.io_binding()
        shapes = {names.NEW + name: shape for name, shape in self.shapes.items()} | self.shapes
        for value in session.get_outputs():
            if value.name in (names.LOGITS, names.HIDDEN):
                shapes[value.name] = (self.shapes[names.LOGIT_ROWS][0], value.shape[1])
            elif self.addresses[value.name] != self.addresses[value.name.removeprefix(names.NEW)]:
                return False
        for bind, values in ((binding.bind_input, session.get_inputs()), (binding.bind_output, session.get_outputs())):
            for value in values:
                address = self.addresses[value.name]
                bind(value.name, "cpu", 0, _ELEMENTS[value.type], shapes[value.name], address)
        session.run_with_iobinding(binding)
        return True
