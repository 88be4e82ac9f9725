"""What a completion request asks of the engine: one prompt or many, as text or token ids."""

from runtime.server.generation import Asked
from runtime.server.parameters import completion_params
from runtime.server.protocol import CompletionRequest
from runtime.text.tokenizer import Tokenizer
from runtime.text_engine import Prompt


def asked_by_completion(request: CompletionRequest, tokenizer: Tokenizer) -> Asked:
    """The prompts, encoded when the engine has room for them.

    Raises:
        ApiError: a field out of its bounds.
    """
    prompts = prompts_of(request)

    def encode() -> list[list[int]]:
        return [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

    return Asked(encode, len(prompts), completion_params(request), request.cache_salt or "")


def prompts_of(request: CompletionRequest) -> list[Prompt]:
    """Each prompt of a request, whichever of OpenAI's four forms it has."""
    if isinstance(request.prompt, str):
        return [request.prompt]
    token_ids = [item for item in request.prompt if isinstance(item, int)]
    if token_ids:
        return [token_ids]
    return [item for item in request.prompt if not isinstance(item, int)]
