"""The CUDA engine in its own dtypes, kernels and all: what it emits is what exact arithmetic on its weights says."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.cuda_engine import load_on_gpu
from runtime.engine import Engine
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import make_backend
from runtime.sampling import SamplingParams
from runtime.scoring import score
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.drafting import Always
from tests.runtime.test_speculation import FAMILIES
from tests.runtime.tiny import make_checkpoint

PLAN = EnginePlan(
    target="cuda", dtype="bfloat16", linear="torch", max_batch_size=16, max_seq_len=512, max_num_tokens=256,
    block_size=32, num_blocks=160,
)  # fmt: skip
# Logits are off by about 2^-9 sqrt(8 L) = 0.008 of their spread in bfloat16, L being 2 layers, and by an eighth of it
# in float16. The token that is emitted may fall short of the best by the difference of two such errors, which over some
# thousand tokens stays below eight of its deviations; a wrong key or weight costs about 1.
SHORT_BY = {"bfloat16": 0.09, "float16": 0.0113}
HEADS = {"grouped heads of 64": (4, 2, 64), "one K/V head of 128": (3, 1, 128)}


def widened(spec, num_heads, num_kv_heads, head_dim):
    """With sizes that every kernel takes."""
    window = spec.sliding_window and 40
    return replace(spec, hidden_size=256, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
                   intermediate_size=512, max_position_embeddings=512, sliding_window=window)  # fmt: skip


def scaled_checkpoint(folder, spec, dtype):
    """Products of 256 columns with the size that make_checkpoint's have over 32: else attention is all or nothing."""
    checkpoint = make_checkpoint(folder, spec, dtype=dtype)
    path = folder / "weights.safetensors"
    weights = {name: each * (8**-0.5 if each.dim() == 2 else 1) for name, each in load_file(path).items()}
    save_file(weights, path)
    return checkpoint


def emitted(engine) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of requests of many lengths, most of them under way at once."""
    lengths = [1, 7, 33, 64, 65, 150, 230, 31, 5, 90, 17]
    prompts = [[(11 * length + 7 * at * at) % 250 for at in range(length)] for length in lengths]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    requests = [engine.add(prompt, params) for prompt in prompts]
    while engine.has_work:
        engine.step()
    return [(prompt, request.output_ids) for prompt, request in zip(prompts, requests, strict=True)]


def short_by(exact: Engine, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """How far each token's exact logit is below the best one, in deviations of the logits there."""
    logits = score(exact, prompt + answer, first=len(prompt) - 1)[:-1]
    own = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return (logits.max(dim=1).values - own) / logits.std(dim=1)


def check(tmp_path, family, heads, dtype, load, drafts):
    checkpoint = scaled_checkpoint(tmp_path, widened(FAMILIES[family], *HEADS[heads]), dtype)
    exact = Engine(make_backend(checkpoint, replace(PLAN, target="cpu", dtype="float64")), frozenset())
    engine = Engine(load(checkpoint, replace(PLAN, dtype=dtype)), frozenset())
    if drafts:
        engine.draft_with(NgramDrafter(), Always(TreeShape(4, 1, 3)))
    for prompt, answer in emitted(engine):
        assert len(answer) == 20
        assert short_by(exact, prompt, answer).max() < SHORT_BY[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch with CUDA")
@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafted"])
@pytest.mark.parametrize("dtype", SHORT_BY)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_the_best_or_a_near_tie(tmp_path, family, heads, dtype, drafts):
    check(tmp_path, family, heads, dtype, load_on_gpu, drafts)
