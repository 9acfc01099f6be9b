"""The storage of a search, which several workers open and share."""

from __future__ import annotations

import random
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mmemo.studies.search_space import Space, build_sampler

if TYPE_CHECKING:
    from optuna import Study

    from mmemo.studies.tuning import SearchSettings

STORAGE = "study.sqlite"
NUM_ATTEMPTS = 5
"""Attempts to open a storage while other workers create its tables."""


def open_study(settings: SearchSettings, folder: Path, space: Space, key: str) -> Study:
    """Creates or opens the Optuna study of a search; several workers may do this at once."""
    import optuna

    url = settings.storage or f"sqlite:///{(folder / STORAGE).resolve()}"
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sampler = build_sampler(settings.sampler, settings.seed, space, 0, settings.storage is not None)
    for attempts_left in reversed(range(NUM_ATTEMPTS)):
        try:
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
            reason = str(error).splitlines()[0]
            raise ValueError(f"{without_password(url)}: {reason}; install the driver of that database") from None
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if attempts_left and ("already exists" in reason or "unique constraint" in reason.lower()):
                time.sleep(random.uniform(0.2, 1.0))  # another worker is creating the tables
                continue
            raise ValueError(
                f"{without_password(url)}: the storage of this search cannot be used ({reason}); if another process "
                "holds it, wait for it; if it is from another version of Optuna, run `optuna storage upgrade`, or "
                "choose another folder"
            ) from None
    raise AssertionError("the last attempt returns or raises")


def without_password(url: str) -> str:
    """Returns a storage URL that may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def drop_stale(study: Study) -> bool:
    """Fails the running trials of workers that are gone; returns whether there were any."""
    import optuna

    before = sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials)
    optuna.storages.fail_stale_trials(study)
    return sum(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials) < before
