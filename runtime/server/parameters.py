"""From a request's fields to the engine's `SamplingParams`."""

from runtime.errors import EnginewrightError
from runtime.sampling import SamplingParams
from runtime.server.errors import ApiError
from runtime.server.protocol import ChatRequest, CompletionRequest, GenerationRequest

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
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return to_sampling_params(request, max_tokens, request.logprobs)


def to_sampling_params(request: GenerationRequest, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """The engine's parameters; what a request leaves away has OpenAI's default.

    Raises:
        ApiError: a field out of its bounds, or one that this engine does not have.
    """
    _refuse_missing_features(request)
    temperature = 1.0 if request.temperature is None else request.temperature
    try:
        return SamplingParams(
            temperature=temperature,
            top_k=0 if request.top_k in (None, -1) else request.top_k,  # -1 is how vLLM says all
            top_p=1.0 if request.top_p is None else request.top_p,
            min_p=request.min_p or 0.0,
            seed=request.seed,
            n=1 if request.n is None else request.n,
            max_tokens=max_tokens,
            stop=tuple(request.stop or ()),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            ignore_eos=bool(request.ignore_eos),
            logprobs=logprobs,
        )
    except EnginewrightError as error:
        raise ApiError(400, str(error), "invalid_value") from error


def _refuse_missing_features(request: GenerationRequest) -> None:
    neutral = {
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "min_tokens": 0,
    }
    for name, value in neutral.items():
        if getattr(request, name) not in (None, value):
            raise ApiError(400, f"{name} is not supported by this engine", "unsupported", name)
    if request.response_format is not None and request.response_format.type != "text":
        message = f"response_format {request.response_format.type!r} is not supported by this engine"
        raise ApiError(400, message, "unsupported", "response_format")
