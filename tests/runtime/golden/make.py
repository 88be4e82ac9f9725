"""How `schema-1/` was made: `python -m tests.runtime.golden.make FOLDER` builds a bundle of the present schema there.

A bundle that was committed is never made again: it stands for what users have. A new schema gets a folder of its own.
"""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

PROMPTS = ["The engine reads", "def forward(self, hidden):", "In 2024 there were 135", "Straße über naïve cafés 🙂"]
NUM_TOKENS = 24
RECORD = "expected.json"


@dataclass(frozen=True)
class Expected:
    """What greedy generation gave where the bundle was made.

    min_margin: the smallest difference between the two best log-probabilities; well above float32's rounding, 1e-6
        here, so that another CPU chooses the same tokens.
    """

    bundle_id: str
    tokens: dict[str, list[int]]
    min_margin: float


def make(folder: Path) -> None:
    """Build a tiny random model through the pipeline and record its tokens; plots are left out for their size."""
    from pipelines.build import run_build
    from pipelines.loading import load_config
    from tests.pipelines.tiny_models import make_hf_folder

    with TemporaryDirectory() as root:
        model = make_hf_folder(Path(root, "golden-tiny"), hidden=32, max_len=1024, tied=False)
        settings = [f"model={model}", f"paths.root={root}/home", "experiment=smoke", "precision=fp32", "tracking=off"]
        build = run_build(load_config(settings), Console(stderr=True))
        shutil.copytree(build.bundle, folder / "bundle", ignore=shutil.ignore_patterns("*.png"))
    for path in folder.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
    (folder / RECORD).write_text(json.dumps(asdict(generate(folder / "bundle")), indent=1, ensure_ascii=False) + "\n")


def generate(bundle: Path) -> Expected:
    from runtime.formats.bundle import open_bundle
    from runtime.llm import LLM
    from runtime.sampling import SamplingParams

    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    completions = [output.completions[0] for output in LLM(bundle).generate(PROMPTS, params)]
    margins = [step.top[0][1] - step.top[1][1] for completion in completions for step in completion.logprobs]
    tokens = {prompt: completion.token_ids for prompt, completion in zip(PROMPTS, completions, strict=True)}
    return Expected(open_bundle(bundle).bundle_id, tokens, min(margins))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
