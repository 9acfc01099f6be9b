"""How much of something is left in a model's fused vectors: speaker, corpus, gender, or the emotion itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.training.experiment import EMBEDDING


class Probe(NamedTuple):
    """What a linear classifier reads from vectors.

    Args:
        accuracy: Share of the utterances it gets right, each judged by a classifier that did not see it.
        majority: Share that always naming the most frequent value would get right.
        num_values: How many values there are.
        num_utterances: How many vectors.
    """

    accuracy: float
    majority: float
    num_values: int
    num_utterances: int


def linear_probe(table: pd.DataFrame, column: str, num_folds: int = 5, seed: int = 0) -> Probe:
    """Standardised logistic regression from vectors to the values of a column, over folds of utterances.

    Args:
        table: Of ``mmemo predict --embeddings``.
        column: What is to be read; rows without a value are left out.
        num_folds: Folds, at least 2; each value needs that many utterances.
        seed: Of the folds.

    Raises:
        ValueError: There are no vectors, no such column, one value alone, or a value with too few utterances.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = [name for name in table if str(name).startswith(EMBEDDING)]
    if not names:
        raise ValueError(f"the table has no columns {EMBEDDING}0, ...; `mmemo predict --embeddings` writes them")
    if column not in table:
        others = [str(name) for name in table if name not in names]
        raise ValueError(f"the table has no column {column!r}, found only {', '.join(others)}")
    table = table[table[column].notna()]
    values = table[column].astype(str).to_numpy()
    counts = pd.Series(values).value_counts()
    if len(counts) < 2:
        raise ValueError(f"column {column!r} has one value alone or none, and a probe needs two or more to tell apart")
    if counts.min() < num_folds:
        raise ValueError(
            f"value {counts.index[-1]!r} of column {column!r} has {counts.min()} utterances, fewer than {num_folds} "
            "folds; use fewer folds, or leave these rows out"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    vectors = table[names].to_numpy(dtype=np.float32)
    said = cross_val_predict(probe, vectors, values, cv=folds)
    return Probe(float((said == values).mean()), float(counts.max() / len(values)), len(counts), len(values))
