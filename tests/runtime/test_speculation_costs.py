"""Costs measured on a real engine, and the loader's choice of drafter and policy."""

import json

import pytest

from runtime.errors import EnginewrightError
from runtime.formats.engine_plan import EnginePlan
from runtime.loading import load_engine
from runtime.sampling import SamplingParams
from runtime.speculation.cost_table import CostTable
from runtime.speculation.costs import is_current, measure_backend
from runtime.speculation.loading import SpeculationOptions
from runtime.speculation.ngram import NgramDrafter
from runtime.speculation.tree import TreeShape
from tests.runtime.test_engine import alone, run
from tests.runtime.tiny import PLAN, make_checkpoint, make_engine, make_tokenizer


def load(checkpoint, tmp_path, options, draft=None):
    plan: EnginePlan = PLAN
    engine_dir, draft_dir = tmp_path / "engine", tmp_path / "draft"
    engine_dir.mkdir(exist_ok=True)
    plan.write(engine_dir)
    if draft is not None:
        draft_dir.mkdir(exist_ok=True)
        (draft_dir / "draft.json").write_text(json.dumps(draft))
    return load_engine(checkpoint, engine_dir, make_tokenizer(tmp_path), draft_dir if draft else None, options)


def test_every_size_gets_a_cost_and_the_engine_still_runs(checkpoint):
    shapes = (TreeShape(6, 1, 5), TreeShape(12, 2, 4))
    engine = make_engine(checkpoint)
    table = measure_backend(engine.backend, NgramDrafter(), shapes)
    assert all(seconds > 0 for seconds in table.target_seconds.values())
    assert {(batch, *beams) for batch, *beams in table.draft_seconds} >= {(1, 1, 5), (4, 2, 4)}
    request = ([5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True))
    assert run(engine, [request])[0].output_ids == alone(checkpoint, request)


def test_a_table_of_a_busy_machine_is_not_current(checkpoint):
    backend = make_engine(checkpoint, drafter=NgramDrafter()).backend
    assert not is_current(backend, CostTable({(1, 1): 1e3}, {}))
    assert is_current(backend, CostTable({(1, 1): 1e-9}, {}))


def test_a_bundle_without_a_drafter_decodes_plainly_unless_a_tree_was_asked_for(checkpoint, tmp_path):
    assert load(checkpoint, tmp_path, SpeculationOptions()).backend.drafter is None
    assert load(checkpoint, tmp_path, SpeculationOptions(), {"drafter": "none"}).backend.drafter is None
    with pytest.raises(EnginewrightError, match="this bundle carries none; use drafter=ngram"):
        load(checkpoint, tmp_path, SpeculationOptions("8,1,7"), {"drafter": "none"})


def test_off_loads_no_drafter_and_ngram_needs_no_files(checkpoint, tmp_path):
    assert load(checkpoint, tmp_path, SpeculationOptions("off"), {"drafter": "ngram"}).backend.drafter is None
    for options, draft in ((SpeculationOptions("8,1,7", "ngram"), None), (SpeculationOptions(), {"drafter": "ngram"})):
        engine = load(checkpoint, tmp_path, options, draft)
        assert engine.backend.drafter.name == "ngram"
    assert not (tmp_path / "costs").exists()


def test_costs_are_kept_where_the_caller_says(checkpoint, tmp_path):
    options = SpeculationOptions(drafter="ngram", costs_dir=tmp_path / "costs")
    load(checkpoint, tmp_path, options)
    assert len(list((tmp_path / "costs").glob("costs-*.json"))) == 1


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ({"drafter": "medusa"}, "drafter 'medusa' is not none, ngram, model or redrafter"),
        ({"other": 1}, "says of no drafter"),
    ],
)
def test_a_damaged_or_newer_draft_folder_is_one_line(checkpoint, tmp_path, draft, message):
    with pytest.raises(EnginewrightError, match=message):
        load(checkpoint, tmp_path, SpeculationOptions(), draft)


def test_a_smaller_model_of_the_bundle_drafts_and_changes_nothing(checkpoint, tmp_path):
    smaller = make_checkpoint(tmp_path / "draft", seed=1)
    make_tokenizer(smaller.path / "tokenizer")
    engine = load(checkpoint, tmp_path, SpeculationOptions("8,2,4"), {"drafter": "model"})
    wanted = [([9, 8, 7], SamplingParams(max_tokens=20, ignore_eos=True)), ([1] * 30, SamplingParams(max_tokens=20))]
    assert [request.output_ids for request in run(engine, wanted)] == [alone(checkpoint, one) for one in wanted]
    assert engine.speculation.snapshot().num_drafts > 0
