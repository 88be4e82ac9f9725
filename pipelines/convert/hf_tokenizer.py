"""The tokenizer of a Hugging Face folder: tokenizer.json, with special tokens and template from the files beside it."""

from pathlib import Path
from typing import Any

from pipelines.convert.hf_spec import CONFIG, read_json
from pipelines.convert.tokenizer_files import TokenizerParts
from runtime.errors import EnginewrightError


def read_tokenizer(folder: Path) -> TokenizerParts:
    """Read the tokenizer of a model folder.

    Raises:
        EnginewrightError: there is no tokenizer.json, or a file is unreadable.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise EnginewrightError(
            f"{folder}: tokenizer.json is missing; save the model's tokenizer there with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise EnginewrightError(f"{path}: unreadable tokenizer ({error}); fetch the source again") from error
    # A length limit or padding left over from training must not cut or fill prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    named = _optional_json(folder / "tokenizer_config.json")
    configs = [_optional_json(folder / "generation_config.json"), _optional_json(folder / CONFIG)]

    def ids(role: str) -> list[int]:
        found = [token_id for config in configs for token_id in _as_list(config.get(f"{role}_token_id"))]
        text = named.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        own = tokenizer.token_to_id(text) if text else None
        return list(dict.fromkeys(([own] if own is not None else []) + found))

    template, template_file = _chat_template(folder, named)
    return TokenizerParts(
        tokenizer=tokenizer,
        bos_token_id=next(iter(ids("bos")), None),
        eos_token_ids=tuple(ids("eos")),
        pad_token_id=next(iter(ids("pad")), None),
        chat_template=template,
        template_origin=str(folder / template_file),
    )


def _chat_template(folder: Path, named: dict[str, Any]) -> tuple[str, str]:
    """The template and the name of its file."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8"), path.name
    template, origin = named.get("chat_template") or "", "tokenizer_config.json"
    if not template:
        origin = "chat_template.json"
        template = _optional_json(folder / origin).get("chat_template") or ""
    if isinstance(template, list):  # several by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default", "")
    return str(template), origin


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
