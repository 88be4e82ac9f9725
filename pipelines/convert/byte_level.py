"""How byte-level BPE vocabularies of GGUF files split text before merging, by `tokenizer.ggml.pre`.

A split that is nearly right gives a tokenizer that works and a model that is subtly worse, so an unknown name is an
error, not a default.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import EnginewrightError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ByteLevelRules:
    """One `tokenizer.ggml.pre`.

    split: the pattern whose matches are words; "" for GPT-2's, which the tokenizers library has built in.
    single_digits: digits are cut apart before that.
    ignore_merges: a word that is in the vocabulary is one token, whatever the merges say.
    adds_bos: whether text begins with BOS where the file does not say.
    nfc: text is brought into Unicode's composed form first.
    """

    split: str = ""
    single_digits: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False
    nfc: bool = False


RULES = {
    "default": ByteLevelRules(),
    "gpt-2": ByteLevelRules(),
    "smollm": ByteLevelRules(single_digits=True),
    "llama-bpe": ByteLevelRules(_LLAMA3_SPLIT, ignore_merges=True, adds_bos=True),
    "qwen2": ByteLevelRules(_LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}"), nfc=True),
}


def rules_for(name: str, origin: str) -> ByteLevelRules:
    """The rules of a `tokenizer.ggml.pre`; `origin` names the file in errors."""
    if name not in RULES:
        raise EnginewrightError(
            f"{origin}: tokenizer.ggml.pre is {name!r}; known are {', '.join(sorted(RULES))}; "
            "give the model as a Hugging Face folder with tokenizer.json"
        )
    return RULES[name]


def pre_tokenizer(rules: ByteLevelRules, add_prefix_space: bool) -> "PreTokenizer":
    """Split text into words, spelled in the byte alphabet."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = []
    if rules.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.split:
        steps.append(pre_tokenizers.Split(Regex(rules.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not rules.split))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def normalizer(rules: ByteLevelRules) -> "Normalizer | None":
    from tokenizers import normalizers

    return normalizers.NFC() if rules.nfc else None
