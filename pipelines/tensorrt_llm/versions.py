"""What a version of TensorRT-LLM takes: a checkpoint and `trtllm-build`, or a Hugging Face folder and `trtllm-serve`.

The TensorRT backend, and with it checkpoints, engines and ReDrafter, was removed after 1.2.1.
"""

from typing import Literal

from packaging.version import InvalidVersion, Version

from runtime.errors import EnginewrightError

Flow = Literal["build", "serve"]
FIRST_BUILD, LAST_BUILD = Version("0.20"), Version("1.2.1")
FIRST_SERVE = Version("1.3.0rc0")
FIRST_QWEN3 = FIRST_REDRAFTER = Version("1.0")  # ReDrafter was another class, for Llama alone, before
NAME = "target.tensorrt_llm.version"
PROGRAMS: dict[Flow, str] = {"build": "trtllm-build", "serve": "trtllm-serve"}


def parse_version(text: str) -> Version:
    """A version as a user states it.

    Raises:
        EnginewrightError: it is none.
    """
    try:
        return Version(text)
    except InvalidVersion as error:
        raise EnginewrightError(f"{NAME} is {text!r}; it must be a version such as 1.2.1 or 1.3.0rc29") from error


def flow_of(text: str) -> Flow:
    """How engines are made for a version.

    Raises:
        EnginewrightError: no version, or one between or before those that are known.
    """
    version = parse_version(text)
    if FIRST_BUILD <= version <= LAST_BUILD:
        return "build"
    if version >= FIRST_SERVE:
        return "serve"
    raise EnginewrightError(
        f"{NAME} is {text!r}; it must be {FIRST_BUILD} to {LAST_BUILD}, which build engines, or {FIRST_SERVE} or newer"
    )
