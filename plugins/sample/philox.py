"""Counter-based random bits: Philox4x32-10.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3 and table 2.
"""

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: tuple[int | torch.Tensor, int | torch.Tensor]) -> torch.Tensor:
    """Return four 32-bit words per counter.

    Args:
        counter: (..., 4) int64, each word below 2^32.
        key: two words below 2^32, each one number or int64 that broadcasts to (...).

    Returns:
        (..., 4) int64, each word below 2^32.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, but their bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def gumbel_noise(
    token_ids: torch.Tensor,
    seed: int | torch.Tensor,
    sample_index: int | torch.Tensor,
    position: int | torch.Tensor,
) -> torch.Tensor:
    """Return the standard Gumbel noise of each token id: (...) int64 -> (...) float64, finite.

    The other arguments are numbers, or int64 that broadcasts to (...).
    The counter is (token_id // 4, sample_index, position, 0) under the key `seed`; word token_id % 4 of the result,
    taken as a uniform u = (word + 1/2) / 2^32, gives -log(-log(u)).
    """
    counter = torch.zeros(*token_ids.shape, 4, dtype=torch.int64, device=token_ids.device)
    counter[..., 0] = token_ids // 4
    counter[..., 1] = sample_index
    counter[..., 2] = position
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    word = words.gather(-1, (token_ids % 4).unsqueeze(-1)).squeeze(-1)
    uniform = (word.double() + 0.5) / 2.0**32
    return -torch.log(-torch.log(uniform))
