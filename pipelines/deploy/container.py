"""The image: Python, the libraries at the versions installed here, `runtime/`, `plugins/`, and the bundle.

The bundle stays where it is and comes in as a build context of its own.
"""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import plugins
import runtime
from pipelines.deploy.workload import Workload
from runtime.errors import EnginewrightError

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "zstandard", "fastapi", "uvicorn",
             "prometheus-client", "llguidance")  # fmt: skip
GPU_LIBRARIES = ("cuda-python",)
TARGET_LIBRARIES = {"onnx": ("onnxruntime",), "tensorrt_rtx": ("tensorrt-rtx",), "tensorrt": ("tensorrt",)}
TRUST_LIBRARIES = ("model-signing", "pyOpenSSL")
KEY_FILE = "key.pub"
BUNDLE_DIR = "/bundle"
USER = 10001  # any but root

CONTAINERFILE = """\
# Build in this folder, with the bundle's folder named (docker with BuildKit, or podman 4.2 and newer):
#   docker build -f Containerfile --build-context bundle=<bundle> -t {image} .
# TORCH_INDEX is the address of a package index with torch's build for the target, such as the CPU's; without it pip's
# own index decides, whose build carries CUDA's libraries.
FROM python:{python}-slim
ARG TORCH_INDEX=""
WORKDIR /app
COPY requirements.txt ./
RUN grep '^torch==' requirements.txt > torch.txt \\
 && pip install --no-cache-dir ${{TORCH_INDEX:+--index-url "$TORCH_INDEX"}} -r torch.txt \\
 && pip install --no-cache-dir -r requirements.txt
COPY --from=bundle . {bundle_dir}
COPY . ./
ENV HOME=/tmp PYTHONUNBUFFERED=1 OMP_NUM_THREADS={cpus}{require}
USER {user}
EXPOSE {port}
ENTRYPOINT ["python", "-m", "runtime"]
CMD ["serve", "{bundle_dir}", "--target", "{target}", "--host", "0.0.0.0", "--port", "{port}"]
"""


def write_container(work: Workload, out: Path) -> None:
    """Write the Containerfile and all of its context but the bundle."""
    require = f" ENGINEWRIGHT_REQUIRE_SIGNATURE=/app/{KEY_FILE}" if work.public_key else ""
    text = CONTAINERFILE.format(
        image=work.image, python=".".join(platform.python_version_tuple()[:2]), bundle_dir=BUNDLE_DIR, cpus=work.cpus,
        require=require, user=USER, port=work.port, target=work.target,
    )  # fmt: skip
    (out / "Containerfile").write_text(text, encoding="utf-8")
    (out / "requirements.txt").write_text(requirements(work), encoding="utf-8")
    context = ["requirements.txt", "runtime", "plugins", "serve_app.py"]
    for package in (runtime, plugins):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, out / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    if work.public_key:
        shutil.copyfile(work.public_key, out / KEY_FILE)
        context.append(KEY_FILE)
    (out / ".dockerignore").write_text("\n".join(["*", *(f"!{name}" for name in context)]) + "\n", encoding="utf-8")


def requirements(work: Workload) -> str:
    """The libraries of a serving host, pinned to what is installed here, which is what was tested together.

    Raises:
        EnginewrightError: the target's library is not installed.
    """
    names = LIBRARIES + (GPU_LIBRARIES if work.gpus else ()) + TARGET_LIBRARIES.get(work.target, ())
    names += TRUST_LIBRARIES if work.public_key else ()
    return "".join(f"{name}=={_version(name).partition('+')[0]}\n" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise EnginewrightError(
            f"{name} is not installed here, so there is no version to pin it to; install it, or name another --target"
        ) from error
