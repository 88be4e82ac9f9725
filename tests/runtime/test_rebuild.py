"""The command that builds a bundle again repeats what drafts for it."""

import json
import shlex

import pytest

from runtime.formats.rebuild import rebuild_command

SOURCE = {"uri": "big.gguf", "revision": "sha256:12ab"}
SMALLER = {"uri": "pypi:some-model==1.0#model/small.gguf", "revision": "sha256:34cd"}
MANIFEST = {
    "model": {"name": "big-bf16", "spec": {"dtype": "bfloat16"}},
    "targets": {"cpu": {}},
    "provenance": {"source": SOURCE, "draft_source": SMALLER},
}


def overrides(folder, drafter, recipe=None, **more):
    if drafter is not None:
        (folder / "draft").mkdir()
        (folder / "draft/draft.json").write_text(json.dumps({"schema": 1, "drafter": drafter, **more}))
    if recipe is not None:
        (folder / "draft/recipe.json").write_text(json.dumps(recipe))
    words = dict(word.split("=", 1) for word in shlex.split(rebuild_command(folder, MANIFEST))[2:])
    return [word for word in words["ARGS"].split() if word.startswith("draft")]


@pytest.mark.parametrize(
    ("drafter", "recipe", "expected"),
    [
        (None, None, []),
        ("none", None, ["draft=none"]),
        ("ngram", None, ["draft=ngram"]),
        ("redrafter", {"loop": {}}, ["draft=ready"]),
        (
            "redrafter",
            {"settings": {"num_steps": 20, "texts": "", "device": "cuda"}},
            ["draft=train", "draft.keep=true", "draft.train.device=cuda", "draft.train.num_steps=20"],
        ),
        (
            "model",
            None,
            ["draft=model", f"draft.source={SMALLER['uri']}", "draft.keep=true", "draft.model.sha256=34cd"],
        ),
    ],
)
def test_the_command_names_the_drafter(tmp_path, drafter, recipe, expected):
    assert overrides(tmp_path, drafter, recipe) == expected


def test_a_shipped_head_is_taken_again_not_trained_again(tmp_path):
    recipe = {"settings": {"num_steps": 20, "device": "cuda"}}
    assert overrides(tmp_path, "redrafter", recipe, shipped=True) == ["draft=ready"]
