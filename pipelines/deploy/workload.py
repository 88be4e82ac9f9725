"""What a deployment has to know of a bundle: its name, what it needs, how long it takes to start."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.deploy.options import DeployOptions
from pipelines.planning.costs import TORCH_BYTES
from runtime.errors import EnginewrightError
from runtime.formats.bundle import DRAFT_DIR, Bundle
from runtime.formats.checkpoint import WEIGHTS_FILE
from runtime.formats.tensorrt_llm import TARGET as HOSTED
from runtime.formats.tensorrt_llm import TensorrtLlmPlan
from runtime.formats.tensorrt_plan import PLAN_FILE
from runtime.readiness import ON_GPU, memory_need
from runtime.server.settings import ServerSettings

NAME_LEN = 40  # of a Kubernetes name, with room for what is appended to it
LOAD_BYTES_PER_S = 50e6  # a slow network disk
CUDA_BYTES = 3_000_000_000  # assumed of CUDA's context and libraries in the process
MIB = 2**20


@dataclass(frozen=True)
class Workload:
    """One replica, and how many there are."""

    name: str  # as Kubernetes allows
    image: str
    bundle_id: str
    target: str
    cpus: int
    replicas: int
    memory_bytes: int  # of the host: weights, KV cache, draft and libraries
    stored_bytes: int  # pages of the weights' file, which may go again
    start_s: int  # after which a replica that is not ready is given up
    drain_s: int
    port: int
    public_key: Path | None

    @property
    def gpus(self) -> int:
        return int(self.target not in ("cpu", "onnx"))


def workload(bundle: Bundle, options: DeployOptions) -> Workload:
    """What deploying a bundle takes.

    Raises:
        EnginewrightError: the bundle has no such engine, or one whose needs cannot be told.
    """
    engine_dir = bundle.engine_dir(options.target)
    if options.target == HOSTED:
        raise EnginewrightError(f"{bundle.path}: {TensorrtLlmPlan.read(engine_dir).not_run}; name another target")
    name = kubernetes_name(str(bundle.manifest["model"]["name"]))
    try:
        need = memory_need(bundle.path, bundle.manifest, options.target)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(
            f"{bundle.path}: what its engine needs cannot be told ({error!r}); build it again"
        ) from error
    held = CUDA_BYTES if options.target in ON_GPU else need.weights + need.kv_cache  # what is on the GPU is not here
    draft = sum(path.stat().st_size for path in (bundle.path / DRAFT_DIR).rglob("*") if path.is_file())
    stored = (bundle.path / WEIGHTS_FILE).stat().st_size + draft
    if (plan := engine_dir / PLAN_FILE).is_file():
        stored += plan.stat().st_size
    settings = ServerSettings()
    return Workload(
        name=name,
        image=options.image or f"enginewright/{name}:{bundle.bundle_id[:12]}",
        bundle_id=bundle.bundle_id,
        target=options.target,
        cpus=options.cpus,
        replicas=options.replicas,
        memory_bytes=TORCH_BYTES + held + draft,
        stored_bytes=stored,
        start_s=60 + math.ceil(stored / LOAD_BYTES_PER_S),
        drain_s=math.ceil(settings.drain_timeout_s),
        port=settings.port,
        public_key=options.public_key,
    )


def kubernetes_name(name: str) -> str:
    """Lower-case letters, digits and hyphens, a letter first.

    Example:
        kubernetes_name("SmolLM2_135M.bf16") == "smollm2-135m-bf16"
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (made if made[:1].isalpha() else f"engine-{made}")[:NAME_LEN].strip("-")


def mebibytes(num_bytes: int) -> str:
    """A quantity as Kubernetes writes it, rounded up."""
    return f"{math.ceil(num_bytes / MIB)}Mi"
