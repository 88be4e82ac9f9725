"""What a chat request asks of the engine: its conversation through the model's template."""

import json
from typing import Any

from runtime.server.errors import ApiError
from runtime.server.generation import Asked
from runtime.server.parameters import chat_params
from runtime.server.protocol import ChatMessage, ChatRequest
from runtime.text.tokenizer import Tokenizer


def asked_by_chat(request: ChatRequest, tokenizer: Tokenizer) -> Asked:
    """The conversation as one prompt, encoded when the engine has room for it.

    Raises:
        ApiError: a field out of its bounds, or a call of a tool whose arguments are no JSON.
    """
    if not request.messages:
        raise ApiError(400, "messages is empty; give at least one", "invalid_value", "messages")
    messages = [_as_template_sees(message) for message in request.messages]
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    if request.tools and request.tool_choice != "none":
        variables["tools"] = request.tools
    params = chat_params(request)
    return Asked(lambda: [tokenizer.encode_chat(messages, variables)], 1, params, request.cache_salt or "")


def _as_template_sees(message: ChatMessage) -> dict[str, Any]:
    """A turn without its nulls, and with the arguments of tool calls as objects, which templates expect."""
    fields = message.model_dump(exclude_none=True)
    fields.setdefault("content", "")
    for call in fields.get("tool_calls", []):
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError as error:
                message_text = f"messages: the arguments of a tool call are no JSON ({error})"
                raise ApiError(400, message_text, "invalid_value", "messages") from error
    return fields
