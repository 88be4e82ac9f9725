"""A Hugging Face model folder on this machine as a model source: weights, tokenizer and json, nothing that can run."""

import json
from fnmatch import fnmatch
from pathlib import Path

from pipelines.config import ModelConfig
from pipelines.digest import content_digest, folder_entries
from pipelines.sources.fetched import Fetched, copy_file
from pipelines.stage import Progress
from runtime.errors import EnginewrightError

WEIGHTS, OWN_WEIGHTS = "*.safetensors", "model*.safetensors"
TAKEN = (WEIGHTS, "*.json", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.msgpack", "*.h5")
REMEDY_PICKLE = "save the model as safetensors (save_pretrained does) and give that folder"


def fetch_folder(config: ModelConfig, folder: Path, progress: Progress) -> Fetched:
    """Copy what a conversion needs into `folder`; subfolders and other files are left.

    Raises:
        EnginewrightError: not a model folder, pickles only, code of its own, or not the pinned content.
    """
    source = Path(config.source)
    try:
        names = sorted(path.name for path in source.iterdir() if path.is_file())
    except OSError as error:
        raise EnginewrightError(
            f"{source}: cannot be read ({error.strerror}); check the path and permissions"
        ) from error
    check_names(str(source), names)
    refuse_remote_code(source / "config.json", str(source))
    taken = taken_names(names)
    for done, name in enumerate(taken, start=1):
        copy_file(source / name, folder / name)
        progress.advance(done, len(taken), name)
    digest = check_content(config, folder)
    return Fetched("hf", source.resolve().name, f"sha256:{digest}")


def check_content(config: ModelConfig, folder: Path) -> str:
    """Return the digest of a fetched folder's content, checked against the model's pins."""
    if config.file_sha256:
        raise EnginewrightError(
            "model.file_sha256 pins a file inside a wheel; pin a folder's content with model.sha256"
        )
    digest = content_digest(folder_entries(folder))
    if config.sha256 and digest != config.sha256.lower():
        raise EnginewrightError(
            f"{config.source}: content digest is {digest} but model.sha256 says {config.sha256}; "
            "correct model.sha256 if the new content is the right one"
        )
    return digest


def taken_names(names: list[str]) -> list[str]:
    """The files of a model folder that a conversion needs.

    Where there are weights under transformers' own names (`model*.safetensors`), others, such as Mistral's
    `consolidated.safetensors`, hold the same weights in another layout.
    """
    taken = [name for name in names if _matches(name, TAKEN)]
    own = any(fnmatch(name, OWN_WEIGHTS) for name in taken)
    return [name for name in taken if not (own and fnmatch(name, WEIGHTS) and not fnmatch(name, OWN_WEIGHTS))]


def check_names(source: str, names: list[str]) -> None:
    """Decide by the files' names alone whether this is a folder that can be converted."""
    if "config.json" not in names:
        gguf = [name for name in names if name.endswith(".gguf")]
        hint = f"give the file {source}/{gguf[0]}" if gguf else "give a Hugging Face model folder or a .gguf file"
        raise EnginewrightError(f"{source}: has no config.json; {hint}")
    if code := [name for name in names if name.endswith(".py")]:
        raise EnginewrightError(
            f"{source}: holds remote code ({code[0]}), which is never run; "
            "delete it if the architecture is one that is built in"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickles := [name for name in names if _matches(name, PICKLES)]:
        raise EnginewrightError(f"{source}: weights are pickles ({pickles[0]}), which can run code; {REMEDY_PICKLE}")
    raise EnginewrightError(f"{source}: has no *.safetensors; {REMEDY_PICKLE}")


def refuse_remote_code(path: Path, source: str) -> None:
    """Raise where the config.json at `path` names code of the model's own; `source` names the model in errors."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnginewrightError(
            f"{source}/config.json: cannot be read as JSON ({error}); fetch the model again"
        ) from error
    if isinstance(fields, dict) and "auto_map" in fields:
        code = next(iter(dict(fields["auto_map"]).values()), "")
        raise EnginewrightError(
            f"{source}/config.json: auto_map asks for remote code ({code}), "
            "which is never run; give a model whose architecture is built in"
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not name.startswith(".") and any(fnmatch(name, pattern) for pattern in patterns)
