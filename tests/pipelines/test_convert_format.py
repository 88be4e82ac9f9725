"""The unified checkpoint's file, read by hand: TensorRT-LLM's names and shapes in their order, whatever wrote it.

The table is typed from TensorRT-LLM's documents of its checkpoint format, not from our code.
"""

import json
import os
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from runtime.formats.safetensors_writer import SafetensorsWriter
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import make_hf_folder, save_tokenizer

# V vocabulary, H hidden, I intermediate, N query heads, K key/value heads, D head size; ? stands for a variant.
FIRST = [("transformer.vocab_embedding.weight", "V H")]
LAYER = [
    ("input_layernorm.weight", "H"),
    ("attention.qkv.weight", "(N+2K)D H"),
    ("attention.qkv.bias ?bias", "(N+2K)D"),
    ("attention.q_layernorm.weight ?qk_norm", "D"),
    ("attention.k_layernorm.weight ?qk_norm", "D"),
    ("attention.dense.weight", "H ND"),
    ("post_layernorm.weight", "H"),
    ("mlp.fc.weight", "I H"),  # Hugging Face's gate_proj
    ("mlp.gate.weight", "I H"),  # Hugging Face's up_proj
    ("mlp.proj.weight", "H I"),
]
LAST = [("transformer.ln_f.weight", "H"), ("lm_head.weight ?untied", "V H")]
SIZES = {"V": 384, "H": 64, "I": 128, "D": 16, "ND": 64, "(N+2K)D": 128}
MODELS = {
    "llama": ({"family": "llama", "tied": True}, set()),
    "mistral": ({"family": "mistral", "tied": False}, {"untied"}),
    "qwen2": ({"family": "qwen2", "tied": False}, {"bias", "untied"}),
    "qwen3": ({"family": "qwen3", "tied": True}, {"qk_norm"}),
}
FIELDS = {
    "logits_dtype": "float32", "vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_size": 16, "intermediate_size": 128, "position_embedding_type": "rope_gpt_neox",
    "max_position_embeddings": 256, "use_parallel_embedding": True, "embedding_sharding_dim": 0,
    "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
}  # fmt: skip


def table(variants, num_layers=2):
    rows = FIRST + [
        (f"transformer.layers.{layer}.{name}", shape) for layer in range(num_layers) for name, shape in LAYER
    ]
    for name, shape in rows + LAST:
        name, _, variant = name.partition(" ?")
        if not variant or variant in variants:
            yield name, [SIZES[size] for size in shape.split()]


@pytest.mark.parametrize("family", MODELS)
def test_names_shapes_and_order_are_the_formats(family, tmp_path):
    model, variants = MODELS[family]
    folder = fetch_and_convert(make_hf_folder(tmp_path / "hf", **model), tmp_path / "out", "bfloat16")
    content = (folder / "weights.safetensors").read_bytes()
    header_len = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + header_len])
    in_file = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
    assert [(name, entry["shape"]) for name, entry in in_file] == list(table(variants))
    assert list(entries) == [name for name, _ in table(variants)]
    assert {entry["dtype"] for entry in entries.values()} == {"BF16"}
    end = 0
    for _, entry in in_file:  # without gaps, to the last byte
        assert entry["data_offsets"] == [end, end + 2 * prod(entry["shape"])]
        end = entry["data_offsets"][1]
    assert len(content) == 8 + header_len + end
    fields = json.loads((folder / "config.json").read_text())
    assert {name: fields[name] for name in FIELDS} == FIELDS
    assert (fields["qk_layernorm"], fields["attn_bias"]) == ("qk_norm" in variants, "bias" in variants)


GIB = 2**30
CONVERT = """
import resource, sys
from pathlib import Path
from tests.pipelines.running_stages import run_convert
run_convert(Path(sys.argv[1]), Path(sys.argv[2]), "bfloat16")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_large_source(fetched: Path, num_layers: int) -> int:
    """A fetched llama of about 4 GB in bfloat16, a shard for each seven layers; returns the weights' bytes."""
    folder = fetched / "source"
    make_hf_folder(folder, hidden=2048, heads=16, kv_heads=4, intermediate=8192, num_layers=1, tied=False, vocab=65_536,
                   dtype="bfloat16")  # fmt: skip
    (folder / "model.safetensors").unlink()
    save_tokenizer(folder, 384)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(config))
    (fetched / "source.json").write_text(json.dumps({"kind": "hf", "files": []}))
    layer = {
        "input_layernorm": (2048,), "self_attn.q_proj": (2048, 2048), "self_attn.k_proj": (512, 2048),
        "self_attn.v_proj": (512, 2048), "self_attn.o_proj": (2048, 2048), "post_attention_layernorm": (2048,),
        "mlp.gate_proj": (8192, 2048), "mlp.up_proj": (8192, 2048), "mlp.down_proj": (2048, 8192),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (65_536, 2048), "model.norm.weight": (2048,),
              "lm_head.weight": (65_536, 2048)}  # fmt: skip
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(num_layers) for name, shape in layer.items()}
    names = list(shapes)
    tile = torch.randn(2048, dtype=torch.bfloat16)
    per_shard = 7 * len(layer)
    for number, start in enumerate(range(0, len(names), per_shard)):
        shard = {name: shapes[name] for name in names[start : start + per_shard]}
        with SafetensorsWriter(
            folder / f"model-{number:05}.safetensors", shard, "bfloat16", {"format": "pt"}
        ) as writer:
            for name, shape in shard.items():
                writer.write(name, tile.repeat(prod(shape) // 2048).view(shape))
    return 2 * sum(prod(shape) for shape in shapes.values())


@pytest.mark.slow
def test_four_gigabytes_are_converted_in_less_than_one_and_a_half(tmp_path):
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of free disk")
    num_bytes = make_large_source(tmp_path / "fetched", 30)
    assert num_bytes > 4e9
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(tmp_path / "fetched"), str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    try:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/weights.safetensors").stat().st_size > num_bytes
        assert int(done.stdout) < 1.5 * GIB, f"{int(done.stdout) / GIB:.2f} GiB"
    finally:  # pytest keeps folders, and these are large
        for path in tmp_path.rglob("*.safetensors"):
            path.unlink()
