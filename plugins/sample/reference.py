"""Sampling by the letter, one row in Python floats: the oracle."""

import math

import torch

from plugins.sample.philox import gumbel_noise


def filtered_distribution(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """Return the probability of each token that one draw has; `temperature` > 0."""
    largest = max(logits)
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    ranked = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    kept = ranked[:top_k] if top_k else ranked
    mass, total = 0.0, sum(weights[token] for token in kept)
    nucleus: list[int] = []
    for token in kept:
        if nucleus and mass >= top_p * total:
            break
        nucleus.append(token)
        mass += weights[token]
    survivors = [token for token in nucleus if weights[token] >= min_p]  # the largest weight is 1
    total = sum(weights[token] for token in survivors)
    return [weights[token] / total if token in survivors else 0.0 for token in range(len(logits))]


def sample_reference(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    sample_index: int,
    position: int,
) -> int:
    """Return one row's token id."""
    if temperature == 0.0:
        return max(range(len(logits)), key=lambda token: (logits[token], -token))
    probabilities = filtered_distribution(logits, temperature, top_k, top_p, min_p)
    noise = gumbel_noise(torch.arange(len(logits)), seed, sample_index, position).tolist()
    survivors = [token for token, probability in enumerate(probabilities) if probability > 0.0]
    return max(survivors, key=lambda token: logits[token] / temperature + noise[token])
