"""A bundle as MLflow serves it: messages in, an answer out, in the form of OpenAI's Responses.

MLflow runs this file as the model's code; it imports mlflow and runtime alone, and nothing is pickled. Requests are
answered one at a time: `enginewright serve` is for load.
"""

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import (
    ResponsesAgentRequest,
    ResponsesAgentResponse,
    ResponsesAgentStreamEvent,
    create_text_delta,
    create_text_output_item,
)

from runtime import LLM, SamplingParams


class Answers:
    """Chat through the model's own template; greedy unless the request has a temperature.

    MLflow traces what a subclass of ResponsesAgent defines, prompts and answers, into the tracking store. This is none.
    """

    def load_context(self, context: Any) -> None:
        bundle, asked = Path(context.artifacts["bundle"]), context.model_config["target"]
        self.llm = LLM(bundle, None if asked == "auto" else asked)
        self.lock = threading.Lock()

    def predict(self, request: ResponsesAgentRequest) -> ResponsesAgentResponse:
        text = "".join(self._pieces(request))
        return ResponsesAgentResponse(output=[create_text_output_item(text, str(uuid4()))])

    def predict_stream(self, request: ResponsesAgentRequest) -> Generator[ResponsesAgentStreamEvent, None, None]:
        item, pieces = str(uuid4()), []
        for text in self._pieces(request):
            pieces.append(text)
            yield ResponsesAgentStreamEvent(**create_text_delta(text, item))
        done = create_text_output_item("".join(pieces), item)
        yield ResponsesAgentStreamEvent(type="response.output_item.done", item=done)

    def _pieces(self, request: ResponsesAgentRequest) -> Iterator[str]:
        messages = [{"role": item.role, "content": _text(item.content)} for item in request.input]
        asked = {"temperature": request.temperature, "top_p": request.top_p, "max_tokens": request.max_output_tokens}
        params = SamplingParams(**{name: value for name, value in asked.items() if value is not None})
        prompt = self.llm.text_engine.tokenizer.encode_chat(messages)
        with self.lock:
            for delta in self.llm.stream(prompt, params):
                yield delta.text


class BundleAgent(Answers, ResponsesAgent):  # type: ignore[misc]
    """The answers as MLflow wants them."""


def _text(content: Any) -> str:
    """A message's text, which may come in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


mlflow.models.set_model(BundleAgent())
