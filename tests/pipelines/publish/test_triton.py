"""The model repository is one that Triton reads, and its model streams what the bundle generates."""

import importlib.util
import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.publish.publication import Publication
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from tests.pipelines.publish.conftest import GOLDEN
from tests.pipelines.publish.places import place

FINAL = 1


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: Exception | None = None) -> None:
        self.output_tensors, self.error = output_tensors or [], error


class Request:
    """One request, which is its own sender of responses."""

    def __init__(self, **inputs: Any) -> None:
        self.inputs = {name: Tensor(name, np.array([value])) for name, value in inputs.items()}
        self.responses: list[Response] = []
        self.finished = threading.Event()
        self.cancel_after = 10_000

    def get_response_sender(self) -> "Request":
        return self

    def is_cancelled(self) -> bool:
        return len(self.responses) >= self.cancel_after

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        if response is not None:
            self.responses.append(response)
        if flags == FINAL:
            self.finished.set()

    def text(self) -> str:
        assert self.finished.wait(30)
        return b"".join(item.output_tensors[0].values[0] for item in self.responses).decode()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that Triton gives to its python models."""
    utils = types.ModuleType("triton_python_backend_utils")
    utils.__dict__.update(
        Tensor=Tensor, InferenceResponse=Response, TritonError=RuntimeError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: request.inputs.get(name),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)


@pytest.fixture
def folder(golden: Publication, tmp_path: Path) -> Path:
    place(f"triton:{tmp_path}/models").publish(golden, replace=False)
    return tmp_path / "models" / golden.name


@pytest.fixture
def model(folder: Path, backend: None) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("triton_model_in_test", folder / "1/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {"target": {"string_value": "auto"}}})})
    yield model
    model.finalize()


def parsed(text: str) -> dict[str, Any]:
    """Protobuf's text form, as far as these files use it, as nested lists under names."""
    tokens = iter(text.replace("{", " { ").replace("}", " } ").replace("[", " [ ").replace("]", " ] ")
                  .replace(",", " , ").replace(":", " : ").split())  # fmt: skip

    def value(token: str) -> Any:
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while (item := next(tokens)) != "]":
                if item != ",":
                    items.append(value(item))
            return items
        return json.loads(token) if token[0] in '"0123456789' or token in ("true", "false") else token

    def message(end: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name in tokens:
            if name == end:
                return fields
            assert name not in fields, name
            token = next(tokens)
            fields[name] = value(next(tokens) if token == ":" else token)
        assert not end
        return fields

    return message("")


def test_the_configuration_parses_and_names_what_the_model_reads(folder: Path, golden: Publication) -> None:
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config["name"], config["backend"], config["max_batch_size"]) == (golden.name, "python", 0)
    assert config["model_transaction_policy"] == {"decoupled": True}
    inputs = {item["name"]: item for item in config["input"]}
    assert set(inputs) == {"prompt", "max_tokens", "temperature", "top_p", "top_k", "seed"}
    assert [name for name, item in inputs.items() if not item.get("optional")] == ["prompt"]
    assert inputs["seed"] == {"name": "seed", "data_type": "TYPE_INT64", "dims": [1], "optional": True}
    assert config["output"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}]
    assert config["parameters"] == {"key": "target", "value": {"string_value": "auto"}}
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_the_version_folder_has_all_that_the_model_imports(folder: Path) -> None:
    assert (folder / "1/runtime/llm.py").is_file()
    assert (folder / "1/plugins/linear/onednn.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert "pipelines" not in (folder / "1/model.py").read_text()


def test_the_model_streams_what_the_bundle_generates(model: Any) -> None:
    requests = [Request(prompt=text.encode(), max_tokens=8) for text in ("hello", "the sea", "a")]
    model.execute(requests)
    llm = LLM(GOLDEN)
    for request, text in zip(requests, ("hello", "the sea", "a"), strict=True):
        assert request.text() == llm.generate(text, SamplingParams(max_tokens=8))[0].text
        assert len(request.responses) > 1
    sampled = Request(prompt=b"hello", max_tokens=8, temperature=1.0, seed=7)
    model.execute([sampled])
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=7)
    assert sampled.text() == llm.generate("hello", params)[0].text


def test_a_request_that_is_wrong_or_cancelled_ends_alone(model: Any) -> None:
    wrong, left, good = (
        Request(prompt=b""),
        Request(prompt=b"hello", max_tokens=60),
        Request(prompt=b"hello", max_tokens=4),
    )
    left.cancel_after = 2
    model.execute([wrong, left, good])
    assert good.finished.wait(30)
    assert len(good.responses) == 4
    assert left.finished.wait(30)
    assert len(left.responses) == 2
    assert wrong.finished.wait(30)
    assert "empty" in str(wrong.responses[0].error)


def test_other_models_of_the_repository_are_left_alone(folder: Path, golden: Publication, tmp_path: Path) -> None:
    (folder.parent / "mine/1").mkdir(parents=True)
    (folder.parent / "mine/1/model.py").write_text("mine")
    assert not place(f"triton:{tmp_path}/models").publish(golden, replace=False).sent
    assert (folder.parent / "mine/1/model.py").read_text() == "mine"
