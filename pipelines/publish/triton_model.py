"""A bundle as a model of Triton's python backend: prompt in, pieces of text out as they come.

Triton runs this file as `<model>/1/model.py`, beside the bundle and the code that runs it; nothing else of ours is
there. Requests of many callers share the engine's steps.
"""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from runtime import AsyncLLM, SamplingParams

OPTIONS: dict[str, type] = {"max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "seed": int}


class TritonPythonModel:
    """What Triton calls: `initialize` once, `execute` for each batch of requests, `finalize` at the end."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle. args: Triton's description of the model."""
        config = json.loads(args["model_config"])
        asked = config["parameters"]["target"]["string_value"]
        bundle = Path(__file__).with_name("bundle")
        self.llm = AsyncLLM(bundle, None if asked == "auto" else asked)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.open: set[Any] = set()

    def execute(self, requests: list[Any]) -> None:
        """Begin to answer; the answers go through each request's own sender."""
        for request in requests:
            answer = asyncio.run_coroutine_threadsafe(self._answer(request), self.loop)
            self.open.add(answer)
            answer.add_done_callback(self.open.discard)

    def finalize(self) -> None:
        """End what is open, and the engine."""
        for answer in list(self.open):
            answer.cancel()
        self.llm.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        last: dict[str, Any] = {"flags": pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL}
        try:
            prompt, params = _text(request, "prompt"), _params(request)
            async for delta in self.llm.stream(prompt, params):
                if sender.is_cancelled():
                    break
                piece = pb_utils.Tensor("text", np.array([delta.text.encode()], dtype=np.object_))
                sender.send(pb_utils.InferenceResponse(output_tensors=[piece]))
        except Exception as failure:  # the caller must hear of it, whatever it is
            last["response"] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(failure)))
        sender.send(**last)


def _text(request: Any, name: str) -> str:
    value: bytes = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0]
    return value.decode()


def _params(request: Any) -> SamplingParams:
    """The sampling parameters that the request has; the engine's defaults for the others."""
    tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in OPTIONS}
    given = {
        name: OPTIONS[name](tensor.as_numpy().reshape(-1)[0]) for name, tensor in tensors.items() if tensor is not None
    }
    return SamplingParams(**given)
