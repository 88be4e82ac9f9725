"""The draft stage through the real command line on a tiny model, and its choice of a ready head."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipelines.config import DraftConfig, DraftTrainConfig
from pipelines.digest import json_digest
from pipelines.draft.base import base_digest
from pipelines.draft.recipe import read_rows
from pipelines.draft.train import OPENINGS_FILE, loop_settings, synthesis_settings
from pipelines.stage import Artifact
from pipelines.stages import draft
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.formats.digest import sha256_file
from runtime.speculation.redrafter import load_redrafter
from runtime.speculation.redrafter.head_file import read_description, read_head
from tests.pipelines.running_stages import stage_context
from tests.pipelines.test_cli import command
from tests.pipelines.tiny_models import make_hf_folder
from tests.runtime.tiny import make_checkpoint

SMALL = ("draft.train.num_sequences=8", "draft.train.tokens_per_sequence=200", "draft.train.num_steps=6",
         "draft.train.batch_positions=64", "draft.train.evaluate_every=3", "draft.train.new_tokens=6",
         "draft.train.num_blocks=1", "draft.train.draft_vocab_size=100", "draft.train.answer_tokens=30")  # fmt: skip


def test_a_head_is_trained_packaged_and_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which a store opened in this process leaves behind
    model = make_hf_folder(tmp_path / "tiny", max_len=1024)
    (tmp_path / "root").mkdir()
    done = command(tmp_path / "root", f"model={model}", "experiment=smoke", "precision=fp32", "draft=train",
                   "draft.keep=true", *SMALL, real=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundle = open_bundle((tmp_path / "root/bundles/latest").resolve())
    folder = bundle.path / "draft"
    assert json.loads((folder / "draft.json").read_text()) == {"schema": 1, "drafter": "redrafter"}
    assert load_redrafter(folder, bundle.checkpoint(), torch.float32, "onednn").name == "redrafter"
    curves = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curves] == [3, 6]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert json_digest(recipe) == read_description(folder).recipe_digest
    assert recipe["best_step"] in (3, 6)
    assert recipe["data"]["tokens"] == 8 * 200
    assert len(recipe["data"]["data_sha256"]) == 64
    assert recipe["settings"] == asdict(DraftTrainConfig(**recipe["settings"]))
    client = MlflowClient(f"sqlite:///{tmp_path / 'root' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("enginewright")
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'draft'")
    for name, key in (("train_loss", "loss"), ("held_out_accepted_length", "accepted_length")):
        points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert sorted(points) == [(row["step"], row[key]) for row in curves]
    shares = client.get_metric_history(run.info.run_id, "train_top1_6")
    assert sorted((point.step, point.value) for point in shares) == [(row["step"], row["top1"][5]) for row in curves]
    assert run.data.metrics["has_head"] == 1.0


def inputs_of(tmp_path, sha256):
    (tmp_path / "source.json").write_text(json.dumps({"files": [{"path": "a.gguf", "sha256": sha256}]}))
    make_checkpoint(tmp_path / "checkpoint")
    return {"fetch": Artifact(tmp_path, ""), "convert": Artifact(tmp_path / "checkpoint", "")}


@pytest.mark.parametrize("drafter", ["auto", "none", "ngram"])
def test_without_a_fitting_head_only_the_drafters_name_is_written(tmp_path, drafter):
    inputs = inputs_of(tmp_path, "0" * 64)
    out = tmp_path / "out"
    out.mkdir()
    draft.STAGE.run(DraftConfig(drafter), inputs, out, stage_context(tmp_path))
    assert [path.name for path in out.iterdir()] == ["draft.json"]
    expected = "none" if drafter == "auto" else drafter
    assert json.loads((out / "draft.json").read_text())["drafter"] == expected


def test_an_explicit_ready_head_never_falls_back(tmp_path):
    with pytest.raises(EnginewrightError, match="no shipped head was trained for this model"):
        draft.STAGE.run(DraftConfig("ready"), inputs_of(tmp_path, "0" * 64), tmp_path, stage_context(tmp_path))


def test_the_shipped_head_is_sound_and_small_and_belongs_to_the_default_model():
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    folder = draft.ready_head(base_digest({"files": [{"path": "x.gguf", "sha256": sha256}]}))
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    description, _ = read_head(folder)
    best = {n: max(t.accepted_length["mean"] for t in description.trees if t.num_nodes == n) for n in (12, 32, 64)}
    assert best[12] < best[32] < best[64]


def test_the_shipped_head_says_how_it_was_made_and_of_which_data():
    folder = draft.HEADS_DIR / "smollm2-135m"
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    assert json_digest(recipe) == read_description(folder).recipe_digest
    config = DraftTrainConfig(**recipe["settings"])
    assert recipe["settings"] == asdict(config)
    assert recipe["loop"] == asdict(loop_settings(config))
    data = recipe["data"]
    assert data["settings"] == asdict(synthesis_settings(config))
    assert data["tokens"] == config.num_sequences * config.tokens_per_sequence
    assert data["openings_sha256"] == sha256_file(OPENINGS_FILE)
    assert re.fullmatch("[0-9a-f]{64}", data["data_sha256"])
    rows = read_rows(folder / "curves.jsonl")
    assert rows[-1]["step"] == config.num_steps
    best = max(rows, key=lambda row: row["accepted_length"])
    assert recipe["best_step"] == best["step"]


def test_the_figures_in_the_docs_are_those_of_the_shipped_head():
    trees = {(t.num_nodes, t.num_beams, t.depth): t for t in read_description(draft.HEADS_DIR / "smollm2-135m").trees}
    docs = (Path(__file__).parents[2] / "docs/drafting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) x (\d+) \| ([\d. |]+) \| [\d.]+ \|$", docs, re.MULTILINE)
    assert len(rows) == 6
    for *shape, figures in rows:
        measured = trees[tuple(map(int, shape))].accepted_length
        kinds = ("chat", "prose", "code", "reasoning", "mean")
        assert figures.split(" | ") == [f"{measured[kind]:.2f}" for kind in kinds]
    assert f"All {len(trees)} shapes are in `head.json`" in docs
