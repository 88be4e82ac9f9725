"""The converted tokenizer encodes like the original, from a folder and from what a GGUF file says about it."""

import json

import numpy as np
import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from pipelines.convert import byte_level, sentencepiece
from pipelines.convert.gguf_file import GgufFile
from pipelines.convert.gguf_tokenizer import KEY, TokenType, read_tokenizer
from runtime.errors import EnginewrightError
from tests.pipelines.running_stages import fetch_and_convert
from tests.pipelines.tiny_models import CHAT_TEMPLATE, SAMPLES, make_gguf_file, make_hf_folder


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return make_hf_folder(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module", params=["hf", "gguf"])
def converted(request, hf_folder, tmp_path_factory):
    """The tokenizer folder of a checkpoint that came from either format."""
    folder = tmp_path_factory.mktemp("converted")
    is_hf = request.param == "hf"
    source = hf_folder if is_hf else make_gguf_file(folder / "m.gguf", hf_folder=hf_folder)
    return fetch_and_convert(source, folder) / "tokenizer"


def loaded(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def generation(folder):
    return json.loads((folder / "generation.json").read_text())


def test_ids_are_those_of_the_original(converted, hf_folder):
    ours, original = loaded(converted), loaded(hf_folder)
    for text in SAMPLES:
        assert ours.encode(text).ids == original.encode(text).ids


def test_text_survives_encoding_and_decoding(converted):
    tokenizer = loaded(converted)
    for text in SAMPLES:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_control_tokens_are_left_out_of_decoded_text(converted):
    tokenizer = loaded(converted)
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode(ids) == "user\nhi\n"


def test_generation_knows_every_end_token(converted):
    fields = generation(converted)
    assert (fields["bos_token_id"], fields["pad_token_id"], fields["add_bos_token"]) == (1, 2, False)
    assert fields["eos_token_ids"][0] == 2


def test_transformers_loads_the_folder_with_its_template(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert (converted / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")


def edited(hf_folder, tmp_path, name, change):
    """A copy of the folder with one JSON file changed; `change` returning None removes it."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for path in hf_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    fields = change(json.loads((folder / name).read_text()) if (folder / name).exists() else {})
    (folder / name).write_text(json.dumps(fields)) if fields is not None else (folder / name).unlink()
    return folder


def test_a_folder_without_tokenizer_json_says_how_to_make_one(hf_folder, tmp_path):
    folder = edited(hf_folder, tmp_path, "tokenizer.json", lambda _: None)
    with pytest.raises(EnginewrightError, match=r"tokenizer\.json is missing; save .*save_pretrained"):
        fetch_and_convert(folder, tmp_path / "out")


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_sizes(hf_folder, tmp_path):
    def grow(fields):
        fields["added_tokens"].append({**fields["added_tokens"][0], "id": 384, "content": "<|new|>"})
        return fields

    folder = edited(hf_folder, tmp_path, "tokenizer.json", grow)
    with pytest.raises(EnginewrightError, match="tokenizer has 385 tokens but the model's vocabulary 384"):
        fetch_and_convert(folder, tmp_path / "out")


def test_a_length_limit_of_training_does_not_cut_prompts(hf_folder, tmp_path):
    limit = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    folder = edited(hf_folder, tmp_path, "tokenizer.json", lambda fields: fields | {"truncation": limit})
    tokenizer = loaded(fetch_and_convert(folder, tmp_path / "out") / "tokenizer")
    assert len(tokenizer.encode("The engine reads the checkpoint and writes it.").ids) > 4


def test_end_tokens_of_all_files_are_joined(hf_folder, tmp_path):
    folder = edited(hf_folder, tmp_path, "generation_config.json", lambda fields: fields | {"eos_token_id": [0, 2]})
    assert generation(fetch_and_convert(folder, tmp_path / "out") / "tokenizer")["eos_token_ids"] == [2, 0]


def test_the_default_template_is_taken_from_a_list(hf_folder, tmp_path):
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    folder = edited(hf_folder, tmp_path, "tokenizer_config.json", lambda fields: fields | {"chat_template": templates})
    assert (fetch_and_convert(folder, tmp_path / "out") / "tokenizer" / "chat_template.jinja").read_text() == "yes"


# What GGUF files alone can say: written here key by key.


def gguf_tokenizer(path, tokens, types=None, **keys):
    """Read the tokenizer of a GGUF file that has only these keys."""
    writer = GGUFWriter(path / "t.gguf", "llama")
    keys = {"tokens": tokens, "token_type": types or [1] * len(tokens), **keys}
    for key, value in keys.items():
        kinds = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        kinds[type(value)](KEY + key, value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_tokenizer(GgufFile(path / "t.gguf"), len(tokens))


def byte_alphabet():
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def split(name, text):
    rules = byte_level.rules_for(name, "test")
    return [word for word, _ in byte_level.pre_tokenizer(rules, add_prefix_space=False).pre_tokenize_str(text)]


@pytest.mark.parametrize("text", SAMPLES)
def test_words_are_split_as_the_models_own_tokenizers_do(text):
    qwen = Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer
    assert split("qwen2", text) == [word for word, _ in qwen.pre_tokenizer.pre_tokenize_str(text)]
    assert type(byte_level.normalizer(byte_level.rules_for("qwen2", ""))) is type(qwen.normalizer)
    assert TikTokenConverter().pattern == byte_level.RULES["llama-bpe"].split


def test_digits_stand_alone_in_smollm_and_in_threes_in_llama3():
    assert split("smollm", "a 1234") == ["a", "Ġ", "1", "2", "3", "4"]
    assert split("llama-bpe", "a 1234") == ["a", "Ġ", "123", "4"]
    assert split("gpt-2", "a 1234") == ["a", "Ġ1234"]


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(EnginewrightError, match=r"pre is 'tekken'; known are default, gpt-2, llama-bpe, qwen2, smollm"):
        gguf_tokenizer(tmp_path, byte_alphabet(), model="gpt2", pre="tekken", merges=["a b"])
    with pytest.raises(EnginewrightError, match=r"model is 'bert'; gpt2 and llama are supported"):
        gguf_tokenizer(tmp_path, ["a"], model="bert")


def test_bos_and_eos_are_added_where_the_file_or_its_kind_says(tmp_path):
    tokens = [*byte_alphabet(), "<s>", "</s>"]
    common = {"types": [1] * 256 + [3, 3], "model": "gpt2", "merges": ["a b"], "bos_token_id": 256, "eos_token_id": 257}
    ids = [tokens.index("a")]

    def encoded(**keys):
        return gguf_tokenizer(tmp_path, [*tokens, "ab"], **{**common, **keys}).tokenizer.encode("a").ids

    common["types"] = [*common["types"], 1]
    assert encoded(pre="gpt-2") == ids
    assert encoded(pre="llama-bpe") == [256, *ids]
    assert encoded(pre="llama-bpe", add_bos_token=False) == ids
    assert encoded(pre="gpt-2", add_bos_token=True, add_eos_token=True) == [256, *ids, 257]
    with pytest.raises(EnginewrightError, match="bos_token_id is 999 but there are 259 tokens"):
        encoded(pre="llama-bpe", bos_token_id=999)


def test_a_whole_word_of_the_vocabulary_is_one_token_in_llama3(tmp_path):
    tokens = [*byte_alphabet(), "ab", "abc"]  # no merge makes "abc"
    for pre, expected in (("llama-bpe", ["abc"]), ("gpt-2", ["ab", "c"])):
        parts = gguf_tokenizer(tmp_path, tokens, model="gpt2", pre=pre, merges=["a b"], add_bos_token=False)
        assert parts.tokenizer.encode("abc").tokens == expected


def test_end_tokens_are_the_files_and_the_well_known_control_tokens(tmp_path):
    tokens = [*byte_alphabet(), "<|im_end|>", "<|eot_id|>", "<|end|>", "ab"]
    types = [1] * 256 + [TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL, TokenType.NORMAL]
    keys = {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"], "eos_token_id": 257, "eot_token_id": 3}
    assert gguf_tokenizer(tmp_path, tokens, types, **keys).eos_token_ids == (257, 3, 256)


def test_user_defined_tokens_are_matched_and_kept_in_text(tmp_path):
    tokens = [*byte_alphabet(), "<tool>", "ab"]
    types = [1] * 256 + [TokenType.USER_DEFINED, 1]
    parts = gguf_tokenizer(tmp_path, tokens, types, model="gpt2", pre="gpt-2", merges=["a b"])
    ids = parts.tokenizer.encode("ab<tool>b").ids
    assert ids == [257, 256, tokens.index("b")]
    assert parts.tokenizer.decode(ids) == "ab<tool>b"


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"merges": ["a zz"]}, "merges do not fit tokenizer.ggml.tokens"),
        ({"merges": ["a b"], "token_type": [1, 1]}, "token_type has 2 entries but the embeddings 257 rows"),
    ],
)
def test_lists_that_do_not_fit_each_other_are_refused(tmp_path, keys, match):
    with pytest.raises(EnginewrightError, match=match):
        gguf_tokenizer(tmp_path, [*byte_alphabet(), "ab"], model="gpt2", pre="gpt-2", **keys)


def test_a_vocabulary_of_another_size_than_the_embeddings_is_refused(tmp_path):
    gguf_tokenizer(tmp_path, [*byte_alphabet(), "ab"], model="gpt2", pre="gpt-2", merges=["a b"])
    with pytest.raises(EnginewrightError, match="tokens has 257 entries but the embeddings 300 rows"):
        read_tokenizer(GgufFile(tmp_path / "t.gguf"), 300)


# SentencePiece: "▁" is a space. Scores fall with the order in which training found the tokens.
PIECES = ["▁", "a", "b", "n", "s", "an", "ban", "ana", "▁ban", "▁a", "aa", "anas", "▁banana", "ana▁"]
WORDS = ["banana", "bananas an a", "  two  spaces", "aaaaa", "naan ", "", " ", "é🙂\n", "a</s>b"]


def spm_keys(**keys):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256, *[1] * len(PIECES)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))]
    types = [int(kind) for kind in types]
    return {"tokens": tokens, "types": types, "model": "llama", "scores": scores, "bos_token_id": 1} | keys


def merged_by_score(text, scores):
    """SentencePiece's rule: join the neighbours that make the best token, the leftmost of equals, until none do."""
    symbols = list(text)
    while True:
        pairs = [
            (scores[pair], -at) for at in range(len(symbols) - 1) if (pair := symbols[at] + symbols[at + 1]) in scores
        ]
        if not pairs:
            return symbols
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def spelled(text, scores):
    merged = merged_by_score(text, scores)
    return [
        part for token in merged for part in ([token] if token in scores else [f"<0x{b:02X}>" for b in token.encode()])
    ]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_merges_by_score_and_spells_the_rest_in_bytes(tmp_path, prefix):
    tokenizer = gguf_tokenizer(tmp_path, **spm_keys(add_space_prefix=prefix, add_bos_token=False)).tokenizer
    scores = {piece: -float(rank) for rank, piece in enumerate(PIECES)}
    for text in WORDS[:-1]:
        marked = (sentencepiece.SPACE if prefix and text else "") + text.replace(" ", sentencepiece.SPACE)
        assert tokenizer.encode(text).tokens == spelled(marked, scores), text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_begins_with_bos_and_knows_control_tokens(tmp_path):
    parts = gguf_tokenizer(tmp_path, **spm_keys())
    assert parts.tokenizer.encode("a</s>a").tokens == ["<s>", "▁a", "</s>", "▁a"]
    assert parts.tokenizer.decode(parts.tokenizer.encode("a").ids) == "a"
