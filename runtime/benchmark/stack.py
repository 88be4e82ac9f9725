"""Where the speed comes from: one session, run again with one more switch on at each stage."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median

from runtime.benchmark.arrivals import percentile
from runtime.benchmark.session import Session, SessionTimes, in_batches, run_session
from runtime.benchmark.systems import EngineSystem, System, Timings
from runtime.engine import Engine

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Stage:
    """`load` makes an idle engine that has this switch and all before it.

    records: it keeps what it runs for the first time as a graph, so that the first session must be a whole one.
    """

    name: str
    load: Callable[[], Engine]
    records: bool = True


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


def run_stack(
    stages: Sequence[Stage], session: Session, repeats: int, report: Report, enough_s: float = inf
) -> Iterator[StackSample]:
    """Yield every timed run, stage after stage; each runs a session unrecorded before.

    enough_s: seconds of timed runs after which a stage is not repeated further.
    """
    for index, stage in enumerate(stages):
        report(index / len(stages), f"loading {stage.name}")
        engine = stage.load()
        _both(engine, session if stage.records else session.brief)
        for sample in _repeated(stage.name, session, repeats, enough_s, partial(_both, engine, session)):
            report((index + (sample.repeat + 1) / repeats) / len(stages), stage.name)
            yield sample
        del engine


def run_batches(
    name: str, system: System, session: Session, repeats: int, enough_s: float = inf
) -> Iterator[StackSample]:
    """The same for something that runs one batch at a time, to its end, and records nothing."""

    def run(session: Session) -> tuple[SessionTimes, Timings]:
        times = in_batches(system.run(session.first), system.run(session.second), session.arrival)
        return times, system.run(session.alone)

    run(session.brief)
    yield from _repeated(name, session, repeats, enough_s, partial(run, session))


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


def _both(engine: Engine, session: Session) -> tuple[SessionTimes, Timings]:
    """The session, and its first request alone."""
    return run_session(engine, session), EngineSystem(engine).run(session.alone)


def _repeated(
    name: str, session: Session, repeats: int, enough_s: float, run: Callable[[], tuple[SessionTimes, Timings]]
) -> Iterator[StackSample]:
    spent_s = 0.0
    for repeat in range(repeats):
        times, alone = run()
        yield _sample(name, repeat, session, times, alone)
        spent_s += times.total_s + alone.total_s
        if spent_s >= enough_s:
            return


def _sample(name: str, repeat: int, session: Session, times: SessionTimes, alone: Timings) -> StackSample:
    num_tokens = sum(session.first.new_tokens) + sum(session.second.new_tokens)
    token_s = sum(alone.step_s) / (session.alone.new_tokens[0] - 1)  # a step may bring several tokens
    return StackSample(name, repeat, num_tokens, *times, alone.ttft_s, token_s)
