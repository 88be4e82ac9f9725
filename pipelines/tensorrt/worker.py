"""The process that builds one plan: `python -m pipelines.tensorrt.worker <job.json>`.

A process of its own, because a library that aborts takes its process with it, and because what it holds on to is memory
that the next stages want. It writes events to stdout, a JSON object a line: see `Events`.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tensorrt.events import Events
from pipelines.tensorrt.job import PlanJob
from runtime.errors import EnginewrightError
from runtime.formats import step_graph as names
from runtime.formats.tensorrt_plan import Profile
from runtime.tensorrt_library import import_library

if TYPE_CHECKING:
    import tensorrt as trt

# TensorRT-RTX 1.7 compiles what refits weights, and needs a driver for that alone.
STRIPPED_HINT = "; without an NVIDIA driver here, write target.{target}.weights=inside"


def main(path: Path) -> None:
    """Build the plan of a job, and say how it went."""
    events, job = Events.on_stdout(), PlanJob.read(path)
    try:
        events.done(**_Builder(import_library(job.library), job, events).build())
    except EnginewrightError as error:
        events.failed(str(error))
    except OSError as error:
        events.failed(str(error), error.errno, str(error.filename or job.plan))


class _Builder:
    """The library's objects, in the order in which they are needed."""

    def __init__(self, library: Any, job: PlanJob, events: Events) -> None:
        self.library, self.job, self.events = library, job, events
        self.logger = events.logger(library)
        self.builder: trt.Builder = library.Builder(self.logger)
        self.network: trt.INetworkDefinition = self.builder.create_network(self._network_flags())
        self.config: trt.IBuilderConfig = self.builder.create_builder_config()

    def build(self) -> dict[str, Any]:
        """Returns the layers as dictionaries, and the plan's size."""
        self._parse()
        for profile in self.job.profiles:
            self._add_profile(profile)
        self._configure()
        layers = [self._layer(self.network.get_layer(index)) for index in range(self.network.num_layers)]
        num_bytes = self._serialize()
        self._keep_timing_cache()
        return {"layers": layers, "plan_bytes": num_bytes}

    def _network_flags(self) -> int:
        flags = self.library.NetworkDefinitionCreationFlag
        wanted = ["STRONGLY_TYPED", *(["PREFER_AOT_PYTHON_PLUGINS"] if self.job.plugins else [])]
        return sum(1 << int(getattr(flags, name)) for name in wanted if hasattr(flags, name))

    def _parse(self) -> None:
        if self.job.plugins:
            from plugins.attention.tensorrt import register_attention
            from plugins.rope_kv_write.tensorrt import register_rope_kv_write

            register_attention()
            register_rope_kv_write()
        parser: trt.OnnxParser = self.library.OnnxParser(self.network, self.logger)
        if not parser.parse_from_file(self.job.graph):
            reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            why = "; ".join(reasons) or self.events.first_error or "it does not say why"
            raise EnginewrightError(f"{self._name()} does not take the graph: {why}")

    def _add_profile(self, profile: Profile) -> None:
        made = self.builder.create_optimization_profile()
        for index in range(self.network.num_inputs):
            value = self.network.get_input(index)
            shapes: list[Any] = [_shape(value.name, _sizes(value), profile, which) for which in range(3)]
            made.set_shape(value.name, *shapes)
        if self.config.add_optimization_profile(made) < 0:
            raise EnginewrightError(f"{self._name()} does not take the profile {profile}: {self.events.first_error}")

    def _configure(self) -> None:
        library, config, job = self.library, self.config, self.job
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        config.progress_monitor = self.events.monitor(library)
        if job.archs:
            self._choose_archs()
        if job.strip:
            config.set_flag(library.BuilderFlag.STRIP_PLAN)
        if job.version_compatible:
            config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
        if job.hardware:
            config.hardware_compatibility_level = getattr(library.HardwareCompatibilityLevel, job.hardware.upper())
        if job.workspace_bytes:
            config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, job.workspace_bytes)
        if job.plugins:
            config.set_preview_feature(library.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if job.timing_cache:
            path = Path(job.timing_cache)
            config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)

    def _choose_archs(self) -> None:
        """TensorRT-RTX alone builds for other GPUs than the one that is there."""
        config: Any = self.config
        config.num_compute_capabilities = len(self.job.archs)
        for index, arch in enumerate(self.job.archs):
            capability = getattr(self.library.ComputeCapability, arch.replace("_", "").upper(), None)
            if capability is None or not config.set_compute_capability(capability, index):
                raise EnginewrightError(f"{self._name()} has no compute capability {arch}")

    def _serialize(self) -> int:
        """Write the plan in pieces where the library can: one as a whole would be one more copy in memory."""
        with open(self.job.plan, "wb") as file:
            if hasattr(self.builder, "build_serialized_network_to_stream"):
                writer = self.events.writer(self.library, file)
                built = self.builder.build_serialized_network_to_stream(self.network, self.config, writer)
                if writer.error is not None:
                    raise writer.error
            else:
                plan = self.builder.build_serialized_network(self.network, self.config)
                built = plan is not None
                if built:
                    file.write(memoryview(plan))
            num_bytes = file.tell()
        if not built or num_bytes == 0:
            why = self.events.first_error or "it does not say why"
            hint = STRIPPED_HINT.format(target=self.job.library) if self.job.strip else ""
            raise EnginewrightError(f"{self._name()} cannot build the plan: {why}{hint}")
        return num_bytes

    def _keep_timing_cache(self) -> None:
        if self.job.timing_cache:
            path = Path(self.job.timing_cache)
            own = path.with_suffix(f".{os.getpid()}")
            own.write_bytes(memoryview(self.config.get_timing_cache().serialize()))
            own.replace(path)

    def _layer(self, layer: "trt.ILayer") -> dict[str, Any]:
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        return {
            "name": layer.name,
            "type": layer.type.name,
            "outputs": [f"{value.dtype.name.lower()} {_sizes(value)}" for value in outputs if value is not None],
        }

    def _name(self) -> str:
        return f"{self.job.library} {self.library.__version__}"


def _sizes(value: "trt.ITensor") -> tuple[int, ...]:
    return tuple(value.shape[index] for index in range(len(value.shape)))


def _shape(name: str, shape: tuple[int, ...], profile: Profile, which: int) -> tuple[int, ...]:
    """Of one input, the least, usual or most of a profile."""
    batch, rows, emits = profile.batch[which], profile.rows[which], profile.emits[which]
    known = {
        names.TOKEN_IDS: (batch, rows),
        names.POSITION_IDS: (batch, rows),
        names.WRITE_STARTS: (batch,),
        names.ATTENTION_MASK: (batch, 1, rows, shape[-1]),
        names.LOGIT_ROWS: (emits,),
    }
    return known.get(name, (batch, *shape[1:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
