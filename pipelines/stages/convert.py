"""Convert: a fetched source, safetensors or GGUF, into the unified checkpoint with its tokenizer.

What can be refused is refused before the weights are written.
"""

from collections.abc import Mapping
from pathlib import Path

from pipelines.config import ConvertConfig
from pipelines.stage import Artifact, StageContext, StageOutput


class ConvertStage:
    name = "convert"
    libraries = ("gguf", "numpy", "safetensors", "tokenizers", "torch")
    hardware_bound = False
    resources: tuple[Path, ...] = ()

    def run(
        self, config: ConvertConfig, inputs: Mapping[str, Artifact], out_dir: Path, context: StageContext
    ) -> StageOutput:
        """Write config.json, weights.safetensors and tokenizer/."""
        from pipelines.convert.opening import open_source
        from pipelines.convert.tokenizer_files import check_tokenizer, write_tokenizer
        from pipelines.convert.weights import write_weights
        from runtime.formats.checkpoint import CONFIG_FILE, TOKENIZER_DIR, WEIGHTS_FILE, CheckpointConfig

        with open_source(inputs["fetch"].path) as source:
            spec = source.weights.spec
            checkpoint = CheckpointConfig(spec, config.dtype)
            check_tokenizer(source.tokenizer, spec.vocab_size, source.weights.origin)
            num_tensors = write_weights(source.weights, out_dir / WEIGHTS_FILE, config.dtype, context.progress)
            write_tokenizer(source.tokenizer, out_dir / TOKENIZER_DIR)
            (out_dir / CONFIG_FILE).write_text(checkpoint.to_json(), encoding="utf-8")
        num_bytes = (out_dir / WEIGHTS_FILE).stat().st_size
        return StageOutput(
            metrics={"parameters": spec.num_parameters, "weights_bytes": num_bytes, "tensors": num_tensors},
            summary=f"{spec.architecture}, {spec.num_parameters / 1e6:.1f} M parameters, {config.dtype}, "
            f"{num_bytes / 1e6:.1f} MB",
        )


STAGE = ConvertStage()
