"""Two bundles side by side: equal ones are equal, and what differs is named with how far."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import runtime.weight_comparison
from runtime.cli import main
from runtime.comparison import compare_bundles, flat
from runtime.comparison_text import as_text
from runtime.formats.manifest import write_manifest
from runtime.weight_comparison import compare_weights
from tests.runtime.test_readiness import make_bundle

MACHINE = {"cpu": "AMD EPYC", "cores": 2}


def attest(bundle, decode, hardware, kl=1e-4):
    """Give a bundle attestations as a build writes them."""
    row = {"system": "enginewright", "case": "decode", "batch_size": 1, "prompt_len": 32, "unit": "tokens/s",
           "median": decode, "ratio": None}  # fmt: skip
    summary = {"cpu": "AMD EPYC", "hardware": hardware, "rows": [row, {**row, "system": "transformers"}]}
    logits = {"greedy_agreement": 0.99, "mean_kl_nats": kl}
    figures = {"logits": logits, "perplexity": 10.0, "perplexity_ratio": 1.001, "error_ratio": 0.5}
    report = {"engine": {"passed": True, "figures": figures}, "hardware": hardware}
    for name, values in (("bench/summary.json", summary), ("verify/report.json", report)):
        path = bundle / "attestations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@pytest.fixture
def pair(tmp_path):
    a = make_bundle(tmp_path / "a")
    return a, shutil.copytree(a, tmp_path / "b")


def change_weights(bundle, name, change):
    """Edit one tensor and write the manifest again."""
    weights = load_file(bundle / "weights.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, bundle / "weights.safetensors")
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, manifest["model"], manifest["targets"], manifest["provenance"])


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["diff", *map(str, arguments)])
    return ended.value.code


def test_a_copy_is_equal_whatever_its_attestations_say(pair, capsys):
    a, b = pair
    attest(a, 70.0, MACHINE)
    attest(b, 80.0, MACHINE, kl=2e-4)
    found = compare_bundles(a, b)
    assert found.equal
    assert (found.config, found.provenance, found.files, found.weights) == ((), (), (), None)
    assert run(a, b) == 0
    text = capsys.readouterr().out
    assert "mean_kl_nats: 0.0001  0.0002" in text
    assert "decode batch 1 prompt 32: 70  80  b/a 1.14" in text
    assert text.endswith("equal: both manifests vouch for the same bytes\n")


@pytest.mark.parametrize("other", [{"cpu": "AMD EPYC", "cores": 4}, None])
def test_speeds_of_two_machines_are_not_compared(pair, other):
    a, b = pair
    attest(a, 70.0, MACHINE)
    attest(b, 80.0, other)
    found = compare_bundles(a, b)
    assert not found.same_hardware
    text = as_text(found)
    assert "WARNING: not known to be the same hardware" in text
    assert "decode batch 1 prompt 32: 70  80\n" in text


def test_a_changed_tensor_is_named_with_its_largest_difference(pair, capsys):
    a, b = pair
    name = "transformer.ln_f.weight"
    change_weights(b, name, lambda tensor: tensor + torch.tensor([0.0] * 31 + [-0.5]).bfloat16())
    assert run(a, b, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"]
    assert [change["name"] for change in found["files"]] == ["weights.safetensors"]
    (differ,) = found["weights"]["differ"]
    assert differ["name"] == name
    assert differ["max_abs_diff"] == pytest.approx(0.5, abs=0.01)


def test_other_settings_and_sources_are_named(tmp_path):
    a, b = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", arch="x86_64")
    manifest = json.loads((b / "manifest.json").read_text())
    write_manifest(b, manifest["model"], manifest["targets"], {"source": {"uri": "other", "revision": "sha256:12ab"}})
    found = compare_bundles(a, b)
    assert found.config == (("targets.cpu.arch", "any", "x86_64"),)
    assert found.provenance == (("source.uri", "tiny.gguf", "other"),)
    assert not found.equal
    assert "targets.cpu.arch: any -> x86_64" in as_text(found)


def test_tensors_are_compared_in_pieces_and_nan_and_shapes_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.weight_comparison, "PIECE_ELEMENTS", 8)
    base = {"same": torch.arange(40.0).view(10, 4), "last": torch.zeros(10, 4), "nan": torch.zeros(3),
            "inf": torch.tensor([float("inf"), float("nan")]), "shape": torch.zeros(2), "dtype": torch.zeros(2),
            "gone": torch.zeros(1)}  # fmt: skip
    other = {name: tensor.clone() for name, tensor in base.items() if name != "gone"} | {"new": torch.zeros(1)}
    other["last"][9, 3] = -2.5
    other["nan"][1] = float("nan")
    other["shape"], other["dtype"] = torch.zeros(3), torch.zeros(2).half()
    save_file(base, tmp_path / "a")
    save_file(other, tmp_path / "b")
    found = compare_weights(tmp_path / "a", tmp_path / "b")
    differ = {item.name: item.max_abs_diff for item in found.differ}
    assert differ.pop("nan") != differ.get("nan")  # NaN
    assert differ == {"last": 2.5, "shape": None, "dtype": 0.0}
    assert (found.num_equal, found.only_a, found.only_b) == (2, ("gone",), ("new",))


def test_nested_settings_are_dotted():
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b.0": 1, "a.b.1.c": 2, "d": None}
