"""Two runs on the same utterances: is one better, or would other speakers say the opposite?"""

from __future__ import annotations

import numpy as np

from mmemo.evaluation.predictions import Predictions, majority, same_utterances
from mmemo.evaluation.statistics import (
    Comparison,
    Tallies,
    compare_tallies,
    corrected_resampled_t,
    mcnemar,
)
from mmemo.labels import DIMENSIONS


def compare_runs(
    first: Predictions, second: Predictions, figure: str | None = None, num_samples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired comparison of two runs; each may have several seeds, over which each speaker's tallies are averaged.

    Args:
        first: Predictions of one run.
        second: Of the other, on the same utterances.
        figure: One of ``uar``, ``accuracy``, ``macro_f1``, ``weighted_f1``; or ``ccc`` and the others of
            :func:`dimension_figures`. UAR, of dimensions alone CCC, when not given.
        num_samples: Of bootstrap and permutations.
        seed: Of the draws.

    Raises:
        ValueError: They judge other utterances, other classes, or one speaker alone.
    """
    figure = figure or ("uar" if first.classes else "ccc")
    if figure.startswith(("ccc", "mae")):
        names = [name for name in first.dimensions if name in second.dimensions]
        if not names:
            raise ValueError("the runs have no dimension in common; compare runs that predict the same")
        others = [f"predicted_{name}" for name in DIMENSIONS if name not in names]
        first, second = (
            one._replace(table=one.table.drop(columns=others, errors="ignore"), classes=[]) for one in (first, second)
        )
    first, second = same_utterances(first.labelled, second.labelled)
    if first.table.empty:
        raise ValueError(f"no utterance of these runs has a label that {figure} is a figure of; compare another metric")
    if len(first.seeds) < 2 and len(second.seeds) < 2:  # one model each, whichever seed it had
        first, second = (one._replace(table=one.table.drop(columns="seed", errors="ignore")) for one in (first, second))
    tallies = [_per_seed(one) for one in (first, second)]
    found = compare_tallies(tallies[0], tallies[1], figure, num_samples, seed)
    truth = first.table.drop_duplicates("id")["emotion"].map({name: n for n, name in enumerate(first.classes)})
    if first.classes and not first.seeds and not second.seeds:
        rights = [majority(one) == truth.to_numpy() for one in (first, second)]
        found = found._replace(p_mcnemar=mcnemar(*rights))
    return found._replace(p_folds=_over_folds(first, second, figure))


def _per_seed(predictions: Predictions) -> Tallies:
    """Tallies of each speaker, seeds averaged."""
    tallies = predictions.tallies()
    return tallies._replace(sums=tallies.sums / max(len(predictions.seeds), 1))


def _over_folds(first: Predictions, second: Predictions, figure: str) -> float:
    """Corrected resampled t-test over folds and seeds; NaN where the runs were not divided alike."""
    parts = []
    for one in (first, second):
        if "fold" not in one.table or one.table["fold"].nunique() < 2:
            return float("nan")
        keys = [name for name in ("seed", "fold") if name in one.table]
        parts.append(
            {
                key: (set(rows["id"]), _figure(one._replace(table=rows.reset_index(drop=True)), figure))
                for key, rows in one.table.groupby(keys)
            }
        )
    if parts[0].keys() != parts[1].keys() or any(parts[0][key][0] != parts[1][key][0] for key in parts[0]):
        return float("nan")
    differences = [parts[1][key][1] - parts[0][key][1] for key in parts[0]]
    if np.isnan(differences).any():
        return float("nan")
    num_folds = first.table["fold"].nunique()
    return corrected_resampled_t(np.array(differences).tolist(), 1 / (num_folds - 1))


def _figure(predictions: Predictions, figure: str) -> float:
    tallies = predictions.tallies()
    return float(tallies.figures(tallies.sums.sum(0)).get(figure, np.nan))
