"""What a request may say: the fields of OpenAI's API that this server has, and the extras that vLLM made common.

A field that is not here is refused by name. `null` is as good as leaving a field away.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

# The engine looks at these at every token, for all requests on one thread.
_FewStops = Field(max_length=16)
_FewTokens = Field(max_length=1024)


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Fields):
    include_usage: bool | None = None  # a last chunk with the counts
    continuous_usage_stats: bool | None = None  # counts so far in every chunk
    include_obfuscation: bool | None = None  # padding against traffic analysis: not offered, so nothing to leave out


class Extension(_Fields):
    """What only this server has."""

    drafted: bool | None = None  # streams say of each token whether a drafter proposed it


class JsonSchema(_Fields):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = None
    strict: bool | None = None

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))


class ResponseFormat(_Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Ignored(_Fields):
    """Fields that clients send for the books of a hosted service; they change no answer, and none is kept."""

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class GenerationRequest(_Ignored):
    """What both endpoints share."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Annotated[list[str], _FewStops] | None = None
    stop_token_ids: Annotated[list[int], _FewTokens] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: Annotated[dict[str, float], _FewTokens] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    enginewright: Extension | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ChatMessage(BaseModel):
    """One turn; what else it holds goes to the chat template as it is."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if not all(isinstance(text, str) for text in texts):
            raise PydanticCustomError("content", "must be text, or a list of parts of type 'text'")
        return "\n".join(map(str, texts))


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(GenerationRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: int | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise PydanticCustomError("prompt", "is an empty list")
        kind = type(items[0])
        rows = items if kind is list else [items]
        same = all(type(item) is kind for item in items)
        ids = all(type(token_id) is int for row in rows for token_id in row)
        if not same or (kind is not str and not ids) or (kind is int and not isinstance(value, list)):
            raise PydanticCustomError("prompt", "must be text, token ids, or a list of either")
        return value
