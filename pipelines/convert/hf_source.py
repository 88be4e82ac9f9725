"""A Hugging Face folder as a source of weights: its safetensors files, however many, as one."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.convert.families import HF_NAMING, Part
from pipelines.convert.hf_spec import CONFIG, read_json, read_spec
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    import torch


class HfSource:
    """See pipelines/convert/source.py. A context manager: it holds the shards open. Tensors alias them.

    Raises:
        EnginewrightError: config.json or a shard is unreadable, or the model is not supported.
    """

    naming = HF_NAMING

    def __init__(self, folder: Path) -> None:
        self.origin = str(folder)
        self.spec = read_spec(read_json(folder / CONFIG), str(folder / CONFIG))
        self._stack = ExitStack()
        self._shards = self._open_shards(folder)
        self.names = frozenset(self._shards)
        # Older files keep the rotary frequencies; they follow from the config. A tied head may be stored all the same.
        inv_freq = frozenset(name for name in self.names if name.endswith(".rotary_emb.inv_freq"))
        self.optional = inv_freq | ({HF_NAMING.lm_head} if self.spec.tied_head else set())

    def __enter__(self) -> "HfSource":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, part: Part) -> "torch.Tensor":
        """One tensor in the dtype of its file."""
        from safetensors import SafetensorError

        try:
            tensor: torch.Tensor = self._shards[part.name].get_tensor(part.name)
        except SafetensorError as error:
            raise EnginewrightError(
                f"{self.origin}: tensor {part.name} cannot be read ({error}); fetch it again"
            ) from error
        if tuple(tensor.shape) != part.shape:
            raise EnginewrightError(
                f"{self.origin}: tensor {part.name} has shape {tuple(tensor.shape)} but {CONFIG} asks for "
                f"{part.shape}; fetch the source again"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise EnginewrightError(
                f"{self.origin}: tensor {part.name} is {tensor.dtype}, a quantized form; give the unquantized model"
            )
        return tensor

    def _open_shards(self, folder: Path) -> dict[str, Any]:
        """Tensor name -> the open file that holds it."""
        from safetensors import SafetensorError, safe_open

        shards: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise EnginewrightError(f"{path}: unreadable safetensors ({error}); fetch it again") from error
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in shards:
                    raise EnginewrightError(
                        f"{path}: tensor {name} is in another file of {folder} too; keep one of them"
                    )
                shards[name] = file
        return shards
