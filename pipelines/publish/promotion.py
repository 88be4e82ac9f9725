"""Moves the alias `champion` of a registered model: to a version that passes the gates, or back to the one before.

Each version that became champion names the one before it in its tag `previous_champion`, so rolling back twice goes
back twice. Every attempt is a run of its own in the store, with its gates as gates.json.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.config import PathsConfig, PromoteConfig, TrackingConfig
from pipelines.hardware import fingerprint
from pipelines.provenance import environment_tags
from pipelines.publish.errors import place_errors
from pipelines.publish.gates import Evidence, Gate, judge
from pipelines.publish.mlflow_files import BUNDLE
from pipelines.publish.mlflow_registry import CANDIDATE, MODEL_TAG, download, listing
from pipelines.tracking_store import Store
from runtime.errors import EnginewrightError
from runtime.formats.manifest import ATTESTATIONS_DIR, MANIFEST_FILE

CHAMPION = "champion"
PREVIOUS_TAG = "previous_champion"


@dataclass(frozen=True)
class Verdict:
    """What came of an attempt. champion: the version that it was measured against; "" where there was none."""

    name: str
    version: str
    champion: str
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


class Registry:
    """The registered models of one store."""

    def __init__(self, tracking: TrackingConfig, paths: PathsConfig) -> None:
        self.store = Store(tracking, paths)
        self.client = self.store.client

    def promote(self, name: str, version: str, config: PromoteConfig) -> Verdict:
        """Judge a version, the candidate by default, and make it the champion if every gate passes.

        Raises:
            EnginewrightError: no such model or version, or it is the champion already.
        """
        with place_errors(f"mlflow:{name}"):
            name = name or self._only_name()
            chosen = self._version(name, version) if version else self._by_alias(name, CANDIDATE)
            if chosen is None:
                raise EnginewrightError(f"mlflow:{name}: has no {CANDIDATE}; publish a bundle to it, or name a version")
            champion = self._by_alias(name, CHAMPION)
            if champion is not None and champion.version == chosen.version:
                raise EnginewrightError(f"mlflow:{name}: version {chosen.version} is the {CHAMPION} already")
            gates = judge(self._evidence(chosen), self._evidence(champion) if champion else None, fingerprint(), config)
            verdict = Verdict(name, str(chosen.version), str(champion.version) if champion else "", tuple(gates))
            self._record("promote", verdict)
            if verdict.passed:
                self.client.set_model_version_tag(name, verdict.version, PREVIOUS_TAG, verdict.champion)
                self.client.set_registered_model_alias(name, CHAMPION, verdict.version)
            return verdict

    def rollback(self, name: str) -> Verdict:
        """Make the version before the champion the champion.

        Raises:
            EnginewrightError: there is no champion, or none before it.
        """
        with place_errors(f"mlflow:{name}"):
            name = name or self._only_name()
            champion = self._by_alias(name, CHAMPION)
            if champion is None:
                raise EnginewrightError(f"mlflow:{name}: has no {CHAMPION} to roll back from")
            previous = champion.tags.get(PREVIOUS_TAG, "")
            if not previous:
                raise EnginewrightError(f"mlflow:{name}: version {champion.version} had no {CHAMPION} before it")
            verdict = Verdict(name, str(self._version(name, previous).version), str(champion.version), ())
            self._record("rollback", verdict)
            self.client.set_registered_model_alias(name, CHAMPION, verdict.version)
            return verdict

    def _only_name(self) -> str:
        """The registered model that is meant where none is named."""
        names = sorted(model.name for model in self.client.search_registered_models() if CANDIDATE in model.aliases)
        if len(names) != 1:
            raise EnginewrightError(
                f"name a registered model with --name; those with a {CANDIDATE}: {', '.join(names) or 'none'}"
            )
        return str(names[0])

    def _version(self, name: str, version: str) -> Any:
        found = self.client.search_model_versions(f"name = '{name}'")
        chosen = [item for item in found if str(item.version) == version and MODEL_TAG in item.tags]
        if not chosen:
            there = ", ".join(sorted(str(item.version) for item in found)) or "none"
            raise EnginewrightError(
                f"mlflow:{name}: has no version {version} that was published here; there are: {there}"
            )
        return chosen[0]

    def _by_alias(self, name: str, alias: str) -> Any | None:
        models = self.client.search_registered_models(f"name = '{name}'")
        if not models:
            raise EnginewrightError(f"mlflow:{name}: no such registered model; publish a bundle to it first")
        version = models[0].aliases.get(alias)
        return self._version(name, str(version)) if version is not None else None

    def _evidence(self, version: Any) -> Evidence:
        """What a version's bundle says of itself; of its files only the small ones are brought here."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "bundle")
            model_id = version.tags[MODEL_TAG]
            download(self.store, model_id, BUNDLE + MANIFEST_FILE, folder)
            if listing(self.client, model_id, BUNDLE + ATTESTATIONS_DIR):
                download(self.store, model_id, BUNDLE + ATTESTATIONS_DIR, folder / ATTESTATIONS_DIR)
            return Evidence.read(folder)

    def _record(self, action: str, verdict: Verdict) -> None:
        tags = {"stage": action, "model": verdict.name, "version": verdict.version, "champion": verdict.champion,
                "passed": str(verdict.passed).lower()}  # fmt: skip
        run_id = self.store.start(f"{action} {verdict.name}", {**environment_tags(), **tags})
        self.store.log_dict(run_id, {**tags, "gates": [gate._asdict() for gate in verdict.gates]}, "gates.json")
        self.store.end(run_id, "FINISHED" if verdict.passed else "FAILED")
        self.client.set_model_version_tag(verdict.name, verdict.version, f"{action}_run", run_id)
