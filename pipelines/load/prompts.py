"""Prompts of a load: English words in an order that no two prompts share, so that no prefix cache helps by accident."""

import random

from pipelines.data import load_text
from pipelines.load.options import LoadOptions

LONG_EVERY = 4


def make_prompts(scenario: str, options: LoadOptions) -> list[str]:
    """The prompts of one scenario, in order of arrival; the same for the same options."""
    rng = random.Random(f"{options.seed} {scenario}")
    vocabulary = load_text().split()

    def words(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    prompts = []
    prefix = ""
    for index in range(options.requests):
        if scenario == "burst" and index % options.burst == 0:
            prefix = words(options.prefix_words) + " "
        is_long = scenario == "long" and index % LONG_EVERY == LONG_EVERY - 1
        prompts.append(prefix + words(options.long_words if is_long else options.prompt_words))
    return prompts
