"""From the command line, the environment and the files of conf/ to one BuildConfig.

`build_config` is the only door: Hydra's application and `load_config` both go through it.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pipelines.config import BuildConfig, DraftConfig, ModelConfig, PathsConfig, TrackingConfig
from pipelines.config_errors import COMPOSITION_ERRORS, explain, group_choices
from pipelines.schema import from_container, mutable_mirror, nearest
from pipelines.sources import hub_address
from pipelines.tensorrt_llm.installed import resolved
from runtime.errors import EnginewrightError

SOURCE_SCHEMES = ("pypi:", hub_address.SCHEME)
ENVIRONMENT = {"ENGINEWRIGHT_HOME": "paths.root", "MLFLOW_TRACKING_URI": "tracking.uri"}
GGUF_QUANTIZATION = re.compile(r"\.(I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)

ConfigStore.instance().store(name="build_schema", node=mutable_mirror(BuildConfig))


def load_config(overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> BuildConfig:
    """Compose conf/ with overrides as on the command line.

    Raises:
        EnginewrightError: one line that names the key, and the nearest valid one where it is unknown.
    """
    arguments = translate(overrides, environment or {})
    try:
        with initialize_config_module("conf", version_base="1.3"):
            composed = compose("config", overrides=arguments)
    except COMPOSITION_ERRORS as error:
        raise EnginewrightError(explain(error)) from error
    return build_config(composed)


def build_config(composed: DictConfig) -> BuildConfig:
    """Turn what Hydra composed into frozen dataclasses with every derived value filled in."""
    values = OmegaConf.to_container(composed, resolve=True, enum_to_str=False)
    assert isinstance(values, dict)
    config = from_container(BuildConfig, {str(key): value for key, value in values.items()})
    if not config.target.names:
        raise EnginewrightError("target is empty; write target=[cpu]")
    if config.target.tensorrt_llm is not None:
        config = replace(config, target=replace(config.target, tensorrt_llm=resolved(config.target.tensorrt_llm)))
    paths = PathsConfig(root=str(Path(config.paths.root).expanduser().absolute()))
    model = resolve_model(config.model)
    draft = resolve_draft(config.draft)
    name = config.package.name or f"{model.name}-{config.precision.name}"
    package = replace(config.package, name=checked_name("package.name", name))
    tracking = resolve_tracking(config.tracking, paths)
    return replace(config, model=model, draft=draft, paths=paths, package=package, tracking=tracking)


def resolve_tracking(tracking: TrackingConfig, paths: PathsConfig) -> TrackingConfig:
    """Fill in the local store where no other is named."""
    return tracking if tracking.uri else replace(tracking, uri=f"sqlite:///{paths.tracking}/mlflow.db")


def resolve_model(model: ModelConfig) -> ModelConfig:
    """Fill in the name, and make the path of a local source absolute. `org/name` is the Hub's unless it is a path here.

    Raises:
        EnginewrightError: no source, no such file or folder, or a name that cannot name a folder.
    """
    source = model.source
    if not source:
        raise EnginewrightError("model.source is empty; write model=<name, folder or .gguf file>")
    if hub_address.is_hub_name(source) and not exists(source):
        source = hub_address.SCHEME + source
    if not source.startswith(SOURCE_SCHEMES):
        path = Path(os.path.expanduser(source)).absolute()
        if not exists(source):
            raise EnginewrightError(f"model source {source!r} does not exist; give a folder or a .gguf file")
        if not path.is_dir() and path.suffix != ".gguf":
            raise EnginewrightError(f"model source {source!r} is no model; give a folder or a .gguf file")
        source = str(path)
    return replace(model, source=source, name=checked_name("model.name", model.name or derived_name(source)))


def resolve_draft(draft: DraftConfig) -> DraftConfig:
    """Fill in the drafting model: the file of conf/model that `draft.source` names, or a model of that source.

    Raises:
        EnginewrightError: as `resolve_model`, under the name `draft.source`.
    """
    if not draft.source:
        return draft
    model = replace(draft.model, source=draft.source)
    if not exists(draft.source) and draft.source in group_choices("model"):
        file = resources.files("conf").joinpath("model", f"{draft.source}.yaml")
        named = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
        assert isinstance(named, dict)
        model = from_container(ModelConfig, {str(key): value for key, value in named.items()})
    try:
        return replace(draft, model=resolve_model(model))
    except EnginewrightError as error:
        raise EnginewrightError(f"draft.source: {error}") from error


def derived_name(source: str) -> str:
    """A model's name from its file or folder: `/x/SmolLM2-135M-Instruct.Q4_1.gguf` gives `smollm2-135m-instruct`."""
    if source.startswith(hub_address.SCHEME):
        address = hub_address.parse_address(source)
        source = address.file or address.repo
    last = source.rpartition("#")[2].rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", GGUF_QUANTIZATION.sub("", last).lower()).strip("-.")


def checked_name(key: str, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise EnginewrightError(f"{key} is {name!r}; it names a folder: use letters, digits, '.', '_' and '-'")
    return name


def translate(arguments: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Put the environment before the overrides, and turn `model=<path or source>` into settings.

    The environment wins over files, the command line over both. Options such as `-m` stay where they are, and the
    overrides together, as Hydra's parser wants them.
    """
    given = [f"{key}={quoted(environment[name])}" for name, key in ENVIRONMENT.items() if environment.get(name)]
    translated = [part for argument in arguments for part in translate_model(argument)]
    is_override = [not part.startswith("-") and "=" in part for part in translated]
    first = is_override.index(True) if True in is_override else len(translated)
    return translated[:first] + given + translated[first:]


def translate_model(override: str) -> Sequence[str]:
    """`model=a.gguf` as `model=custom model.source='a.gguf'`; anything else as it is. A comma is a sweep.

    An address for `draft.source` may hold what Hydra's grammar does not take, such as `==`, and is quoted too.
    """
    key, _, value = override.partition("=")
    if key == "draft.source" and value.startswith(SOURCE_SCHEMES):
        return [f"{key}={quoted(value)}"]
    values = [value] if exists(value) else value.split(",")
    sources = [item for item in values if is_source(item)]
    if key != "model" or not sources:
        return [override]
    if len(sources) < len(values):
        raise EnginewrightError(f"model={value} mixes names and paths; sweep over one kind at a time")
    for source in sources:
        check_source(source)
    return ["model=custom", "model.source=" + ",".join(map(quoted, sources))]


def is_source(value: str) -> bool:
    """Whether a value of `model=` is a path or a source, not the name of a file in conf/model."""
    if value.startswith(SOURCE_SCHEMES) or "/" in value or value.endswith(".gguf"):
        return True
    return value not in group_choices("model") and exists(value)


def check_source(source: str) -> None:
    if not source.startswith(SOURCE_SCHEMES) and not exists(source) and not hub_address.is_hub_name(source):
        hint = nearest(source, group_choices("model"))
        raise EnginewrightError(f"no model named {source!r}, and no such file or folder; {hint}")


def exists(path: str) -> bool:
    """Whether something is there; False also for a path that may not be looked at, or that no file can have."""
    return os.path.exists(os.path.expanduser(path))


def quoted(value: str) -> str:
    """A value that Hydra's grammar takes as one string, whatever is in it."""
    return "'" + value.replace("'", "\\'") + "'"
