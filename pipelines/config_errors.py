"""One line for each way in which composing a configuration fails: the key, and the nearest valid one."""

import re
from importlib import resources

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipelines.schema import nearest, unknown_key

# Hydra raises a bare ValueError for a choice that is no name, as in precision=5.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
OVERRIDE_PATTERNS = (r"Could not (?:override|append to config)[^']*'([^']+)'", r"Error merging override \+*([^=\s]+)=")


def explain(error: BaseException) -> str:
    """The line that a user reads instead of Hydra's and OmegaConf's chain of exceptions."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return missing_choice(str(error.missing_cfg_file))
    chain = list(causes(error))
    key = next((found for link in chain if (found := key_of(link))), "")
    cause = next((link for link in chain if isinstance(link, OmegaConfBaseException)), error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and "not in" in str(cause) and key:
        return unknown_key(key)
    reason = str(cause).partition("\n")[0]
    return f"{key}: {reason}" if key and key not in reason else f"configuration: {reason}"


def causes(error: BaseException | None) -> list[BaseException]:
    """An exception and what led to it, outermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def key_of(error: BaseException) -> str:
    """The dotted key that one exception of the chain is about; empty where it names none."""
    for pattern in OVERRIDE_PATTERNS:
        if found := re.search(pattern, str(error)):
            return found.group(1)
    # Where the key came from a file, OmegaConf's own is complete.
    return str(getattr(error, "full_key", "") or "")


def missing_choice(path: str) -> str:
    """`path` is what Hydra looked for: a group and a choice, as in `precision/bf17`."""
    group, _, name = path.removesuffix(".yaml").rpartition("/")
    if not group or not resources.files("conf").joinpath(group).is_dir():
        return unknown_key(path)
    hint = nearest(name, group_choices(group))
    remedy = "; or give a folder or a .gguf file" if group == "model" else ""
    return f"no {group} named {name!r}; {hint}{remedy}"


def group_choices(group: str) -> list[str]:
    """The names that conf/ has for one group, for a user to choose from."""
    folder = resources.files("conf").joinpath(group)
    names = sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))
    return [name for name in names if name != "custom"]
