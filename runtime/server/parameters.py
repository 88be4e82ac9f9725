"""From a request's fields to the engine's `SamplingParams`."""

from typing import TypeVar

from runtime.errors import EnginewrightError
from runtime.sampling import SamplingParams, StructuredOutput
from runtime.server.errors import ApiError
from runtime.server.protocol import ChatRequest, CompletionRequest, GenerationRequest, ResponseFormat

_Value = TypeVar("_Value", int, float)

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions; a chat goes on to the engine's limit


def chat_params(request: ChatRequest) -> SamplingParams:
    """How to draw a chat's answer.

    Raises:
        ApiError: a field out of its bounds, or two that contradict each other.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", param="max_tokens")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return to_sampling_params(request, next(iter(limits), None), logprobs)


def completion_params(request: CompletionRequest) -> SamplingParams:
    """How to draw a completion.

    Raises:
        ApiError: a field out of its bounds.
    """
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise ApiError(400, f"best_of is {request.best_of}; this server has it equal to n alone", param="best_of")
    max_tokens = _or(COMPLETION_MAX_TOKENS, request.max_tokens)
    return to_sampling_params(request, max_tokens, request.logprobs)


def to_sampling_params(request: GenerationRequest, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """The engine's parameters; what a request leaves away has OpenAI's default.

    Raises:
        ApiError: a field out of its bounds.
    """
    try:
        return SamplingParams(
            temperature=_or(1.0, request.temperature),
            top_k=0 if request.top_k == -1 else _or(0, request.top_k),  # -1 is how vLLM says all
            top_p=_or(1.0, request.top_p),
            min_p=request.min_p or 0.0,
            seed=request.seed,
            n=_or(1, request.n),
            max_tokens=max_tokens,
            stop=tuple(request.stop or ()),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=bool(request.ignore_eos),
            logprobs=logprobs,
            logit_bias=_bias(request.logit_bias or {}),
            repetition_penalty=_or(1.0, request.repetition_penalty),
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            min_tokens=request.min_tokens or 0,
            structured=_structured(request.response_format),
        )
    except EnginewrightError as error:
        raise ApiError(400, str(error), "invalid_value") from error


def _or(default: _Value, given: _Value | None) -> _Value:
    return default if given is None else given


def _bias(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token_id): bias for token_id, bias in given.items()}
    except ValueError as error:
        raise ApiError(400, f"logit_bias: its keys are token ids ({error})", "invalid_value", "logit_bias") from error


def _structured(asked: ResponseFormat | None) -> StructuredOutput | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return StructuredOutput()
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise ApiError(400, "response_format.json_schema.schema is missing", "missing_field", "response_format")
    return StructuredOutput.from_schema(asked.json_schema.schema_)
