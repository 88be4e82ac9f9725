"""Where the speed comes from: one session, run again with one more switch on at each stage."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from runtime.benchmark.arrivals import percentile
from runtime.benchmark.session import Session, SessionTimes, in_batches, run_session
from runtime.benchmark.systems import EngineSystem, System, Timings
from runtime.engine import Engine

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Stage:
    """`load` makes an idle engine that has this switch and all before it."""

    name: str
    load: Callable[[], Engine]


@dataclass(frozen=True)
class StackSample:
    """One run of one stage; one line of stack.jsonl. alone_ttft_s, alone_token_s: of one request by itself."""

    stage: str
    repeat: int
    num_tokens: int
    total_s: float
    ttft_s: list[float]
    pauses_s: list[float]
    alone_ttft_s: float
    alone_token_s: float


@dataclass(frozen=True)
class StackRow:
    """Medians over the repeats of a stage. gain: how many times sooner than the stage before the session ended.

    pause_ms: 99 of 100 waits for a request's next tokens were no longer.
    """

    stage: str
    total_s: float
    gain: float
    ttft_ms: float
    pause_ms: float
    alone_ttft_ms: float
    alone_tokens_per_s: float


def run_stack(stages: Sequence[Stage], session: Session, repeats: int, report: Report) -> Iterator[StackSample]:
    """Yield every timed run, stage after stage; each runs the session once unrecorded."""
    for index, stage in enumerate(stages):
        report(index / len(stages), f"loading {stage.name}")
        engine = stage.load()
        for repeat in range(-1, repeats):
            report((index + max(repeat, 0) / repeats) / len(stages), stage.name)
            times = run_session(engine, session)
            alone = EngineSystem(engine).run(session.alone)
            if repeat >= 0:
                yield _sample(stage.name, repeat, session, times, alone)
        del engine


def run_batches(name: str, system: System, session: Session, repeats: int) -> Iterator[StackSample]:
    """The same for something that runs one batch at a time, to its end."""
    for repeat in range(-1, repeats):
        times = in_batches(system.run(session.first), system.run(session.second), session.arrival)
        alone = system.run(session.alone)
        if repeat >= 0:
            yield _sample(name, repeat, session, times, alone)


def summarise_stack(samples: Iterable[StackSample]) -> list[StackRow]:
    """One row per stage, in order of first appearance."""
    every = list(samples)
    rows: list[StackRow] = []
    for name in dict.fromkeys(sample.stage for sample in every):
        chosen = [sample for sample in every if sample.stage == name]
        total_s = median(sample.total_s for sample in chosen)
        rows.append(
            StackRow(
                name, total_s, rows[-1].total_s / total_s if rows else 1.0,
                median(ttft for sample in chosen for ttft in sample.ttft_s) * 1e3,
                percentile([pause for sample in chosen for pause in sample.pauses_s], 0.99) * 1e3,
                median(sample.alone_ttft_s for sample in chosen) * 1e3,
                1 / median(sample.alone_token_s for sample in chosen),
            )
        )  # fmt: skip
    return rows


def _sample(name: str, repeat: int, session: Session, times: SessionTimes, alone: Timings) -> StackSample:
    num_tokens = sum(session.first.new_tokens) + sum(session.second.new_tokens)
    token_s = sum(alone.step_s) / (session.alone.new_tokens[0] - 1)  # a step may bring several tokens
    return StackSample(name, repeat, num_tokens, *times, alone.ttft_s, token_s)
