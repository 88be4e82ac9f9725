"""A Hugging Face folder as a source of weights: its safetensors files, however many, as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.convert.families import HF_NAMING, Part
from pipelines.convert.hf_spec import CONFIG, read_json, read_spec
from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    import torch


INDEX = "model.safetensors.index.json"


class HfSource:
    """See pipelines/convert/source.py. Tensors alias their shard, which is mapped anew for each of them.

    One mapping for all of them would keep every page that was read, and grow to the size of the model.

    Raises:
        EnginewrightError: config.json or a shard is unreadable, or the model is not supported.
    """

    naming = HF_NAMING

    def __init__(self, folder: Path) -> None:
        self.origin = str(folder)
        self.spec = read_spec(read_json(folder / CONFIG), str(folder / CONFIG))
        self._shards = self._list_shards(folder)
        self.names = frozenset(self._shards)
        # Older files keep the rotary frequencies; they follow from the config. A tied head may be stored all the same.
        inv_freq = frozenset(name for name in self.names if name.endswith(".rotary_emb.inv_freq"))
        self.optional = inv_freq | ({HF_NAMING.lm_head} if self.spec.tied_head else set())

    def read(self, part: Part) -> "torch.Tensor":
        """One tensor in the dtype of its file."""
        with _opened(self._shards[part.name]) as file:
            tensor: torch.Tensor = file.get_tensor(part.name)
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

    def _list_shards(self, folder: Path) -> dict[str, Path]:
        """Tensor name -> the file that holds it.

        Raises:
            EnginewrightError: a file is unreadable, two hold one tensor, or the index names one that is not there.
        """
        shards: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name in shards:
                        raise EnginewrightError(
                            f"{path}: tensor {name} is in another file of {folder} too; keep one of them"
                        )
                    shards[name] = path
        _check_index(folder / INDEX, shards)
        return shards


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """One shard, open; a header of absurd length or data that ends early is refused here."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise EnginewrightError(f"{path}: unreadable safetensors ({error}); fetch it again") from error


def _check_index(path: Path, shards: dict[str, Path]) -> None:
    """Compare the shards with the index that came with them, where one did."""
    if not path.is_file():
        return
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict):
        raise EnginewrightError(f"{path}: has no weight_map; fetch the source again")
    present = {shard.name for shard in shards.values()}
    for name, file in sorted(placed.items()):
        if file not in present:
            raise EnginewrightError(f"{path}: names {file}, which is not in the folder; fetch the source again")
        if name not in shards:
            raise EnginewrightError(f"{path}: says that {file} holds {name}, but it does not; fetch the source again")
