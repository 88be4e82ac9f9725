"""ONNX Runtime runs the graph that we write: its logits are our decoder's, whatever a step computes."""

import random

import pytest
import torch

from tests.pipelines.onnx_models import Rows, batch_of, onnx_backend, torch_backend
from tests.pipelines.unified_models import FAMILIES, tiny_model, write_checkpoint

PROMPT_LENS = (11, 40, 11)  # past windows (5) and original contexts (16, 32) of FAMILIES; two share a pass
# node 0 is the root; two branches, the longer four deep
PARENTS = [0, 0, 1, 1, 2, 4, 0]
# float64: an ONNX norm has its epsilon in float32, 3e-13 off; logits are up to about 10.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}


def steps(rng):
    """A prefill of three prompts, one of them in two chunks beside decodes, plain decodes, a tree, and what follows."""

    def text(count):
        return [rng.randrange(96) for _ in range(count)]

    a, b, c = PROMPT_LENS
    yield "prefill", batch_of([Rows(5, 0, text(a)), Rows(1, 0, text(b)), Rows(2, 0, text(c))])
    yield "decode", batch_of([Rows(1, b, text(1)), Rows(5, a, text(1)), Rows(2, c, text(1))])
    yield (
        "a first chunk beside decodes",
        batch_of([Rows(5, a + 1, text(1)), Rows(7, 0, text(9)), Rows(1, b + 1, text(1))], logit_rows=[0, 10]),
    )
    yield "a second chunk alone", batch_of([Rows(7, 9, text(13))], logit_rows=[12])
    yield "no logits wanted", batch_of([Rows(3, 0, text(6))], logit_rows=[])
    yield "trees", batch_of([Rows(2, c + 1, text(7), PARENTS), Rows(7, 22, text(7), PARENTS)])
    yield "a tree beside a plain row", batch_of([Rows(7, 22, text(7), PARENTS), Rows(1, b + 2, text(1))])
    yield "decode after", batch_of([Rows(block, start, text(1)) for block, start in ((1, b + 3), (7, 23), (2, c + 1))])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_step_gives_the_decoder_s_logits(tmp_path, family, dtype):
    checkpoint = write_checkpoint(tmp_path, tiny_model(family), family)
    ours, theirs = onnx_backend(checkpoint, tmp_path / "onnx", dtype), torch_backend(checkpoint, dtype)
    for kind, batch in steps(random.Random(3)):
        logits, hidden = ours.forward(batch)
        expected = theirs.forward(batch)
        assert logits.shape == expected.logits.shape, kind
        assert logits.dtype == expected.logits.dtype
        torch.testing.assert_close(logits, expected.logits, atol=TOLERANCES[dtype], rtol=0, msg=lambda m, k=kind: k + m)
        torch.testing.assert_close(hidden, expected.hidden, atol=TOLERANCES[dtype], rtol=0)
