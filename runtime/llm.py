"""The public entry: prompts in, text out, over an engine bundle."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime import machine
from runtime.formats.bundle import Bundle, open_bundle
from runtime.loading import load_engine
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions, default_costs_dir
from runtime.targets import choose_target
from runtime.text.chat import Message
from runtime.text_engine import Prompt, RequestOutput, StreamDelta, TextEngine

_log = logging.getLogger(__name__)
DEFAULT_SPECULATION = SpeculationOptions(costs_dir=default_costs_dir())


def load_bundle(
    bundle: str | Path | Bundle,
    target: str | None = None,
    speculation: SpeculationOptions = DEFAULT_SPECULATION,
    prefix_reuse: bool = True,
    trust: str | Path | None = None,
    itl_ratio: str = "off",
) -> TextEngine:
    """Open and check a bundle, unless it is open, and load its engine for `target`, with a drafter where it has one.

    Args:
        target: which of its engines; None takes cuda where it runs and cpu elsewhere, as the commands do, and logs it.
        trust: the PEM of a public key; the bundle must be what its owner signed.
        itl_ratio: how many times longer than usual a running request may wait for its next token while prompts are
            taken in: a number above 1, `auto` (8 on CPUs) or `off`; measured at the first load. See docs/pacing.md.

    Raises:
        EnginewrightError: the bundle is damaged or not to be trusted, or has no engine that runs here.
    """
    if not isinstance(bundle, Bundle) or trust is not None:
        path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
        bundle = open_bundle(path, Path(trust) if trust is not None else None)
    tokenizer = bundle.tokenizer()
    target, reason = choose_target(bundle.manifest["targets"], target, machine.look())
    _log.info("%s: engine %s (%s)", bundle.path, target, reason)
    engine = load_engine(
        bundle.checkpoint(), bundle.engine_dir(target), tokenizer, bundle.draft_dir, speculation, prefix_reuse,
        itl_ratio=itl_ratio, bundle=bundle.path,
    )  # fmt: skip
    return TextEngine(engine, tokenizer)


class LLM:
    """A loaded bundle. Not thread-safe; `runtime.async_llm.AsyncLLM` serves many callers.

    Example:
        llm = LLM(".enginewright/bundles/latest")
        print(llm.generate("The capital of France is")[0].text)
    """

    def __init__(
        self,
        bundle: str | Path | TextEngine,
        target: str | None = None,
        speculation: SpeculationOptions = DEFAULT_SPECULATION,
        prefix_reuse: bool = True,
        trust: str | Path | None = None,
        itl_ratio: str = "off",
    ) -> None:
        """Load a bundle's folder, as `load_bundle` does, or take an engine that is loaded already."""
        if not isinstance(bundle, TextEngine):
            bundle = load_bundle(bundle, target, speculation, prefix_reuse, trust, itl_ratio)
        self.text_engine = bundle

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Complete prompts (text, or token ids), all together; `params` is one for all, or one per prompt.

        cache_salt: prefixes are shared with requests of the same salt alone, such as those of one tenant.

        Raises:
            EnginewrightError: a prompt is empty or too long; none is completed then.
        """
        each_prompt = _as_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(each_prompt)
        outputs: list[RequestOutput] = []
        try:
            for prompt, prompt_params in zip(each_prompt, params, strict=True):
                outputs.append(self.text_engine.submit(prompt, prompt_params, cache_salt))
            while not all(output.finished for output in outputs):
                self.text_engine.step()
        finally:  # an error or Ctrl-C leaves no request behind
            for output in outputs:
                self.text_engine.cancel(output)
        return outputs

    def chat(
        self, messages: list[Message], params: SamplingParams | None = None, cache_salt: str = ""
    ) -> RequestOutput:
        """Answer a conversation through the model's chat template."""
        return self.generate(self.text_engine.tokenizer.encode_chat(messages), params, cache_salt)[0]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, cache_salt: str = ""
    ) -> Iterator[StreamDelta]:
        """Yield deltas of one prompt as its tokens come; closing the iterator cancels what is left."""
        output = self.text_engine.submit(prompt, params or SamplingParams(), cache_salt)
        try:
            while not output.finished:
                yield from (delta for delta in self.text_engine.step() if delta.completion in output.completions)
        finally:
            self.text_engine.cancel(output)


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    token_ids = [item for item in prompts if isinstance(item, int)]
    if token_ids or not prompts:  # one prompt of token ids, which may be empty
        return [token_ids]
    return [prompt for prompt in prompts if not isinstance(prompt, int)]
