"""Linear probes: how much information about speaker, corpus, gender or emotion a model's embeddings contain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.training.prediction import EMBEDDING


class Probe(NamedTuple):
    """Result of a linear probe.

    Args:
        accuracy: Accuracy on held-out folds, in [0, 1].
        majority: Accuracy of always predicting the most frequent value, in [0, 1].
        num_values: Number of distinct values.
        num_utterances: Number of utterances.
    """

    accuracy: float
    majority: float
    num_values: int
    num_utterances: int


def linear_probe(table: pd.DataFrame, column: str, num_folds: int = 5, seed: int = 0) -> Probe:
    """Cross-validated accuracy of logistic regression from standardised embeddings to the values of a column.

    Args:
        table: Table of ``mmemo predict --embeddings``.
        column: Column to predict; rows without a value are left out.
        num_folds: Number of folds over utterances, 2 or more. Each value needs that many utterances.
        seed: Random seed of the folds.

    Raises:
        ValueError: Embeddings or column are missing, there are fewer than two values, or a value has too few
            utterances.

    Example:
        >>> table = pd.DataFrame({"embedding_0": np.arange(10.0), "gender": ["female"] * 5 + ["male"] * 5})
        >>> linear_probe(table, "gender", num_folds=2)
        Probe(accuracy=1.0, majority=0.5, num_values=2, num_utterances=10)
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
        raise ValueError(f"column {column!r} has fewer than two values; a probe needs two or more")
    if counts.min() < num_folds:
        raise ValueError(
            f"value {counts.index[-1]!r} of column {column!r} has {counts.min()} utterances, fewer than {num_folds} "
            "folds; use fewer folds, or leave these rows out"
        )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    embeddings = table[names].to_numpy(dtype=np.float32)
    predicted = cross_val_predict(probe, embeddings, values, cv=folds)
    return Probe(float((predicted == values).mean()), float(counts.max() / len(values)), len(counts), len(values))
