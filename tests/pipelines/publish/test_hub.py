"""A bundle on the Hub: one commit with a card, nothing sent twice, no token in any error; a local fake answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.publish.model_card import model_card
from pipelines.publish.publication import Publication, read_publication
from pipelines.publish.pulling import pull
from runtime.errors import EnginewrightError
from tests.pipelines.fake_hub import FakeHub, Repository, serve, use
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.places import contents, place

TOKEN = "hf_secretSecret123"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty Hub, and a token for it in the environment."""
    with serve() as hub:
        use(hub, tmp_path, monkeypatch)
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def files_of(hub: FakeHub) -> dict[str, bytes]:
    repository = hub.repositories["org/model"]
    return repository.commits[repository.refs["main"]]


def test_a_repository_is_made_private_takes_a_bundle_in_one_commit_and_gives_it_back(
    hub: FakeHub, golden: Publication, tmp_path: Path
) -> None:
    outcome = place("hub:org/model").publish(golden, replace=False)
    assert "the repository was made, and is private" in outcome.describe("x")
    assert hub.repositories["org/model"].is_private
    assert len(hub.asked("POST", "/commit/main")) == 1
    assert set(files_of(hub)) == {"README.md", ".gitattributes", *(f"bundle/{name}" for name in contents(GOLDEN))}
    pull(place("hub:org/model"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


def test_a_second_time_nothing_is_sent_and_a_changed_card_stays(hub: FakeHub, golden: Publication) -> None:
    place("hub:org/model").publish(golden, replace=False)
    repository = hub.repositories["org/model"]
    repository.commit(files_of(hub) | {"README.md": b"mine now"})
    asked = len(hub.asked("POST", "") + hub.asked("PUT", ""))
    assert "nothing was sent" in place("hub:org/model").publish(golden, replace=False).describe("x")
    assert len(hub.asked("POST", "") + hub.asked("PUT", "")) == asked
    assert files_of(hub)["README.md"] == b"mine now"


def test_an_upload_that_broke_leaves_no_commit_and_goes_on(hub: FakeHub, golden: Publication, tmp_path: Path) -> None:
    hub.uploads_left = 1
    with pytest.raises(EnginewrightError, match=r"hub:org/model: ") as caught:
        place("hub:org/model").publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert set(files_of(hub)) == {".gitattributes"}
    with pytest.raises(EnginewrightError, match="no bundle there"):
        pull(place("hub:org/model"), tmp_path / "none")
    sent, hub.uploads_left = set(hub.uploads), None
    hub.requests.clear()
    place("hub:org/model").publish(golden, replace=False)
    assert not any(digest in line for digest in sent for line in hub.asked("PUT", "/lfs/"))
    pull(place("hub:org/model"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(GOLDEN)


def test_another_bundle_gives_way_only_when_that_is_asked_for_and_other_files_stay(
    hub: FakeHub, golden: Publication, other: Publication, tmp_path: Path
) -> None:
    hub.repositories["org/model"] = Repository()
    hub.repositories["org/model"].commit({"LICENSE": b"mine"})
    place("hub:org/model").publish(golden, replace=False)
    with pytest.raises(EnginewrightError, match="has another bundle"):
        place("hub:org/model").publish(other, replace=False)
    place("hub:org/model").publish(other, replace=True)
    assert pull(place("hub:org/model"), tmp_path / "back").bundle_id == other.bundle.bundle_id
    assert files_of(hub)["LICENSE"] == b"mine"
    assert "bundle/attestations/bench/summary.json" not in files_of(hub)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses_is_one_line_without_the_token(hub: FakeHub, golden: Publication, status: int) -> None:
    hub.failing = status
    with pytest.raises(EnginewrightError, match=f"^hub:org/model: the Hub .*HTTP {status}") as caught:
        place("hub:org/model").publish(golden, replace=False)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_no_token_is_named_as_the_reason(hub: FakeHub, golden: Publication, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.failing = 401
    with pytest.raises(EnginewrightError, match="there is no token: set HF_TOKEN"):
        place("hub:org/model").publish(golden, replace=False)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(EnginewrightError, match=r"is not hub:<org>/<name>"):
        place("hub:model")


def test_the_card_has_the_measured_figures_and_says_what_was_not(golden: Publication, other: Publication) -> None:
    card = model_card(golden.bundle, "org/model")
    assert card.startswith(
        "---\nlibrary_name: enginewright\npipeline_tag: text-generation\n---\n\n# golden-tiny-fp32\n"
    )
    assert "Passed on a machine that was not recorded" in card
    assert "greedy agreement 100.00%, mean KL 5.00e-15 nats" in card
    assert "| decode, batch 1, prompt 16 | 1,961.2 | not measured |" in card
    assert golden.bundle.bundle_id in card
    bare = model_card(other.bundle, "org/model")
    assert "Not verified (the bundle has no report)." in bare
    assert "Not measured (the bundle has no summary)." in bare


def test_the_card_names_licence_base_model_and_drafting(tmp_path: Path) -> None:
    import json
    import shutil

    from runtime.formats.manifest import write_manifest

    shutil.copytree(GOLDEN, tmp_path / "b")
    summary = json.loads((GOLDEN / "attestations/bench/summary.json").read_text())
    summary["speculation"] = [{"drafting": "ngram", "kind": "all", "accepted_length": 1.25}]
    (tmp_path / "b/attestations/bench/summary.json").write_text(json.dumps(summary))
    component = {"licenses": [{"license": {"id": "Apache-2.0"}}]}
    (tmp_path / "b/sbom.cdx.json").write_text(json.dumps({"metadata": {"component": component}}))
    source = {"uri": "hub:org/base", "revision": "abc", "kind": "hf"}
    write_manifest(tmp_path / "b", {"name": "m", "spec": {}}, {"cpu": {}}, {"source": source})
    card = model_card(read_publication(tmp_path / "b").bundle, "org/model")
    assert "license: apache-2.0\nbase_model: org/base\n---" in card
    assert "Drafting with ngram: 1.25 tokens per step." in card
