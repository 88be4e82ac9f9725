"""Tiny random models with a real tokenizer, as a Hugging Face folder and as a GGUF file of the same weights.

The GGUF writer here is written from the format's description, apart from the reader that is tested with it.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The engine reads the checkpoint, converts every tensor and writes the weights of the model to one file.",
    "A tokenizer splits the text into words, and the words into the tokens that the model has learned.",
    "In 2024 there were 135 million parameters, 30 layers and 9 heads; in 1999 there were none of them.",
    "def forward(self, hidden):\n    for layer in self.layers:\n        hidden = layer(hidden)\n    return hidden\n",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all, as it is asleep.",
    "Naïve façades and déjà vu: the café serves crème brûlée, the señor asks for it, the Straße is long.",
]
# What tokenizers are compared over: bytes that no merge covers, digits, white space, code, special tokens in text.
SAMPLES = [
    *CORPUS,
    "",
    " ",
    "\n\n  \t x\r\n",
    "Hello 123 world\n\n  def f(x):",
    "x1y22z333 4444 ½ ٣٤ 3.14e-10",
    "日本語のテキスト 🙂👩‍👩‍👧 n\u0303 e\u0301 \u00e9",
    "it's we'LL I'd <|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start",
    "    if x == 10:\n\t\treturn {'a': [1, 2]}  # why?\n",
]


def make_hf_folder(
    path: Path,
    *,
    num_layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 384,
    tied: bool = True,
    seed: int = 0,
    family: str = "llama",
    intermediate: int | None = None,
    max_len: int = 256,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    **config: Any,
) -> Path:
    """Save a random model of a transformers `family` (llama, mistral, qwen2, qwen3) with its tokenizer; return `path`.

    Norms are not all ones and biases not all zeros, so that a tensor put in the wrong place shows. `config` goes to
    the family's config as it is.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model(
        family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **({"head_dim": hidden // heads} | config),
        max_position_embeddings=max_len,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, dtype))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    save_tokenizer(path, vocab)
    return path


