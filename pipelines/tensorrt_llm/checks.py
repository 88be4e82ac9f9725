"""Whether a model, a version and settings go together. All of it is asked before anything is written."""

from typing import NamedTuple

from packaging.version import Version

from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.checkpoint_config import REDRAFTER_CLASSES, Beams
from pipelines.tensorrt_llm.versions import FIRST_QWEN3, FIRST_REDRAFTER, LAST_BUILD, flow_of
from runtime.errors import EnginewrightError
from runtime.spec import ModelSpec
from runtime.speculation.redrafter.head_file import HeadConfig

KEY = "target.tensorrt_llm"
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class Lengths(NamedTuple):
    """In tokens, settings of 0 filled in."""

    max_input_len: int
    max_seq_len: int


def lengths_of(config: TensorrtLlmTargetConfig, spec: ModelSpec) -> Lengths:
    """The longest prompt and the longest text.

    Raises:
        EnginewrightError: longer than the model was trained for, or a prompt that leaves no room for a token.
    """
    longest = spec.max_position_embeddings
    if config.max_seq_len > longest:
        raise EnginewrightError(
            f"{KEY}.max_seq_len is {config.max_seq_len}; the model was trained for at most {longest} tokens"
        )
    max_seq_len = config.max_seq_len or longest
    max_input_len = config.max_input_len or max_seq_len - 1
    if max_input_len >= max_seq_len:
        raise EnginewrightError(
            f"{KEY}.max_input_len is {max_input_len}; it must be below the {max_seq_len} tokens of a whole text"
        )
    return Lengths(max_input_len, max_seq_len)


def check_split(config: TensorrtLlmTargetConfig, spec: ModelSpec) -> None:
    """Whether the model divides over the ranks.

    Raises:
        EnginewrightError: it does not.
    """
    tp_size, pp_size = config.tp_size, config.pp_size
    for count, what in ((spec.num_heads, "attention heads"), (spec.intermediate_size, "feed-forward features")):
        if count % tp_size:
            raise EnginewrightError(f"{KEY}.tp_size is {tp_size}; it must divide the model's {count} {what}")
    if spec.num_kv_heads % tp_size and tp_size % spec.num_kv_heads:
        raise EnginewrightError(
            f"{KEY}.tp_size is {tp_size}; it must divide the model's {spec.num_kv_heads} key/value heads, or be a "
            "multiple of them: then ranks share one"
        )
    if spec.num_layers % pp_size:
        raise EnginewrightError(f"{KEY}.pp_size is {pp_size}; it must divide the model's {spec.num_layers} layers")


def check_engine(config: TensorrtLlmTargetConfig, spec: ModelSpec) -> None:
    """Whether the graph of this version computes the model.

    Raises:
        EnginewrightError: it does not, or its limits cannot be kept.
    """
    if spec.architecture not in ARCHITECTURES:
        raise EnginewrightError(f"target tensorrt_llm knows {', '.join(ARCHITECTURES)}; this is {spec.architecture}")
    if spec.architecture == "Qwen3ForCausalLM" and Version(config.version) < FIRST_QWEN3:
        raise EnginewrightError(
            f"{KEY}.version is {config.version}; {spec.architecture} needs {FIRST_QWEN3} or newer there"
        )
    if spec.rope_scaling.kind == "yarn":
        raise EnginewrightError(
            f"TensorRT-LLM {config.version} does not compute YaRN's rotary scaling in engines of {spec.architecture}; "
            f"write {KEY}.version=1.3.0rc29, or another target"
        )
    lengths = lengths_of(config, spec)
    if spec.sliding_window is not None and lengths.max_seq_len > spec.sliding_window:
        raise EnginewrightError(
            f"{KEY}.max_seq_len is {lengths.max_seq_len}; an engine of TensorRT-LLM {config.version} does not carry "
            f"this model's sliding window, so it must be at most its {spec.sliding_window} tokens"
        )
    if not config.in_chunks and config.max_num_tokens < lengths.max_input_len:
        raise EnginewrightError(
            f"{KEY}.max_num_tokens is {config.max_num_tokens}; without chunked_prefill and kv_cache_reuse it must hold "
            f"the longest prompt, max_input_len {lengths.max_input_len}"
        )


def check_redrafter(config: TensorrtLlmTargetConfig, spec: ModelSpec, head: HeadConfig) -> Beams:
    """Whether the graph of this version computes the head for the model.

    Raises:
        EnginewrightError: it does not.
    """
    for reason in (_version_lacks(config), _graph_lacks(spec, head), _settings_forbid(config, head)):
        if reason:
            raise EnginewrightError(f"{reason}; or write {KEY}.redrafter=off to build without the head")
    beams = Beams(config.redrafter_num_beams, config.redrafter_draft_len_per_beam, config.redrafter_greedy_search)
    rows = config.max_batch_size * (1 + beams.max_draft_tokens)
    if config.max_num_tokens < rows:
        raise EnginewrightError(
            f"{KEY}.max_num_tokens is {config.max_num_tokens}; a full batch of ReDrafter's trees has {rows} tokens: "
            "max_batch_size x (1 + redrafter_num_beams x redrafter_draft_len_per_beam)"
        )
    return beams


def _version_lacks(config: TensorrtLlmTargetConfig) -> str:
    """Why a version has no ReDrafter that takes these files; empty where it has."""
    if flow_of(config.version) == "serve":
        return (
            f"{KEY}.version is {config.version}, which has no ReDrafter: it went with the TensorRT backend; use at "
            f"most {LAST_BUILD}"
        )
    if Version(config.version) < FIRST_REDRAFTER:
        return f"{KEY}.version is {config.version}; ReDrafter needs {FIRST_REDRAFTER} here"
    return ""


def _graph_lacks(spec: ModelSpec, head: HeadConfig) -> str:
    """Why TensorRT-LLM's graph is not this model's with this head; empty where it is."""
    if spec.architecture not in REDRAFTER_CLASSES:
        return f"TensorRT-LLM has ReDrafter for {' and '.join(REDRAFTER_CLASSES)}; this is {spec.architecture}"
    if head.dialect != "tensorrt_llm":
        return (
            f"the draft head is of the dialect {head.dialect!r}, and TensorRT-LLM's graph computes 'tensorrt_llm'; "
            "train one with draft=train draft.train.dialect=tensorrt_llm"
        )
    if head.exit_dim == 2 * head.hidden_size:
        return (
            f"the draft head's exit_dim is {head.exit_dim}, twice the hidden size, for which TensorRT-LLM has no input "
            "projection; train it with another"
        )
    return ""


def _settings_forbid(config: TensorrtLlmTargetConfig, head: HeadConfig) -> str:
    """Which settings do not go with ReDrafter; empty where all do."""
    if config.pp_size > 1 or config.kv_cache_type != "paged" or config.max_beam_width > 1:
        return (
            f"ReDrafter needs {KEY}.pp_size=1, kv_cache_type=paged and max_beam_width=1; they are {config.pp_size}, "
            f"{config.kv_cache_type} and {config.max_beam_width}"
        )
    for size, what in ((head.exit_dim, "exit_dim"), (head.hidden_size, "hidden size")):
        if size % config.tp_size:
            return f"{KEY}.tp_size is {config.tp_size}; it must divide the draft head's {what}, {size}"
    return ""
