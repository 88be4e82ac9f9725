"""What is run: token ids that are random but the same in every run, so that systems can be compared."""

import random
from typing import NamedTuple

# The mixed workload's lengths: short and long questions, short and long answers, as a server would see them.
MIXED_PROMPT_LENS = (16, 512)
MIXED_NEW_TOKENS = (8, 64)
MIXED_MAX_LEN = MIXED_PROMPT_LENS[1] + MIXED_NEW_TOKENS[1]


class Workload(NamedTuple):
    """Requests that arrive together, each to be continued greedily past any end token."""

    prompts: list[list[int]]
    new_tokens: list[int]  # per request


def uniform_workload(batch_size: int, prompt_len: int, new_tokens: int, vocab_size: int) -> Workload:
    """Requests that are all alike."""
    rng = random.Random(prompt_len * 1000 + batch_size)
    prompts = [_prompt(rng, prompt_len, vocab_size) for _ in range(batch_size)]
    return Workload(prompts, [new_tokens] * batch_size)


def mixed_workload(num_requests: int, vocab_size: int, max_len: int = MIXED_MAX_LEN) -> Workload:
    """Requests of mixed lengths, prompts and answers drawn uniformly from the ranges above.

    max_len: of prompt and answer together; longer requests are cut to it, for engines with a short context.
    """
    rng = random.Random(num_requests)
    prompts = [_prompt(rng, rng.randint(*MIXED_PROMPT_LENS), vocab_size) for _ in range(num_requests)]
    new_tokens = [min(rng.randint(*MIXED_NEW_TOKENS), max_len // 2) for _ in range(num_requests)]
    return Workload([ids[: max_len - count] for ids, count in zip(prompts, new_tokens, strict=True)], new_tokens)


def burst_workload(num_requests: int, prefix_len: int, own_len: int, vocab_size: int) -> Workload:
    """Requests that share their first `prefix_len` tokens, each with `own_len` of its own, for one new token."""
    rng = random.Random(prefix_len * 1000 + num_requests)
    prefix = _prompt(rng, prefix_len, vocab_size)
    return Workload([prefix + _prompt(rng, own_len, vocab_size) for _ in range(num_requests)], [1] * num_requests)


def _prompt(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(length)]
