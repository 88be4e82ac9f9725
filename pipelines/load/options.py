"""What `enginewright load` can be asked for, as options of its command line. Imports nothing heavy."""

import argparse
from dataclasses import Field, dataclass, field, fields
from typing import Any

from pipelines.bounds import require

SCENARIOS = ("closed", "poisson", "burst", "long")
APIS = ("chat", "completions")


def option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True)
class LoadOptions:
    """One run of the load generator.

    Raises:
        EnginewrightError: a value out of its bounds.
    """

    url: str = option("http://127.0.0.1:8000/v1", "the endpoint, up to and with its /v1")
    model: str = option("", "model to ask for; by default the first that the endpoint lists")
    api: str = option("chat", "chat/completions or completions", choices=APIS)
    scenarios: tuple[str, ...] = option(SCENARIOS, "which to run, in this order", choices=SCENARIOS)
    requests: int = option(48, "requests of each scenario")
    users: int = option(8, "closed and long: users who each wait for an answer before they ask again")
    rate: float = option(2.0, "poisson: requests per second")
    burst: int = option(8, "burst: requests that come at once and share a prefix")
    prompt_words: int = option(64, "words of a prompt, without a shared prefix")
    prefix_words: int = option(400, "burst: words of the shared prefix")
    long_words: int = option(1000, "long: words of every fourth prompt")
    max_tokens: int = option(64, "tokens asked for")
    temperature: float = option(0.0, "of every request")
    ignore_eos: bool = option(False, "send ignore_eos, which vLLM and Enginewright know: all answers have max_tokens")
    warmups: int = option(2, "requests before the first that is recorded")
    slo_ttft_ms: float = option(1000.0, "goodput: the latest first token")
    slo_itl_ms: float = option(100.0, "goodput: the longest gap of 99 %% of a request's")
    timeout_s: float = option(600.0, "a request that takes longer has failed")
    api_key_variable: str = option("OPENAI_API_KEY", "environment variable that holds the API key, if there is one")
    seed: int = option(0, "of the prompts and of the arrivals")
    out: str = option("", "folder of the results; by default a new one under .enginewright/load")
    no_tracking: bool = option(False, "record nothing in MLflow")

    def __post_init__(self) -> None:
        for name in ("requests", "users", "burst", "prompt_words", "prefix_words", "long_words", "max_tokens"):
            require(getattr(self, name) >= 1, flag(name), getattr(self, name), "at least 1")
        for name in ("rate", "slo_ttft_ms", "slo_itl_ms", "timeout_s"):
            require(0 < getattr(self, name) < float("inf"), flag(name), getattr(self, name), "above 0")
        require(self.warmups >= 0, flag("warmups"), self.warmups, "0 or more")
        require(self.url.startswith(("http://", "https://")), flag("url"), self.url, "an http:// or https:// address")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field, with the field's default."""
    for each in fields(LoadOptions):
        if isinstance(each.default, bool):
            parser.add_argument(flag(each.name), action="store_true", help=each.metadata["help"])
        else:
            parser.add_argument(flag(each.name), help=_help(each), **_kind(each))


def options_of(parsed: argparse.Namespace) -> LoadOptions:
    """What a command line asked for."""
    values = {each.name: getattr(parsed, each.name) for each in fields(LoadOptions)}
    return LoadOptions(**{**values, "scenarios": tuple(parsed.scenarios)})


def _kind(each: "Field[Any]") -> dict[str, Any]:
    many = isinstance(each.default, tuple)
    kind: dict[str, Any] = {"default": each.default, "type": str if many else type(each.default)}
    kind |= {"nargs": "+"} if many else {}
    return kind | ({"choices": each.metadata["choices"]} if "choices" in each.metadata else {"metavar": "X"})


def _help(each: "Field[Any]") -> str:
    default = " ".join(each.default) if isinstance(each.default, tuple) else each.default
    return str(each.metadata["help"]) + (f" (default: {default})" if default != "" else "")
