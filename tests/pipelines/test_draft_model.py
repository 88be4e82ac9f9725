"""A smaller model that drafts, through the real command line, and what is refused."""

import json
import shlex

import pytest

from pipelines.build import run_stages
from pipelines.cache import Cache
from pipelines.draft.smaller import check_drafting_model
from pipelines.loading import load_config
from pipelines.planning.plan import make_plan, plan_as_plain
from pipelines.planning.planner import Planner
from runtime.errors import EnginewrightError
from runtime.formats.bundle import open_bundle
from runtime.formats.rebuild import rebuild_command
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions
from tests.pipelines.test_cli import command
from tests.pipelines.tiny_models import make_hf_folder, save_tokenizer
from tests.runtime.tiny import make_checkpoint, make_tokenizer

OPTIONS = ("experiment=smoke", "precision=fp32", "draft=model", "verify=off", "bench=off", "tracking=off")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A target and a smaller model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return (make_hf_folder(folder / "large", max_len=128),
            make_hf_folder(folder / "small", max_len=128, num_layers=1, seed=3))  # fmt: skip


def outputs(llm, params):
    return [result.completions[0].token_ids for result in llm.generate(["The engine", "A tokenizer splits"], params)]


def test_a_bundle_with_a_draft_model_says_what_it_says_without(models, tmp_path):
    large, small = models
    done = command(tmp_path, f"model={large}", f"draft.source={small}", *OPTIONS, real=True)
    assert done.returncode == 0, done.stderr
    assert "draft_convert" in done.stderr
    bundle = open_bundle((tmp_path / "bundles/latest").resolve())
    assert json.loads((bundle.path / "draft/draft.json").read_text()) == {"schema": 1, "drafter": "model"}
    provenance = bundle.manifest["provenance"]
    assert provenance["draft_source"]["files"] != provenance["source"]["files"]
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    plain = LLM(bundle.path, speculation=SpeculationOptions(mode="off"))
    drafted = LLM(bundle.path, speculation=SpeculationOptions(mode="6,2,3"))
    assert outputs(drafted, params) == outputs(plain, params)
    assert drafted.text_engine.engine.speculation.snapshot().num_drafts > 0
    sbom = json.loads((bundle.path / "sbom.cdx.json").read_text())
    assert [part["bom-ref"] for part in sbom["components"] if "modelCard" in part] == ["draft/model"]

    line = rebuild_command(bundle.path, bundle.manifest)
    overrides = dict(word.split("=", 1) for word in shlex.split(line)[2:])["ARGS"]
    assert "draft=model draft.source=<path of small>" in overrides
    overrides = overrides.replace("<path of small>", str(small))
    again = command(tmp_path, f"model={large}", *OPTIONS, *overrides.split(), real=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "bundles/latest").resolve() == bundle.path


def test_another_tokenizer_is_one_line(models, tmp_path):
    other = make_hf_folder(tmp_path / "other", max_len=128, num_layers=1)
    save_tokenizer(other, 300)
    done = command(tmp_path, f"model={models[0]}", f"draft.source={other}", *OPTIONS, real=True)
    assert done.returncode == 1
    assert "draft: the draft model has another tokenizer: token 300 is missing" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "bundles").exists()


def test_a_model_that_is_not_smaller_is_taken_only_where_the_config_insists(tmp_path):
    checkpoint = make_checkpoint(tmp_path)
    make_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(EnginewrightError, match=r"choose a smaller draft\.source"):
        check_drafting_model(checkpoint, checkpoint, keep=False)
    check_drafting_model(checkpoint, checkpoint, keep=True)


@pytest.mark.parametrize(("overrides", "line"), [
    (["draft=model"], "draft.source is ''; it must be"),
    (["draft.source=x"], "draft.source is 'x'; it must be empty with draft=auto"),
    (["draft=model", "draft.source=/nowhere/x.gguf"], "draft.source: model source '/nowhere/x.gguf' does not exist"),
])  # fmt: skip
def test_a_source_goes_with_the_model_drafter_alone(overrides, line):
    with pytest.raises(EnginewrightError) as caught:
        load_config(overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shipped_model_is_named_as_for_the_target_and_its_fetch_is_the_same(tmp_path):
    config = load_config([f"paths.root={tmp_path}", "draft=model", "draft.source=smollm2-135m"])
    assert config.draft.model == config.model
    planned = run_stages(config, Planner(Cache(config.paths.cache), config.cache))
    assert planned["draft_fetch"].parts == planned["fetch"].parts


def test_an_address_is_taken_whatever_hydra_would_make_of_it():
    address = "pypi:some-model==1.0#some_model/small.gguf"
    assert load_config(["draft=model", f"draft.source={address}"]).draft.model.source == address


def test_a_plan_counts_both_models(models, tmp_path):
    large, small = models
    config = load_config([f"paths.root={tmp_path}", f"model={large}", "draft=model", f"draft.source={small}"])
    plan = make_plan(config)
    names = [stage["stage"] for stage in plan_as_plain(plan)["stages"]]
    assert names[:5] == ["fetch", "convert", "draft_fetch", "draft_convert", "draft"]
    assert 0 < plan.costs["draft_convert"].disk_bytes < plan.costs["convert"].disk_bytes
