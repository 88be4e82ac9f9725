"""transformers as a benchmark's opponent: an explicit cached greedy loop, timed step by step.

It is faster than `generate` and computes the same tokens, so that what we report is not generate's overhead.
"""

import time
from itertools import islice, pairwise

import torch
from transformers import PreTrainedModel as Model

from pipelines.quality.greedy import greedy_steps
from pipelines.quality.hf_model import load_converted
from runtime.benchmark.systems import Timings
from runtime.benchmark.workloads import Workload
from runtime.formats.checkpoint import Checkpoint


class TransformersBaseline:
    """transformers' model with the converted weights; greedy, ignoring end-of-sequence tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: str) -> "TransformersBaseline":
        return cls(load_converted(checkpoint, getattr(torch, dtype)))

    def run(self, workload: Workload) -> Timings:
        """Run one batch, padded on the left to its longest prompt and decoded until its longest request ends."""
        marks = [time.perf_counter()]
        for tokens in islice(greedy_steps(self.model, workload.prompts), max(workload.new_tokens)):
            tokens.tolist()  # a token counts once the host has it
            marks.append(time.perf_counter())
        ttft_s, *step_s = (end - start for start, end in pairwise(marks))
        return Timings(ttft_s, step_s, sum(workload.new_tokens))
