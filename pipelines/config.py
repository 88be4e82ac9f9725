"""Every setting of a build, typed, with its default value.

The only place that has defaults: the files of conf/ choose and override. Objects are immutable and check themselves;
how they are composed from files and the command line is pipelines/loading.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import ClassVar

from pipelines.tensorrt_llm.versions import flow_of
from plugins.cuda.archs import ALL_RTX_ARCHS, ARCHS, RTX_ARCHS
from runtime.benchmark.settings import SessionSizes, SuiteSettings
from runtime.errors import EnginewrightError


class CachePolicy(StrEnum):
    """What a build does with stages built before."""

    on = auto()  # reuse them, keep new ones
    off = auto()  # neither read nor write: everything is built in a temporary folder
    redo = auto()  # build everything again and replace what is kept
    readonly = auto()  # reuse them; one that is missing is an error


def require(condition: bool, key: str, value: object, bound: str) -> None:
    """Raise the one-line error of a setting that breaks its bound."""
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise EnginewrightError(f"{key} is {shown!r}; it must be {bound}")


def require_counts(group: str, settings: object, names: Sequence[str], minimum: int = 1) -> None:
    """Check integers, and tuples of integers, of one group against a minimum."""
    for name in names:
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        require(len(values) > 0 and min(values) >= minimum, f"{group}.{name}", value, f"at least {minimum}")


@dataclass(frozen=True)
class ModelConfig:
    """Where a model comes from. An empty sha256 leaves that file unpinned."""

    name: str = ""  # empty: taken from the source
    source: str = ""
    sha256: str = ""  # of the download
    file_sha256: str = ""  # of the file inside a wheel


@dataclass(frozen=True)
class PrecisionConfig:
    name: str = "bf16"
    dtype: str = "bfloat16"
    cpu_linear: str = "onednn"  # what target.cpu.linear is where nothing else is asked for

    def __post_init__(self) -> None:
        dtypes = ("bfloat16", "float16", "float32")
        require(self.dtype in dtypes, "precision.dtype", self.dtype, "bfloat16, float16 or float32")


@dataclass(frozen=True)
class ConvertConfig:
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class DraftTrainConfig:
    """How a draft head is trained. Sizes are for a GPU; a CPU wants far fewer sequences and steps."""

    texts: str = ""  # a .txt or .jsonl file, or datasets:<name>; empty: the target writes its own
    num_sequences: int = 256  # conversations written side by side
    tokens_per_sequence: int = 4096
    answer_tokens: int = 160
    num_steps: int = 2000
    batch_positions: int = 8192
    accumulation: int = 1
    future_tokens: int = 6
    learning_rate: float = 2e-3
    hard_share: float = 0.2  # of the loss that is cross-entropy with the target's choice; the rest is KL
    num_blocks: int = 7
    draft_vocab_size: int = 16384
    evaluate_every: int = 500  # steps; also how often the state is kept
    new_tokens: int = 128  # of each greedy path that a head is measured on
    hidden_bytes: int = 4 * 2**30  # of hidden states kept on disk; past it they are computed again
    dialect: str = "apple"  # the head's arithmetic; tensorrt_llm is what TensorRT-LLM's graph computes
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.dialect in ("apple", "tensorrt_llm"), "draft.train.dialect", self.dialect, "apple or tensorrt_llm")
        require_counts("draft.train", self, ["num_sequences", "tokens_per_sequence", "answer_tokens", "num_steps",
                       "batch_positions", "accumulation", "future_tokens", "draft_vocab_size", "evaluate_every",
                       "new_tokens"])  # fmt: skip
        require_counts("draft.train", self, ["num_blocks", "hidden_bytes"], minimum=0)


@dataclass(frozen=True)
class DraftConfig:
    """What drafts for the engine: conf/draft/ has a file for each choice."""

    drafter: str = "auto"  # auto takes the ready head where it fits the model, and none elsewhere
    keep: bool = False  # package a head that does not pay on this machine all the same
    source: str = ""  # of drafter=model: a name of conf/model, or any source of a smaller model with the same tokenizer
    model: ModelConfig = field(default_factory=ModelConfig)  # what `source` names, filled in with its pins
    linear: str = "onednn"  # what a head's cost is measured with; the build sets it to the target's
    train: DraftTrainConfig = field(default_factory=DraftTrainConfig)

    def __post_init__(self) -> None:
        choices = ("auto", "none", "ready", "train", "ngram", "model")
        require(self.drafter in choices, "draft.drafter", self.drafter, f"one of {', '.join(choices)}")
        if self.drafter == "model":
            bound = "a smaller model's name, folder, .gguf file or address with draft=model"
            require(bool(self.source), "draft.source", self.source, bound)
        else:
            require(not self.source, "draft.source", self.source, f"empty with draft={self.drafter}; write draft=model")


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


@dataclass(frozen=True)
class GatesConfig:
    """Bounds that an engine must keep against the reference on the same weights. These are bfloat16's."""

    min_greedy_agreement: float = 0.95  # share of tokens
    max_mean_kl: float = 0.01  # nats per token
    max_perplexity_ratio: float = 1.02  # engine / reference
    max_error_ratio: float = 1.5  # engine's error / transformers' own error in the same dtype


