"""The settings of each target, with their defaults: what engines are built, and within which limits."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.bounds import require, require_counts
from pipelines.tensorrt_llm.versions import flow_of
from plugins.cuda.archs import ALL_RTX_ARCHS, ARCHS, RTX_ARCHS


@dataclass(frozen=True)
class CpuTargetConfig:
    max_batch_size: int = 16
    max_seq_len: int = 0  # 0: the model's own limit
    max_num_tokens: int = 2048  # packed tokens in one step
    block_size: int = 32  # tokens in one block of the KV cache
    kv_cache_tokens: int = 0  # 0: enough for a usual batch
    linear: str = "onednn"

    def __post_init__(self) -> None:
        require_counts("target.cpu", self, ["max_batch_size", "max_num_tokens", "block_size"])
        require_counts("target.cpu", self, ["max_seq_len", "kv_cache_tokens"], minimum=0)
        linears = ("onednn", "onednn_float32", "torch")
        require(self.linear in linears, "target.cpu.linear", self.linear, "onednn, onednn_float32 or torch")
        bound = f"at least target.cpu.max_batch_size, {self.max_batch_size}: each request decodes a token a step"
        require(self.max_num_tokens >= self.max_batch_size, "target.cpu.max_num_tokens", self.max_num_tokens, bound)
        if self.kv_cache_tokens:
            longest = max(self.max_seq_len, self.block_size)
            bound = f"0 or at least {longest}, what one request of target.cpu.max_seq_len needs"
            require(self.kv_cache_tokens >= longest, "target.cpu.kv_cache_tokens", self.kv_cache_tokens, bound)


@dataclass(frozen=True)
class CudaTargetConfig:
    max_batch_size: int = 64
    max_seq_len: int = 0  # 0: the model's own limit
    max_num_tokens: int = 2048  # packed tokens in one step
    block_size: int = 32  # tokens in one block of the KV cache
    kv_cache_tokens: int = 0  # 0: what kv_cache_fraction of the GPU's free memory holds when the engine is loaded
    kv_cache_fraction: float = 0.9
    archs: tuple[str, ...] = ARCHS

    def __post_init__(self) -> None:
        require_counts("target.cuda", self, ["max_batch_size", "max_num_tokens"])
        require_counts("target.cuda", self, ["max_seq_len", "kv_cache_tokens"], minimum=0)
        size = self.block_size
        bound = "16, 32, 64 or another power of two from 16 on"
        require(size >= 16 and size & (size - 1) == 0, "target.cuda.block_size", size, bound)
        bound = "above 0 and below 1"
        require(0 < self.kv_cache_fraction < 1, "target.cuda.kv_cache_fraction", self.kv_cache_fraction, bound)
        bound = f"some of {', '.join(ARCHS)}"
        require(bool(self.archs) and set(self.archs) <= set(ARCHS), "target.cuda.archs", self.archs, bound)
        bound = f"at least target.cuda.max_batch_size, {self.max_batch_size}: each request decodes a token a step"
        require(self.max_num_tokens >= self.max_batch_size, "target.cuda.max_num_tokens", self.max_num_tokens, bound)
        if self.kv_cache_tokens:
            longest = max(self.max_seq_len, size)
            bound = f"0 or at least {longest}, what one request of target.cuda.max_seq_len needs"
            require(self.kv_cache_tokens >= longest, "target.cuda.kv_cache_tokens", self.kv_cache_tokens, bound)


@dataclass(frozen=True)
class OnnxTargetConfig:
    max_batch_size: int = 16
    max_seq_len: int = 0  # 0: the model's own limit, at most 4096: a request has a slot of that length to itself
    max_num_tokens: int = 2048  # tokens in one step
    prefix_slots: int = 8  # beside the requests': what those that have ended computed stays there for others
    dtype: str = "float32"  # that it computes in; weights stored in another are widened when they are loaded

    def __post_init__(self) -> None:
        require_counts("target.onnx", self, ["max_batch_size", "max_num_tokens"])
        require_counts("target.onnx", self, ["max_seq_len", "prefix_slots"], minimum=0)
        bound = "float32 or float16: on CPUs ONNX Runtime has no kernels for others that a model needs"
        require(self.dtype in ("float32", "float16"), "target.onnx.dtype", self.dtype, bound)
        bound = f"at least target.onnx.max_batch_size, {self.max_batch_size}: each request decodes a token a step"
        require(self.max_num_tokens >= self.max_batch_size, "target.onnx.max_num_tokens", self.max_num_tokens, bound)


@dataclass(frozen=True)
class PlanTargetConfig:
    """What plans of both TensorRT libraries have; their caches are as long as the longest request."""

    group: ClassVar[str]
    max_batch_size: int = 16
    max_seq_len: int = 0  # 0: the model's own limit, but at most 2048: a step goes over all rows of its caches
    max_num_tokens: int = 512  # of a prompt in one step
    weights: str = "inside"  # stripped: left out, and refitted from the bundle's when the plan is loaded

    def __post_init__(self) -> None:
        require_counts(self.group, self, ["max_batch_size", "max_num_tokens"])
        require_counts(self.group, self, ["max_seq_len"], minimum=0)
        require(self.weights in ("inside", "stripped"), f"{self.group}.weights", self.weights, "inside or stripped")
        bound = f"at least {self.group}.max_batch_size, {self.max_batch_size}: each request decodes a token a step"
        require(self.max_num_tokens >= self.max_batch_size, f"{self.group}.max_num_tokens", self.max_num_tokens, bound)


@dataclass(frozen=True)
class TensorrtRtxTargetConfig(PlanTargetConfig):
    group = "target.tensorrt_rtx"
    archs: tuple[str, ...] = RTX_ARCHS

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = f"some of {', '.join(ALL_RTX_ARCHS)}"
        require(bool(self.archs) and set(self.archs) <= set(ALL_RTX_ARCHS), f"{self.group}.archs", self.archs, bound)


@dataclass(frozen=True)
class TensorrtTargetConfig(PlanTargetConfig):
    """A plan is for the GPU that it is built on, unless `hardware` says more."""

    group = "target.tensorrt"
    attention: str = "plugin"  # our kernels, in the plan as PTX; native: TensorRT's own layers
    workspace_mib: int = 0  # that a layer may use while it runs; 0: all the memory there is
    version_compatible: bool = False  # with newer versions of TensorRT
    hardware: str = "this"  # GPUs that run it: this one's kind, same_compute_capability, or ampere_plus
    timing_cache: bool = True  # keep what was measured for the next build

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self.group, self, ["workspace_mib"], minimum=0)
        require(self.attention in ("plugin", "native"), f"{self.group}.attention", self.attention, "plugin or native")
        levels = ("this", "same_compute_capability", "ampere_plus")
        require(self.hardware in levels, f"{self.group}.hardware", self.hardware, f"one of {', '.join(levels)}")


@dataclass(frozen=True)
class TensorrtLlmTargetConfig:
    """Under the names of trtllm-build and trtllm-serve; which settings there are depends on the version."""

    version: str = "1.2.1"  # the last that builds engines; 1.3 and newer get a folder for trtllm-serve; or installed
    tp_size: int = 1
    pp_size: int = 1
    weights: str = "bundle"  # host: left out, and made from the bundle's weights where the engine is built
    redrafter: str = "auto"  # auto takes a head of the dialect tensorrt_llm, on insists on one, off builds without
    max_batch_size: int = 64
    max_input_len: int = 0  # 0: a token less than max_seq_len
    max_seq_len: int = 0  # 0: the model's own limit
    max_num_tokens: int = 8192  # packed tokens in one step
    max_beam_width: int = 1
    opt_num_tokens: int = 0  # 0: TensorRT-LLM's choice
    kv_cache_type: str = "paged"
    tokens_per_block: int = 32
    kv_cache_reuse: bool = True  # of common prefixes
    chunked_prefill: bool = True
    kv_cache_fraction: float = 0.9  # of the GPU's free memory; from 1.3 on
    gemm_plugin: str = "auto"
    multiple_profiles: bool = False
    strip_plan: bool = False  # an engine without weights, refitted where it runs
    workers: int = 1  # GPUs that build ranks side by side
    build: bool = True  # the engine, where this version is installed; false leaves it to the script in the bundle
    redrafter_num_beams: int = 5
    redrafter_draft_len_per_beam: int = 5  # without the true token
    redrafter_greedy_search: bool = True
    max_draft_len: int = 3  # of draft=model and draft=ngram, from 1.3 on
    max_matching_ngram_size: int = 3

    def __post_init__(self) -> None:
        group = "target.tensorrt_llm"
        counts = ["tp_size", "pp_size", "max_batch_size", "max_num_tokens", "max_beam_width", "workers",
                  "max_draft_len", "max_matching_ngram_size", "redrafter_num_beams",
                  "redrafter_draft_len_per_beam"]  # fmt: skip
        require_counts(group, self, counts)
        require_counts(group, self, ["max_input_len", "max_seq_len", "opt_num_tokens"], minimum=0)
        choices = {"weights": ("bundle", "host"), "redrafter": ("auto", "on", "off"),
                   "kv_cache_type": ("paged", "continuous"), "gemm_plugin": ("auto", "disable")}  # fmt: skip
        for name, values in choices.items():
            require(getattr(self, name) in values, f"{group}.{name}", getattr(self, name), " or ".join(values))
        size = self.tokens_per_block
        require(size >= 8 and size & (size - 1) == 0, f"{group}.tokens_per_block", size, "a power of two from 8 on")
        bound = "above 0 and below 1"
        require(0 < self.kv_cache_fraction < 1, f"{group}.kv_cache_fraction", self.kv_cache_fraction, bound)
        bound = f"at least {group}.max_batch_size, {self.max_batch_size}: each request decodes a token a step"
        require(self.max_num_tokens >= self.max_batch_size, f"{group}.max_num_tokens", self.max_num_tokens, bound)
        bound = f"0 with {group}.multiple_profiles, which trtllm-build does not take with it"
        opt, kind = self.opt_num_tokens, self.kv_cache_type
        require(opt == 0 or not self.multiple_profiles, f"{group}.opt_num_tokens", opt, bound)
        bound = f"paged with {group}.kv_cache_reuse or chunked_prefill; set both to false"
        require(kind == "paged" or not self.in_chunks, f"{group}.kv_cache_type", kind, bound)
        if self.version != "installed" and flow_of(self.version) == "serve":
            self._check_serve(group)

    def _check_serve(self, group: str) -> None:
        """What is decided when an engine is built has no place where none is."""
        bound = f"left as it is with version {self.version}, which builds no engine"
        frozen = ("max_input_len", "opt_num_tokens", "kv_cache_type", "gemm_plugin", "multiple_profiles", "strip_plan",
                  "workers", "redrafter_num_beams", "redrafter_draft_len_per_beam",
                  "redrafter_greedy_search")  # fmt: skip
        for name in frozen:
            value = getattr(self, name)
            require(value == getattr(TensorrtLlmTargetConfig, name), f"{group}.{name}", value, bound)
        bound = f"auto or off with version {self.version}, which has no ReDrafter; use at most 1.2.1 for it"
        require(self.redrafter != "on", f"{group}.redrafter", self.redrafter, bound)

    @property
    def in_chunks(self) -> bool:
        """Whether context attention works over the paged cache, as reuse and chunks need."""
        return self.kv_cache_reuse or self.chunked_prefill


@dataclass(frozen=True)
class TensorrtLlmJob:
    """The compile stage's settings: what was asked for, and the TensorRT-LLM of this machine, "" where it has none."""

    target: TensorrtLlmTargetConfig
    installed: str


@dataclass(frozen=True)
class CompileConfig:
    """How engines are compiled, whatever the target."""

    tune: bool = False  # measure which kernels are fastest on this machine's GPU; an error where there is none


@dataclass(frozen=True)
class TargetConfig:
    """One field for each target that this version builds; None where it was not chosen."""

    cpu: CpuTargetConfig | None = None
    cuda: CudaTargetConfig | None = None
    onnx: OnnxTargetConfig | None = None
    tensorrt_rtx: TensorrtRtxTargetConfig | None = None
    tensorrt: TensorrtTargetConfig | None = None
    tensorrt_llm: TensorrtLlmTargetConfig | None = None

    @property
    def names(self) -> tuple[str, ...]:
        every = ("cpu", "cuda", "onnx", "tensorrt_rtx", "tensorrt", "tensorrt_llm")
        return tuple(name for name in every if getattr(self, name) is not None)
