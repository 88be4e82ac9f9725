"""Continuations of beams: every implementation against the oracle."""

import pytest
import torch

from plugins.cuda.errors import KernelError
from plugins.draft_select import DrawNoise, draft_select
from plugins.draft_select.batched import draft_select_batched
from plugins.draft_select.cuda import draft_select_cuda
from plugins.draft_select.reference import draft_select_reference


def case(requests, width, num_draft, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(num_draft)
    logits = (torch.randn(requests, width, num_draft, generator=generator) * 3).to(device, dtype)
    beam_scores = -torch.rand(requests, width, generator=generator).to(device)
    beam_nodes = torch.randint(-1, 50, (requests, width), generator=generator).to(device)
    vocab_ids = (torch.arange(num_draft) * 3 + 1).to(device)
    return logits, beam_scores, beam_nodes, vocab_ids


def noise_of(requests, device="cpu"):
    temperature = torch.tensor([0.0, 0.8, 1.5])[torch.arange(requests) % 3]
    integers = (torch.arange(requests) * factor + 2**33 for factor in (7, 0, 1))
    seed, sample_index, position = (value.to(device) for value in integers)
    return DrawNoise(temperature.to(device), seed, sample_index % 2**32, position % 2**32)


def select(implementation, arguments, count, noise=None):
    requests, width, num_draft = arguments[0].shape
    shape, device = (requests, min(count, width * num_draft)), arguments[0].device
    found = [torch.full(shape, -9, device=device) for _ in range(3)]
    found.append(torch.full(shape, float("nan"), device=device))
    implementation(*arguments, *(noise or (None,) * 4), *found)
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_best_continuations_are_the_oracles(count):
    logits, beam_scores, beam_nodes, vocab_ids = case(3, 4, 9)
    found = draft_select(logits, beam_scores, beam_nodes, vocab_ids, count)
    for request in range(3):
        expected = draft_select_reference(logits[request].tolist(), beam_scores[request].tolist(), count)
        assert found.beams[request].tolist() == [beam for _, beam, _ in expected]
        assert found.token_ids[request].tolist() == [3 * index + 1 for _, _, index in expected]
        assert found.parents[request].tolist() == [int(beam_nodes[request, beam]) for _, beam, _ in expected]
        assert found.scores[request].tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-5)


def test_noise_stands_in_the_order_of_the_draw():
    logits, beam_scores, beam_nodes, vocab_ids = case(3, 1, 50)
    greedy = draft_select(logits, beam_scores, beam_nodes, vocab_ids, 5)
    noisy = draft_select(logits, beam_scores, beam_nodes, vocab_ids, 5, noise_of(3))
    assert torch.equal(greedy.token_ids[0], noisy.token_ids[0])  # its temperature is 0
    assert not torch.equal(greedy.token_ids[1:], noisy.token_ids[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize(("requests", "width", "num_draft", "count"), [(1, 1, 3, 8), (3, 4, 77, 11), (2, 9, 300, 64)])
def test_the_kernel_selects_what_torch_selects(kernel_device, requests, width, num_draft, count, with_noise, dtype):
    arguments = case(requests, width, num_draft, dtype=dtype)
    noise = noise_of(requests) if with_noise else None
    on_device = [tensor.to(kernel_device) for tensor in arguments]
    found = select(draft_select_cuda, on_device, count, noise and tuple(n.to(kernel_device) for n in noise))
    expected = select(draft_select_batched, arguments, count, noise)
    # Noise is off by up to 2^-15, times a temperature of 1.5; sums and functions of float32 add a few units of 2^-20.
    assert (found[3] - expected[3]).abs().max() <= 1e-4
    assert (found[3][:, :-1] >= found[3][:, 1:]).all()
    one_more = select(draft_select_batched, arguments, count + 1, noise)[3]
    if (one_more.diff(dim=1).abs() > 2e-4).all():  # no two change places by that, nor at the edge
        for tensor, other in zip(found[:3], expected[:3], strict=True):
            assert torch.equal(tensor, other)
    for request in range(requests):
        picked = list(zip(found[1][request].tolist(), found[0][request].tolist(), strict=True))
        assert len(set(picked)) == len(picked)
        assert found[2][request].tolist() == arguments[2][request, found[1][request]].tolist()


def test_ties_go_to_the_earlier_beam_and_token(kernel_device):
    logits, beam_scores, beam_nodes, vocab_ids = case(2, 3, 40, kernel_device)
    found = select(
        draft_select_cuda, [torch.zeros_like(logits), torch.zeros_like(beam_scores), beam_nodes, vocab_ids], 50
    )
    assert found[1].tolist() == [[0] * 40 + [1] * 10] * 2
    assert found[0].tolist() == [[3 * index + 1 for index in [*range(40), *range(10)]]] * 2


def test_launches_leave_their_counters_as_they_were(kernel_device):
    arguments = case(2, 5, 60, kernel_device)
    first = select(draft_select_cuda, arguments, 7)
    for _ in range(3):
        again = select(draft_select_cuda, arguments, 7)
        assert all(torch.equal(tensor, other) for tensor, other in zip(again, first, strict=True))


def test_what_the_kernel_has_no_room_for_goes_through_torch(kernel_device, monkeypatch):
    monkeypatch.setattr("plugins.draft_select.cuda.MOST_SHARED_BYTES", 1000)
    arguments = case(2, 3, 30, kernel_device)
    expected = select(draft_select_batched, [tensor.cpu() for tensor in arguments], 6)
    assert torch.equal(select(draft_select_cuda, arguments, 6)[0], expected[0])


def test_arguments_that_do_not_fit_are_refused(kernel_device):
    logits, beam_scores, beam_nodes, vocab_ids = case(2, 3, 40, kernel_device)
    with pytest.raises(KernelError, match="vocab_ids is"):
        select(draft_select_cuda, [logits, beam_scores, beam_nodes, vocab_ids[:9]], 4)
    with pytest.raises(KernelError, match="beam_scores is"):
        select(draft_select_cuda, [logits, beam_scores[:, :1], beam_nodes, vocab_ids], 4)
