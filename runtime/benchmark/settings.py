"""What a benchmark run measures. Light to import: command lines and the settings of builds take defaults from here."""

from dataclasses import dataclass, replace

from runtime.benchmark.workloads import MIXED_MAX_LEN
from runtime.errors import EnginewrightError


@dataclass(frozen=True)
class SuiteSettings:
    """What is measured how often; each batch size with each prompt length, and one mixed workload.

    mixed_max_len: of a mixed request, prompt and answer together.

    Raises:
        EnginewrightError: a count that leaves nothing to measure.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 8)
    prompt_lens: tuple[int, ...] = (32, 512)
    new_tokens: int = 32
    repeats: int = 3
    warmups: int = 1
    mixed_requests: int = 16
    mixed_max_len: int = MIXED_MAX_LEN

    def __post_init__(self) -> None:
        # The first new token is the prefill's, so that one alone has no decode to time.
        least = {"batch_sizes": 1, "prompt_lens": 1, "new_tokens": 2, "repeats": 1, "warmups": 0, "mixed_requests": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            counts = value if isinstance(value, tuple) else (value,)
            if not counts or min(counts) < bound:
                raise EnginewrightError(f"benchmark {name} is {value}; it must be at least {bound}")

    def fitted(self, max_seq_len: int) -> "SuiteSettings":
        """These settings less what an engine's context cannot hold.

        Raises:
            EnginewrightError: nothing is left.
        """
        longest = max_seq_len - self.new_tokens
        fitting = tuple(length for length in self.prompt_lens if length <= longest)
        if not fitting:
            raise EnginewrightError(
                f"benchmark prompt_lens are {self.prompt_lens} and new_tokens {self.new_tokens}; this engine holds "
                f"{max_seq_len} tokens together: measure prompts of at most {longest}"
            )
        return replace(self, prompt_lens=fitting, mixed_max_len=min(self.mixed_max_len, max_seq_len))


@dataclass(frozen=True)
class SessionSizes:
    """Tokens of the prefix, of each request's own and of each answer; requests in each of the two waves."""

    prefix_len: int = 1024
    own_len: int = 64
    new_tokens: int = 128
    wave: int = 4

    @property
    def longest(self) -> int:
        return self.prefix_len + self.own_len + self.new_tokens

    def fitted(self, max_seq_len: int) -> "SessionSizes":
        """With as much of the prefix as a context holds beside the rest."""
        rest = self.own_len + self.new_tokens
        return SessionSizes(max(1, min(self.prefix_len, max_seq_len - rest)), self.own_len, self.new_tokens, self.wave)


@dataclass(frozen=True)
class ProfileSettings:
    """What is profiled: one batch of requests that are all alike.

    Raises:
        EnginewrightError: a count that leaves nothing to see.
    """

    batch_size: int = 1
    prompt_len: int = 512
    new_tokens: int = 32

    def __post_init__(self) -> None:
        # A decode pass is seen once the host has the first token, which an engine on a GPU reads some passes late.
        for name, bound in {"batch_size": 1, "prompt_len": 1, "new_tokens": 32}.items():
            if getattr(self, name) < bound:
                raise EnginewrightError(f"profile {name} is {getattr(self, name)}; it must be at least {bound}")
