"""The record of a load in MLflow: one run with its options, figures and files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.config import BuildConfig
from pipelines.plain import flattened
from pipelines.provenance import environment_tags
from pipelines.tracking import close_failed
from pipelines.tracking_store import Store

Log = Callable[[Mapping[str, float], Sequence[Path]], None]  # figures and files


@contextmanager
def recorded(name: str, options: Mapping[str, Any], config: BuildConfig | None) -> Iterator[Log]:
    """Open a run before the work, so that a store which cannot be used is found out first; None records nothing.

    Raises:
        EnginewrightError: the store cannot be reached.
    """
    if config is None:
        yield lambda figures, files: None
        return
    store = Store(config.tracking, config.paths)
    run_id = store.start(name, {**environment_tags(), "stage": name})
    store.under_way = True
    status = "FINISHED"

    def log(figures: Mapping[str, float], files: Sequence[Path]) -> None:
        store.log(run_id, metrics=figures)
        store.log_files(run_id, files)

    try:
        store.log(run_id, params=dict(flattened(options)))
        yield log
        store.end(run_id, status)
    except BaseException as error:
        status = close_failed(store, run_id, error)
        raise
    finally:
        store.remember_loss(status)
