"""Chat templates: Jinja that comes with a checkpoint, rendered in a sandbox because it is foreign code."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypedDict

import jinja2
import jinja2.sandbox

from runtime.errors import EnginewrightError


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template and the two tokens it may write.

    Raises:
        EnginewrightError: the template does not compile.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        # The options that templates in the field are written against.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise EnginewrightError(f"the chat template does not compile ({error}); fix it in the model") from error

    def render(self, messages: Sequence[Mapping[str, object]], variables: Mapping[str, Any] | None = None) -> str:
        """The prompt text of a conversation, up to the start of the assistant's turn.

        variables: what else the template may look at, such as `tools`, definitions of functions.

        Raises:
            EnginewrightError: the template refuses these messages or tries what the sandbox forbids.
        """
        fixed = {"messages": messages, "add_generation_prompt": True, **self._tokens}
        try:
            return self._template.render({"tools": None, **(variables or {}), **fixed})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # foreign code may stumble in any of these ways
            raise EnginewrightError(f"the chat template refused the messages: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise EnginewrightError("the chat template recurses without end, or asks for too much memory") from error


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON as templates expect it. Jinja's own filter writes `<` as an escape, for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
