"""Search spaces: which settings are tried, and how Optuna proposes them."""

from __future__ import annotations

import json
import math
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmemo.files import read_yaml

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

Sampler = Literal["tpe", "random", "grid", "cmaes", "nsga2"]
Space = Mapping[str, Any]
"""Setting -> list of choices, or ``{low, high}`` with ``log`` or ``step``."""

FORBIDDEN = (
    "data.split", "data.manifest", "data.corpora", "data.only", "data.allow_speaker_overlap",
    "trainer.default_root_dir",
)  # fmt: skip
"""Settings that define the test data, which a search must not change."""


def read_space(path: Path) -> dict[str, Any]:
    """Reads a search space from a YAML file.

    Args:
        path: YAML with one entry per setting.

    Raises:
        ValueError: There is no such file, or it is not a search space.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a YAML of settings, each with low and high, or choices")
    return check_space(read_yaml(path), str(path))


def check_space(space: object, name: str = "space") -> dict[str, Any]:
    """Checks a search space.

    Args:
        space: Setting -> choices or range.
        name: File for the error message.

    Raises:
        ValueError: It is not a search space, or changes the test data.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"{name}: expected a table of settings, such as model.init_args.mixup: [0.0, 0.2, 0.4]")
    for key, values in space.items():
        if str(key).startswith(FORBIDDEN):
            raise ValueError(f"{name}: {key} defines the test data and cannot be tuned; remove it")
        if isinstance(values, list) and values:
            continue
        is_range = isinstance(values, Mapping) and {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}
        ends = [values["low"], values["high"]] if is_range else []
        if not is_range or not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            raise ValueError(
                f"{name}: {key}: found {values!r}, expected a list of choices, or low below high with log or step "
                "(in YAML, write 1.0e-4, not 1e-4)"
            )
        if values.get("log") and (values.get("step") or ends[0] <= 0):
            raise ValueError(f"{name}: {key}: log needs low above 0 and no step")
    return {str(key): values for key, values in space.items()}


def suggest(trial: Trial, key: str, values: Any) -> Any:
    """Returns Optuna's proposal for a setting.

    Args:
        trial: The trial.
        key: Setting.
        values: Its choices or range.
    """
    if isinstance(values, list):
        return json.loads(trial.suggest_categorical(key, _encoded(values)))
    step = {"step": values["step"]} if values.get("step") else {}
    is_integer = isinstance(values["low"], int) and isinstance(values["high"], int)
    propose: Any = trial.suggest_int if is_integer else trial.suggest_float
    return propose(key, values["low"], values["high"], log=bool(values.get("log")), **step)


def decode(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Returns setting -> value from Optuna's parameters, whose choices are JSON."""
    return {key: json.loads(params[key]) if isinstance(values, list) else params[key] for key, values in space.items()}


def own_values(settings: Mapping[str, Any], space: Space) -> dict[str, Any] | None:
    """Returns an experiment's own settings as Optuna's parameters; None if one of them is outside the space.

    Args:
        settings: Nested settings of the experiment.
        space: Search space.
    """
    params: dict[str, Any] = {}
    for key, values in space.items():
        value: Any = settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(values, list):
            if isinstance(value, Mapping) and value.get("class_path") in values:
                value = value["class_path"]
            if json.dumps(value, sort_keys=True) not in _encoded(values):
                return None
            params[key] = json.dumps(value, sort_keys=True)
        else:
            if not isinstance(value, int | float) or not values["low"] <= value <= values["high"]:
                return None
            params[key] = value
    return params


def build_sampler(
    name: Sampler, seed: int, space: Space, num_trials: int, is_shared: bool
) -> BaseSampler:  # fmt: skip
    """Returns the sampler for the next trial.

    It is seeded with the number of trials so far, so that workers differ and a search can be repeated. Workers on other
    machines may ask at the same moment, so a shared storage adds the machine's name to the seed.

    Args:
        name: ``tpe`` (Bayesian), ``random``, ``grid``, ``cmaes`` or ``nsga2`` (evolutionary).
        seed: Seed of the search.
        space: Search space.
        num_trials: Number of trials so far.
        is_shared: Whether machines share the storage.
    """
    from optuna import samplers

    trial_seed = seed + num_trials + (zlib.crc32(platform.node().encode()) % 1000 if is_shared else 0)
    if name == "tpe":
        return samplers.TPESampler(seed=trial_seed, n_startup_trials=5, constant_liar=True)
    if name == "grid":
        return samplers.GridSampler(grid(space), seed=seed)
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=trial_seed)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=trial_seed, population_size=10)
    return samplers.RandomSampler(seed=trial_seed)


def grid(space: Space) -> dict[str, list[Any]]:
    """Returns setting -> all of its values.

    Raises:
        ValueError: A range has no step.

    Example:
        >>> grid({"lr": {"low": 0.0, "high": 1.0, "step": 0.5}, "dim": [8, 16]})
        {'lr': [0.0, 0.5, 1.0], 'dim': ['8', '16']}
    """
    cells: dict[str, list[Any]] = {}
    for key, values in space.items():
        if isinstance(values, list):
            cells[key] = _encoded(values)
            continue
        if not values.get("step"):
            raise ValueError(f"sampler grid: {key} is a range without a step; add one, or list choices")
        count = math.floor((values["high"] - values["low"]) / values["step"] + 1e-9) + 1
        cells[key] = [values["low"] + index * values["step"] for index in range(count)]
    return cells


def grid_size(space: Space) -> int:
    """Returns the number of cells of a grid."""
    return math.prod(len(values) for values in grid(space).values())


def _encoded(values: list[Any]) -> list[str]:
    return [json.dumps(value, sort_keys=True) for value in values]
