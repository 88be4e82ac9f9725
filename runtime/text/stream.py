"""Text from tokens as they come: whole characters only, and nothing past a stop string."""

from typing import NamedTuple

from runtime.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"  # what decoding puts for an incomplete UTF-8 sequence


class TextDelta(NamedTuple):
    """What a push made certain."""

    text: str  # may be empty
    stopped: bool  # a stop string was found; the text ends before it


class TextStream:
    """The growing text of one request.

    Text is held back while it may be the start of a stop string, or of a character whose bytes are not complete.

    Example: tokens "He", "llo", " wo", "rld" with the stop string "wor" give "He", "llo", " " and "", stopped.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        # A few tokens of context: decoders treat the first token of a text differently.
        self._context_ids = prompt_ids[-4:]
        self._context_text = tokenizer.decode(self._context_ids)
        self._token_ids: list[int] = []
        self._held = ""
        self.text = ""

    def push(self, token_id: int) -> TextDelta:
        """Add one token."""
        self._token_ids.append(token_id)
        window = self._tokenizer.decode(self._context_ids + self._token_ids)
        if window.endswith(_REPLACEMENT):
            return TextDelta("", False)
        return self._emit(self._take(window), final=False)

    def finish(self) -> TextDelta:
        """End the text: give out what was held back, incomplete characters as the replacement character."""
        window = self._tokenizer.decode(self._context_ids + self._token_ids)
        return self._emit(self._take(window), final=True)

    def _take(self, window: str) -> str:
        """New text in `window`, whose tokens become the context of the next ones."""
        new = window[len(self._context_text) :]
        self._context_ids = (self._context_ids + self._token_ids)[-4:]
        self._context_text = self._tokenizer.decode(self._context_ids)
        self._token_ids = []
        return new

    def _emit(self, new: str, final: bool) -> TextDelta:
        pending = self._held + new
        found = [index for stop in self._stop if (index := pending.find(stop)) >= 0]
        if found:
            pending, self._held = pending[: min(found)], ""
        elif final:
            self._held = ""
        else:
            keep = _stop_prefix_len(pending, self._stop)
            pending, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += pending
        return TextDelta(pending, bool(found))


def _stop_prefix_len(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that begins one of the stop strings."""
    longest = 0
    for string in stop:
        for length in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return longest