@dataclass(frozen=True)
class VerifyConfig:
    enabled: bool = True  # False: the bundle says that it was not verified, and carries no reference
    num_new_tokens: int = 64
    num_prompts: int = 16
    top_logits: int = 32
    perplexity_tokens: int = 1024
    gates: GatesConfig = field(default_factory=GatesConfig)

    def __post_init__(self) -> None:
        require_counts("verify", self, ["num_new_tokens", "num_prompts", "top_logits"])
        require_counts("verify", self, ["perplexity_tokens"], minimum=2)


@dataclass(frozen=True)
class StackConfig:
    """A session of requests, run again with one more of the engine's switches on each time."""

    enabled: bool = False
    prefix_len: int = SessionSizes.prefix_len  # tokens that all requests share; fewer where the context is short
    own_len: int = SessionSizes.own_len
    new_tokens: int = SessionSizes.new_tokens
    wave: int = SessionSizes.wave  # requests in each of two waves

    def __post_init__(self) -> None:
        require_counts("bench.stack", self, ["prefix_len", "own_len", "wave"])
        require_counts("bench.stack", self, ["new_tokens"], minimum=2)

    @property
    def sizes(self) -> SessionSizes:
        return SessionSizes(self.prefix_len, self.own_len, self.new_tokens, self.wave)


@dataclass(frozen=True)
class BenchConfig:
    enabled: bool = True
    batch_sizes: tuple[int, ...] = SuiteSettings.batch_sizes
    prompt_lens: tuple[int, ...] = SuiteSettings.prompt_lens
    new_tokens: int = SuiteSettings.new_tokens
    repeats: int = SuiteSettings.repeats
    warmups: int = SuiteSettings.warmups
    mixed_requests: int = SuiteSettings.mixed_requests
    baseline: bool = True  # measure transformers in the same run
    speculation_prompts: int = 4  # measured plainly and with each drafter; 0 leaves speculation out
    speculation_tokens: int = 64  # of each answer
    arrivals: bool = False  # a burst over one prefix, and chunk sizes beside running decodes
    stack: StackConfig = field(default_factory=StackConfig)

    def __post_init__(self) -> None:
        require_counts("bench", self, ["batch_sizes", "prompt_lens", "repeats", "mixed_requests"])
        require_counts("bench", self, ["new_tokens", "speculation_tokens"], minimum=2)  # the first is the prefill's
        require_counts("bench", self, ["warmups", "speculation_prompts"], minimum=0)


@dataclass(frozen=True)
class PackageConfig:
    name: str = ""  # empty: <model>-<precision>
    format: str = "folder"

    def __post_init__(self) -> None:
        require(self.format == "folder", "package.format", self.format, "folder")


@dataclass(frozen=True)
class PublishConfig:
    """Where a build sends its bundle; the commands `publish` and `pull` take the same addresses."""

    to: tuple[str, ...] = ()  # see docs/publishing.md; empty: nowhere
    replace: bool = False  # another bundle that is there gives way


