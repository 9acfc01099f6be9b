"""Two runs on the same utterances: is one better, or would other speakers say the opposite?"""

from __future__ import annotations

import numpy as np

from mmemo.evaluation.predictions import Predictions, majority, same_utterances
from mmemo.evaluation.statistics import (
    Comparison,
    Counts,
    class_figures,
    compare_counts,
    corrected_resampled_t,
    mcnemar,
)


def compare_runs(
    first: Predictions, second: Predictions, figure: str = "uar", num_samples: int = 5000, seed: int = 0
) -> Comparison:
    """Paired comparison of two runs; each may have several seeds, over which figures are averaged.

    Args:
        first: Predictions of one run.
        second: Of the other, on the same utterances.
        figure: One of ``uar``, ``accuracy``, ``macro_f1``, ``weighted_f1``.
        num_samples: Of bootstrap and permutations.
        seed: Of the draws.

    Raises:
        ValueError: They judge other utterances, other classes, or one speaker alone.
    """
    if not first.classes or not second.classes:
        raise ValueError("runs of dimensions alone cannot be compared yet; their reports give CCC with intervals")
    first, second = same_utterances(first.labelled, second.labelled)
    if first.table.empty:
        raise ValueError("no utterance of these runs has a label, so there is nothing to compare them by")
    counts = [_per_seed(one) for one in (first, second)]
    found = compare_counts(counts[0], counts[1], figure, num_samples, seed)
    truth = first.table.drop_duplicates("id")["emotion"].map({name: n for n, name in enumerate(first.classes)})
    if not first.seeds and not second.seeds:
        rights = [majority(one) == truth.to_numpy() for one in (first, second)]
        found = found._replace(p_mcnemar=mcnemar(*rights))
    return found._replace(p_folds=_over_folds(first, second, figure))


def _per_seed(predictions: Predictions) -> Counts:
    """Confusion of each speaker, seeds averaged."""
    counts = predictions.counts()
    return counts._replace(confusion=counts.confusion / max(len(predictions.seeds), 1))


def _over_folds(first: Predictions, second: Predictions, figure: str) -> float:
    """Corrected resampled t-test over folds and seeds; NaN where the runs were not divided alike."""
    parts = []
    for one in (first, second):
        if "fold" not in one.table or one.table["fold"].nunique() < 2:
            return float("nan")
        keys = [name for name in ("seed", "fold") if name in one.table]
        parts.append(
            {
                key: (set(rows["id"]), one._replace(table=rows.reset_index(drop=True)).counts().confusion.sum(0))
                for key, rows in one.table.groupby(keys)
            }
        )
    if parts[0].keys() != parts[1].keys() or any(parts[0][key][0] != parts[1][key][0] for key in parts[0]):
        return float("nan")
    differences = [
        float(class_figures(parts[1][key][1])[figure] - class_figures(parts[0][key][1])[figure]) for key in parts[0]
    ]
    num_folds = first.table["fold"].nunique()
    return corrected_resampled_t(np.array(differences).tolist(), 1 / (num_folds - 1))
