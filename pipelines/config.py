"""Every setting of a build, typed, with its default value.

Defaults are here and in target_config.py alone: the files of conf/ choose and override. Objects are immutable and check
themselves; how they are composed from files and the command line is pipelines/loading.py.
"""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path

from pipelines.bounds import require, require_counts
from pipelines.target_config import (
    CompileConfig,
    CpuTargetConfig,
    CudaTargetConfig,
    OnnxTargetConfig,
    PlanTargetConfig,
    TargetConfig,
)
from runtime.benchmark.settings import SessionSizes, SuiteSettings


class CachePolicy(StrEnum):
    """What a build does with stages built before."""

    on = auto()  # reuse them, keep new ones
    off = auto()  # neither read nor write: everything is built in a temporary folder
    redo = auto()  # build everything again and replace what is kept
    readonly = auto()  # reuse them; one that is missing is an error


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
