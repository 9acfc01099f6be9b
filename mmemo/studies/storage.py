"""The storage of a search, which several workers open and share."""

from __future__ import annotations

import random
import re
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from mmemo.studies.search_space import Space, build_sampler

if TYPE_CHECKING:
    from optuna import Study

    from mmemo.studies.tuning import SearchSettings

STORAGE = "study.sqlite"
NUM_ATTEMPTS = 5
"""Attempts to open a database server while other workers create its tables."""


def open_study(settings: SearchSettings, folder: Path, space: Space, key: str) -> Study:
    """Creates or opens the Optuna study of a search; several workers may do this at once.

    Raises:
        ValueError: The storage cannot be used, or its driver is missing.
    """
    import optuna
    import sqlalchemy.exc

    url = settings.storage or f"sqlite:///{(folder / STORAGE).resolve()}"
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sampler = build_sampler(settings.sampler, settings.seed, space, 0, settings.storage is not None)
    for attempts_left in reversed(range(NUM_ATTEMPTS)):
        try:
            with _creation_lock(url):
                storage = optuna.storages.RDBStorage(
                    url, engine_kwargs={"connect_args": {"timeout": 30}} if url.startswith("sqlite") else None,
                    heartbeat_interval=30, grace_period=90,
                    # The trial of a worker that was killed is tried again.
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
                )  # fmt: skip
                return optuna.create_study(
                    study_name=f"mmemo-{key[:16]}", storage=storage, direction="maximize", load_if_exists=True,
                    sampler=sampler, pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
                )  # fmt: skip
        except ImportError as error:
            raise ValueError(
                f"{without_password(url)}: {_first_line(error)}; install the driver of that database"
            ) from None
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, OSError) as error:
            duplicates = (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)
            if attempts_left and isinstance(error, duplicates):
                time.sleep(random.uniform(0.2, 1.0))  # another worker is creating the tables of a database server
                continue
            raise ValueError(
                f"{without_password(url)}: the storage of this search cannot be used ({_first_line(error)}); if "
                "another process holds it, wait for it; if it is from another version of Optuna, run `optuna storage "
                "upgrade`, or choose another folder"
            ) from None
    raise AssertionError("the last attempt returns or raises")


def _creation_lock(url: str) -> AbstractContextManager[object]:
    """Returns a lock beside an SQLite file, so that one worker at a time creates its tables."""
    file = url.removeprefix("sqlite:///").partition("?")[0]
    return FileLock(f"{file}.lock") if url.startswith("sqlite:///") and file else nullcontext()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def without_password(url: str) -> str:
    """Returns a storage URL that may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def drop_stale(study: Study) -> bool:
    """Fails the running trials of workers that are gone; returns whether there were any."""
    import optuna

    before = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
    optuna.storages.fail_stale_trials(study)
    return sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials) < before
