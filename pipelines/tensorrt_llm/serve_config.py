"""trtllm-serve's configuration and command line, for versions that load Hugging Face folders."""

from typing import Any

from pipelines.target_config import TensorrtLlmTargetConfig
from pipelines.tensorrt_llm.checks import Lengths
from pipelines.tensorrt_llm.speculation import Speculation
from pipelines.tensorrt_llm.versions import PROGRAMS

CONFIG_FILE = "serve.yaml"
MODEL_DIR, DRAFT_MODEL_DIR = "model", "draft_model"


def serve_config(config: TensorrtLlmTargetConfig, speculation: Speculation) -> dict[str, Any]:
    """The YAML file's fields; the path of a draft model is relative to the folder that holds model/."""
    fields: dict[str, Any] = {
        "enable_chunked_prefill": config.chunked_prefill,
        "kv_cache_config": {
            "enable_block_reuse": config.kv_cache_reuse,
            "free_gpu_memory_fraction": config.kv_cache_fraction,
            "tokens_per_block": config.tokens_per_block,
        },
    }
    if speculation.kind == "ngram":
        fields["speculative_config"] = {
            "decoding_type": "NGram",
            "max_draft_len": config.max_draft_len,
            "max_matching_ngram_size": config.max_matching_ngram_size,
        }
    if speculation.kind == "model":
        fields["speculative_config"] = {
            "decoding_type": "DraftTarget",
            "max_draft_len": config.max_draft_len,
            "speculative_model": DRAFT_MODEL_DIR,
        }
    if "speculative_config" in fields:
        fields["disable_overlap_scheduler"] = True  # both need it
    return fields


def serve_command(config: TensorrtLlmTargetConfig, lengths: Lengths) -> list[str]:
    """Program and arguments; paths are relative to the folder that holds model/ and serve.yaml."""
    flags = {
        "config": CONFIG_FILE,
        "tp_size": config.tp_size,
        "pp_size": config.pp_size,
        "max_batch_size": config.max_batch_size,
        "max_num_tokens": config.max_num_tokens,
        "max_seq_len": lengths.max_seq_len,
        "max_beam_width": config.max_beam_width,
    }
    return [
        PROGRAMS["serve"],
        MODEL_DIR,
        *(word for name, value in flags.items() for word in (f"--{name}", str(value))),
    ]