@dataclass(frozen=True)
class PromoteConfig:
    """What a bundle must keep of the registry's champion to take its place."""

    max_decode_loss: float = 0.05  # share of the champion's tokens/s, in each workload that both measured
    max_acceptance_loss: float = 0.05  # share of the champion's tokens per step
    targets: tuple[str, ...] = ()  # engines that count; empty: those that run on this machine
    other_hardware: bool = False  # True: speeds measured on different machines do not count

    def __post_init__(self) -> None:
        for name in ("max_decode_loss", "max_acceptance_loss"):
            value = getattr(self, name)
            require(0 <= value < 1, f"promote.{name}", value, "a share, 0 or more and below 1")


@dataclass(frozen=True)
class TrackingConfig:
    enabled: bool = True
    uri: str = ""  # empty: a sqlite database under paths.root
    experiment: str = "enginewright"


@dataclass(frozen=True)
class PathsConfig:
    root: str = ".enginewright"

    @property
    def cache(self) -> Path:
        return Path(self.root, "cache")

    @property
    def bundles(self) -> Path:
        return Path(self.root, "bundles")

    @property
    def failed(self) -> Path:
        return Path(self.root, "failed")

    @property
    def tracking(self) -> Path:
        return Path(self.root, "mlflow")


@dataclass(frozen=True)
class PublishJob:
    """The publish stage's settings: `mlflow:` is a place in the build's own store."""

    to: tuple[str, ...]
    replace: bool
    tracking: TrackingConfig
    paths: PathsConfig


@dataclass(frozen=True)
class BuildConfig:
    """One build, complete: nothing below it reads files of conf/, the command line or the environment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    draft: DraftConfig = field(default_factory=DraftConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    package: PackageConfig = field(default_factory=PackageConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    promote: PromoteConfig = field(default_factory=PromoteConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    cache: CachePolicy = CachePolicy.on

    def __post_init__(self) -> None:
        if self.target.cuda is not None:
            bound = "bfloat16 or float16 with target cuda; write target=[cpu] to build for the CPU alone"
            require(self.precision.dtype != "float32", "precision.dtype", self.precision.dtype, bound)
        for name in ("tensorrt_rtx", "tensorrt", "tensorrt_llm"):
            if name in self.target.names:
                bound = f"bfloat16 or float16 with target {name}"
                require(self.precision.dtype != "float32", "precision.dtype", self.precision.dtype, bound)
        bound = "False without target cuda: no other engine has kernels to choose from"
        require(self.target.cuda is not None or not self.compile.tune, "compile.tune", self.compile.tune, bound)
        for name in self.target.names:
            limits = getattr(self.target, name)
            if self.bench.enabled and name != "tensorrt_llm":  # which nothing here runs
                self._check_bench(f"target.{name}", limits)
            if limits.max_seq_len and self.verify.enabled:
                bound = f"below target.{name}.max_seq_len, {limits.max_seq_len}"
                new_tokens = self.verify.num_new_tokens
                require(new_tokens < limits.max_seq_len, "verify.num_new_tokens", new_tokens, bound)

    def _check_bench(
        self, target: str, limits: CpuTargetConfig | CudaTargetConfig | OnnxTargetConfig | PlanTargetConfig
    ) -> None:
        bound = f"at most {target}.max_batch_size, {limits.max_batch_size}, or the batch would not run as one"
        sizes = self.bench.batch_sizes
        require(max(sizes) <= limits.max_batch_size, "bench.batch_sizes", sizes, bound)
        if limits.max_seq_len:
            longest = limits.max_seq_len - self.bench.new_tokens
            bound = f"at most {longest}, {target}.max_seq_len less bench.new_tokens"
            require(max(self.bench.prompt_lens) <= longest, "bench.prompt_lens", self.bench.prompt_lens, bound)

    @property
    def publication(self) -> PublishJob:
        return PublishJob(self.publish.to, self.publish.replace, self.tracking, self.paths)

    @property
    def convert(self) -> ConvertConfig:
        return ConvertConfig(dtype=self.precision.dtype)
