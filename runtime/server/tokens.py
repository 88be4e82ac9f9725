"""Single tokens as text and bytes, for log-probabilities: what a token adds, though it may be half a character."""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from runtime.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """Bytes of each token of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        backend = tokenizer.backend
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._unwritten = {token_id for token_id, token in added.items() if token.special}
        state = backend.decoder.__getstate__() if backend.decoder is not None else b""
        self._from_char = _byte_of_char() if b"ByteLevel" in state else None

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special tokens are spelled out."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id) or ""
        if self._from_char is not None:
            return bytes(self._from_char[char] for char in token if char in self._from_char)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("\u2581", " ").encode()

    def name_of(self, token_id: int) -> str:
        """The token as text, or as OpenAI writes a part of a character: `bytes:\\xe2\\x80`."""
        raw = self.bytes_of(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def offsets(self, token_ids: Sequence[int], start: int) -> list[int]:
        """At which character each token of a text begins that itself begins at `start`."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        written = (b"" if token_id in self._unwritten else self.bytes_of(token_id) for token_id in token_ids)
        lengths = (len(decoder.decode(raw)) for raw in written)
        return list(accumulate(lengths, initial=start))[:-1]


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """How byte-level vocabularies write bytes: printable ones as themselves, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
