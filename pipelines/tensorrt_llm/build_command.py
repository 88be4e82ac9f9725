"""The command line of `trtllm-build`. Parallelism is not among its flags: the checkpoint fixes it."""

from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.checks import Lengths
from pipelines.tensorrt_llm.versions import PROGRAMS

TIMING_CACHE = "model.cache"
CHECKPOINT_DIR, ENGINE_DIR = "checkpoint", "engine"


def build_command(config: TensorrtLlmTargetConfig, lengths: Lengths, dtype: str, has_redrafter: bool) -> list[str]:
    """Program and arguments; paths are relative to the folder that holds checkpoint/ and gets engine/."""
    switch = {True: "enable", False: "disable"}
    flags: dict[str, str | int] = {
        "checkpoint_dir": CHECKPOINT_DIR,
        "output_dir": ENGINE_DIR,
        "max_batch_size": config.max_batch_size,
        "max_input_len": lengths.max_input_len,
        "max_seq_len": lengths.max_seq_len,
        "max_beam_width": config.max_beam_width,
        "max_num_tokens": config.max_num_tokens,
        "kv_cache_type": config.kv_cache_type,
        "gpt_attention_plugin": "auto",
        "gemm_plugin": dtype if config.gemm_plugin == "auto" else config.gemm_plugin,
        "remove_input_padding": "enable",
        "context_fmha": "enable",
        "use_paged_context_fmha": switch[config.in_chunks],
        "multiple_profiles": switch[config.multiple_profiles],
        "input_timing_cache": TIMING_CACHE,
        "output_timing_cache": TIMING_CACHE,
        "workers": config.workers,
    }
    if config.opt_num_tokens:
        flags["opt_num_tokens"] = config.opt_num_tokens
    if config.kv_cache_type == "paged":
        flags["tokens_per_block"] = config.tokens_per_block
    if has_redrafter:
        flags["speculative_decoding_mode"] = "explicit_draft_tokens"
    command = [PROGRAMS["build"], *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    return [*command, "--strip_plan"] if config.strip_plan else command
