"""The streaming writer's files are ordinary safetensors files, and appear only when they are complete."""

import pytest
import torch
from safetensors.torch import load_file

from runtime.formats.safetensors_writer import DATA_ALIGNMENT, SafetensorsWriter

SHAPES = {"a.weight": (3, 5), "b": (7,), "empty": (0, 4), "c": (2, 3, 4)}


def write(path, dtype):
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    with SafetensorsWriter(path, SHAPES, str(dtype).removeprefix("torch.")) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_library_reads_back_what_was_written(tmp_path, dtype):
    tensors = write(tmp_path / "w.safetensors", dtype)
    read = load_file(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == dtype
    assert (8 + int.from_bytes((tmp_path / "w.safetensors").read_bytes()[:8], "little")) % DATA_ALIGNMENT == 0


def test_views_are_written_by_value(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    with SafetensorsWriter(tmp_path / "w.safetensors", {"t": (6, 4), "row": (6,)}, "float32") as writer:
        writer.write("t", base.T)
        writer.write("row", base[1])
    read = load_file(tmp_path / "w.safetensors")
    assert torch.equal(read["t"], base.T)
    assert torch.equal(read["row"], base[1])


def test_a_write_that_fails_leaves_no_file(tmp_path):
    def tensors():
        yield "a.weight", torch.zeros(3, 5)
        raise RuntimeError("stop")

    def write_all():
        with SafetensorsWriter(tmp_path / "w.safetensors", SHAPES, "float32") as writer:
            for name, tensor in tensors():
                writer.write(name, tensor)

    with pytest.raises(RuntimeError, match="stop"):
        write_all()
    assert list(tmp_path.iterdir()) == []


def test_tensors_out_of_order_are_a_bug(tmp_path):
    with pytest.raises(AssertionError), SafetensorsWriter(tmp_path / "w.safetensors", SHAPES, "float32") as writer:
        writer.write("b", torch.zeros(7))
