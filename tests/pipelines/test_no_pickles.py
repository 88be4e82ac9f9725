"""Nothing that we read can run code: no pickles in our source, none in a bundle, templates in their sandbox."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import EnginewrightError
from runtime.llm import LLM
from tests.pipelines.test_cli import REPOSITORY
from tests.pipelines.test_signing import GOLDEN

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PACKAGES = ("pipelines", "runtime", "plugins")


def faults(source: str) -> Iterator[str]:
    """What in a module may read a pickle."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called, options = (
                ast.unparse(node.func),
                {option.arg: ast.unparse(option.value) for option in node.keywords},
            )
            if called == "torch.load" and options.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if options.get("allow_pickle", "False") != "False" or options.get("trust_remote_code", "False") != "False":
                yield f"{called} with {options}"
            if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "read_pickle", "pd.read_pickle"):
                yield called


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_of_ours_reads_pickles_or_runs_what_it_reads(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert len(files) > 10
    assert {str(path): found for path in files if (found := list(faults(path.read_text())))} == {}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from cloudpickle import loads", "torch.load(path)", "torch.load(path, weights_only=False)",
     "np.load(path, allow_pickle=True)", "model.from_pretrained(path, trust_remote_code=True)", "yaml.load(text)"],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "draft/head.pt", "tokenizer/custom.py"])
def test_a_bundle_with_a_pickle_or_code_planted_in_it_does_not_load(tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(EnginewrightError, match=f"{name}: not in the manifest; remove it"):
        LLM(bundle)
