"""The gate of a draft head: what it reports, and that a head which does not pay stays out of the bundle."""

import json

import pytest

from pipelines.config import DraftConfig
from pipelines.draft import cost
from pipelines.draft.cost import StepCost
from pipelines.stages import draft
from runtime.speculation.redrafter.head_file import HeadDescription, TreeStatistics, write_head
from tests.pipelines.running_stages import stage_context
from tests.runtime.heads import head_config, head_tensors
from tests.runtime.tiny import make_checkpoint, make_tokenizer

KINDS = {"chat": 2.1, "code": 2.5, "mean": 2.3}
TREES = (TreeStatistics(12, 4, 4, KINDS, (0.7, 0.4, 0.2, 0.1)),)
FILES = ["curves.jsonl", "draft.json", "head.json", "head.safetensors", "recipe.json"]


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """Runs the gate where a plain step takes 10 ms and one with a tree what it is told to."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    make_tokenizer(tmp_path / "checkpoint/tokenizer")
    config = head_config()
    description = HeadDescription(config, "tiny", "0" * 64, "1" * 64, TREES)

    def run(tree_ms, keep=False):
        out = tmp_path / "out"
        out.mkdir()
        write_head(out, description, head_tensors(config))
        (out / "recipe.json").write_text("{}")
        (out / "curves.jsonl").write_text("")
        monkeypatch.setattr(cost, "measure_cost", lambda *parts: StepCost(10.0, tree_ms - 1.0, 1.0))
        settings = DraftConfig("train", keep=keep, linear="torch")
        output = draft._gate(settings, description, checkpoint, out, stage_context(tmp_path))
        return output, out

    return run


def drafter_of(folder):
    return json.loads((folder / "draft.json").read_text())["drafter"]


def test_a_head_that_pays_is_kept_with_all_figures_of_the_gate(gate):
    output, out = gate(tree_ms=16.0)
    assert drafter_of(out) == "redrafter"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert {name: output.metrics[f"n12_{name}"] for name in ("plain_ms", "verify_ms", "draft_ms")} == {
        "plain_ms": 10.0, "verify_ms": 15.0, "draft_ms": 1.0}  # fmt: skip
    assert [output.metrics[f"n12_acceptance_depth_{depth}"] for depth in (1, 2, 3, 4)] == [0.7, 0.4, 0.2, 0.1]
    assert {kind: output.metrics[f"n12_accepted_length_{kind}"] for kind in KINDS} == KINDS
    assert output.metrics["n12_predicted_speedup"] == pytest.approx(2.3 * 10 / 16)
    assert 0.05 < output.metrics["measured_speedup"] < 5.0
    assert "predicted 1.44x" in output.summary


def test_a_head_that_does_not_pay_says_so_and_stays_out_unless_the_configuration_insists(gate):
    output, out = gate(tree_ms=46.0)
    assert drafter_of(out) == "none"
    assert [path.name for path in out.iterdir()] == ["draft.json"]
    assert output.summary == (
        "none: the head does not pay: predicted 0.50x at batch 1 on this machine; draft.keep=true keeps it"
    )
    assert output.metrics["has_head"] == 0.0
    assert output.metrics["n12_predicted_speedup"] == 0.5, "the figures stay"


def test_the_configuration_may_insist_on_a_head_that_does_not_pay(gate):
    output, out = gate(tree_ms=46.0, keep=True)
    assert drafter_of(out) == "redrafter"
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert output.metrics["has_head"] == 1.0
