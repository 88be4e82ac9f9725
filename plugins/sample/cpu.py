"""Sampling on the CPU: one argmax for all rows, then only the rows that draw, over only the tokens that can win."""

import torch

from plugins.sample.philox import gumbel_noise


def sample_cpu(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    sample_index: torch.Tensor,
    position: torch.Tensor,
    out: torch.Tensor,
) -> None:
    torch.argmax(logits, dim=-1, out=out)
    # argmax treats NaN as the largest value, so a row that holds one has it at its argmax.
    if torch.isnan(logits.gather(1, out.unsqueeze(1))).any():
        raise ValueError("logits hold NaN; the engine's weights or kernels are broken: verify the bundle")
    for row in torch.nonzero(temperature).flatten().tolist():
        scaled = logits[row].double() / temperature[row].double()
        token_ids = _survivors(scaled, int(top_k[row]), float(top_p[row]), float(min_p[row]))
        noise = gumbel_noise(token_ids, int(seed[row]), int(sample_index[row]), int(position[row]))
        out[row] = token_ids[torch.argmax(scaled[token_ids] + noise)]


def _survivors(scaled: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Token ids (n,) that pass the filters, given logits / T of one row (V,) float64."""
    if min_p > 0.0:
        # Weights are relative to the largest, so this filter commutes with the other two's ranking.
        floor = scaled.max() + torch.log(torch.tensor(min_p, dtype=torch.float64))
    if top_k == 0 and top_p == 1.0:
        return (
            torch.arange(len(scaled), device=scaled.device)
            if min_p == 0.0
            else torch.nonzero(scaled >= floor).flatten()
        )
    token_ids = torch.argsort(scaled, descending=True, stable=True)
    if top_k:
        token_ids = token_ids[:top_k]
    ranked = scaled[token_ids]
    if top_p < 1.0:
        mass = torch.cumsum(torch.softmax(ranked, dim=0), dim=0)
        # A token is kept while the mass before it is short of top_p.
        token_ids = token_ids[: 1 + int((mass[:-1] < top_p).sum())]
    if min_p > 0.0:
        token_ids = token_ids[scaled[token_ids] >= floor]
    return token_ids
