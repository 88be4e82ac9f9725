"""Measure a finished bundle on this GPU, its drafter included: `python -m bench.gpu.bundle BUNDLE --out FILE.jsonl`.

Greedy and sampled answers to shipped prompts, one request at a time: plainly, with trees by the policy, with the
smallest trees, and with a fixed tree of each size that the head was measured with. Accepted lengths depend on the
weights, so they are the bundle's own.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu.device import as_line, describe
from pipelines.benchmark.speculation import choose
from pipelines.data import encode_prompt
from runtime.benchmark.speculation import KindPrompt, run_speculation, summarise_speculation
from runtime.engine import Engine
from runtime.formats.bundle import Bundle, open_bundle
from runtime.loading import load_backend, load_drafting
from runtime.sampling import SamplingParams
from runtime.speculation.loading import Drafting, SpeculationOptions
from runtime.speculation.policy import SMALL_TREES, TINY_TREES, SpeculationPolicy
from runtime.speculation.redrafter.head_file import read_description, worthwhile

Line = dict[str, Any]
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.bundle", description="Measure a bundle on this GPU.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the file for raw lines")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no NVIDIA GPU, or a torch without CUDA; run it where python -m runtime doctor names one")
    bundle = open_bundle(options.bundle)
    with options.out.open("w") as file:
        for line in measure(bundle, options.prompts, options.new_tokens, options.repeats):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if line["kind"] == "summary" and line["text"] == "all":
                print(_as_text(line), flush=True)


def measure(bundle: Bundle, num_prompts: int, new_tokens: int, repeats: int) -> Iterator[Line]:
    """Lines of one run: device, costs of steps and drafts, every timed answer, and a summary of each drafting."""
    weights = bundle.manifest["files"]["weights.safetensors"]["sha256"]
    yield {**as_line(describe()), "bundle": bundle.bundle_id, "weights_sha256": weights}
    tokenizer = bundle.tokenizer()
    engine_dir = bundle.engine_dir("cuda")
    engine = Engine(
        load_backend(bundle.checkpoint(), engine_dir, bundle.draft_dir, bundle.path), tokenizer.eos_token_ids
    )
    draftings = dict(_draftings(engine, bundle, engine_dir))
    for drafting in draftings.values():
        if isinstance(drafting.policy, SpeculationPolicy):
            yield from _costs(drafting.policy)
    prompts = [KindPrompt(prompt.kind, encode_prompt(tokenizer, prompt, chat=True)) for prompt in choose(num_prompts)]
    for name, params in {"greedy": SamplingParams(), "sampled": SAMPLED}.items():
        samples = list(
            run_speculation(engine, draftings, prompts, new_tokens, repeats, lambda done, text: None, params)
        )
        yield from (
            {"kind": "answer", "sampling": name, "text": one.kind, **_without_kind(asdict(one))} for one in samples
        )
        for row in summarise_speculation(samples):
            yield {"kind": "summary", "sampling": name, "text": row.kind, **_without_kind(asdict(row))}


def _draftings(engine: Engine, bundle: Bundle, engine_dir: Path) -> Iterator[tuple[str, Drafting]]:
    modes = ["auto"]
    if bundle.draft_dir is not None:
        measured = worthwhile(read_description(bundle.draft_dir).trees)
        shapes = [*TINY_TREES, SMALL_TREES[0], *(tree.shape for tree in measured)]
        modes += [f"{one.num_nodes},{one.num_beams},{one.depth}" for one in shapes]
    for mode in modes:
        yield (
            mode,
            load_drafting(engine.backend, bundle.checkpoint(), engine_dir, bundle.draft_dir, SpeculationOptions(mode)),
        )


def _costs(policy: SpeculationPolicy) -> Iterator[Line]:
    """What the policy measured at load, in microseconds."""
    for (batch_size, rows), seconds in sorted(policy.costs.target_seconds.items()):
        yield {
            "kind": "cost",
            "of": "target",
            "batch_size": batch_size,
            "rows": rows,
            "unit": "us",
            "value": seconds * 1e6,
        }
    for (batch_size, beams, depth), seconds in sorted(policy.costs.draft_seconds.items()):
        yield {"kind": "cost", "of": "draft", "batch_size": batch_size, "beams": beams, "depth": depth, "unit": "us",
               "value": seconds * 1e6}  # fmt: skip


def _as_text(line: Line) -> str:
    speed = f"{line['tokens_per_s']:8.1f} tokens/s {line['ratio']:5.2f}x plain"
    shares = f"accepted length {line['accepted_length']:.2f}, equal {line['equal_share']:.3f}"
    return f"{line['sampling']:8} {line['drafting']:10} {speed}, {shares}"


def _without_kind(fields: Line) -> Line:
    return {name: value for name, value in fields.items() if name != "kind"}


if __name__ == "__main__":
    main()