def save_tokenizer(path: Path, vocab: int) -> None:
    """Train a byte-level BPE tokenizer of at most `vocab` tokens, digits apart, and save it as a model folder's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert vocab >= len(alphabet) + len(CONTROL_TOKENS), "every byte and control token needs its own id"
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(CONTROL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")


def make_gguf_file(
    path: Path, *, quantization: str = "F32", hf_folder: Path | None = None, drop: tuple[str, ...] = (), **model: Any
) -> Path:
    """Write a model as GGUF: that of `hf_folder`, or the one `make_hf_folder(..., **model)` makes; return `path`.

    Args:
        quantization: of the matrices, a name such as F32, F16 or Q8_0; vectors stay float32.
        drop: metadata keys and tensors to leave out.
    """
    if hf_folder is None:
        with TemporaryDirectory() as folder:
            return make_gguf_file(
                path, quantization=quantization, hf_folder=make_hf_folder(Path(folder), **model), drop=drop
            )
    from gguf import GGUFWriter

    config = json.loads((hf_folder / "config.json").read_text(encoding="utf-8"))
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    writer = _DroppingWriter(GGUFWriter(path, arch), drop)
    _add_model_keys(writer, arch, config)
    _add_tokenizer(writer, hf_folder, config["vocab_size"])
    _add_tensors(writer, hf_folder, arch, config, quantization)
    writer.inner.write_header_to_file()
    writer.inner.write_kv_data_to_file()
    writer.inner.write_tensors_to_file()
    writer.inner.close()
    return path


class _DroppingWriter:
    """A GGUFWriter that leaves chosen keys and tensors out."""

    def __init__(self, inner: Any, drop: tuple[str, ...]) -> None:
        self.inner = inner
        self.drop = drop

    def add(self, kind: str, key: str, value: Any) -> None:
        if key not in self.drop:
            getattr(self.inner, f"add_{kind}")(key, value)

    def add_tensor(self, name: str, values: Any, quantization: str) -> None:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        if name not in self.drop:
            kind = GGMLQuantizationType[quantization if values.ndim > 1 else "F32"]
            self.inner.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _add_model_keys(writer: _DroppingWriter, arch: str, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    writer.add("uint32", f"{arch}.block_count", config["num_hidden_layers"])
    writer.add("uint32", f"{arch}.context_length", config["max_position_embeddings"])
    writer.add("uint32", f"{arch}.embedding_length", config["hidden_size"])
    writer.add("uint32", f"{arch}.feed_forward_length", config["intermediate_size"])
    writer.add("uint32", f"{arch}.attention.head_count", config["num_attention_heads"])
    writer.add("uint32", f"{arch}.attention.head_count_kv", config["num_key_value_heads"])
    writer.add("float32", f"{arch}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add("float32", f"{arch}.rope.freq_base", rope["rope_theta"])
    writer.add("uint32", f"{arch}.vocab_size", config["vocab_size"])
    if "head_dim" in config:
        writer.add("uint32", f"{arch}.attention.key_length", config["head_dim"])
        writer.add("uint32", f"{arch}.rope.dimension_count", config["head_dim"])
    if config["model_type"] == "mistral" and config["sliding_window"]:
        writer.add("uint32", f"{arch}.attention.sliding_window", config["sliding_window"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add("string", f"{arch}.rope.scaling.type", rope["rope_type"])
        writer.add("float32", f"{arch}.rope.scaling.factor", rope["factor"])
        if "original_max_position_embeddings" in rope:
            length = rope["original_max_position_embeddings"]
            writer.add("uint32", f"{arch}.rope.scaling.original_context_length", length)


def _add_tokenizer(writer: _DroppingWriter, hf_folder: Path, vocab_size: int) -> None:
    fields = json.loads((hf_folder / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {index: token for token, index in fields["model"]["vocab"].items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    types = [3 if token in CONTROL_TOKENS else 1 if index in by_id else 5 for index, token in enumerate(tokens)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in fields["model"]["merges"]]
    writer.add("string", "tokenizer.ggml.model", "gpt2")
    writer.add("string", "tokenizer.ggml.pre", "smollm")
    writer.add("array", "tokenizer.ggml.tokens", tokens)
    writer.add("array", "tokenizer.ggml.token_type", types)
    writer.add("array", "tokenizer.ggml.merges", merges)
    writer.add("uint32", "tokenizer.ggml.bos_token_id", 1)
    writer.add("uint32", "tokenizer.ggml.eos_token_id", 2)
    writer.add("uint32", "tokenizer.ggml.padding_token_id", 2)
    writer.add("bool", "tokenizer.ggml.add_bos_token", False)
    writer.add("string", "tokenizer.chat_template", CHAT_TEMPLATE)


def _add_tensors(
    writer: _DroppingWriter, hf_folder: Path, arch: str, config: dict[str, Any], quantization: str
) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config["num_hidden_layers"])
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(hf_folder.glob("*.safetensors")):
        tensors |= load_file(shard)
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        role = name.partition(".self_attn.")[2][:1]
        if arch == "llama" and f".{role}_proj." in name and role in heads:
            # llama.cpp rotates neighbouring rows: each head's halves are interleaved.
            values = values.reshape(heads[role], 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", values, quantization)
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config).numpy(), "F32")


def _llama3_divisors(config: dict[str, Any]) -> Any:
    """Plain frequencies over transformers' scaled ones; the longest wavelengths' divisor is the factor itself."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta, head_dim = config["rope_parameters"]["rope_theta"], config["head_dim"]
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), device="cpu")
    plain = theta ** -(scaled.new_tensor(range(0, head_dim, 2)) / head_dim)
    divisors = plain / scaled
    factor = config["rope_parameters"]["factor"]
    return divisors.where(divisors < factor * (1 - 1e-5), divisors.new_tensor(factor))
