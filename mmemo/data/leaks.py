"""Ways in which a corpus may leak its labels: a speaker or recording in two splits, or a shortcut to the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.data.manifest import Manifest

FLAG_THRESHOLD = 0.25
"""Share of the way from chance to perfect prediction, in UAR or in information, at which a shortcut is flagged."""
MIN_ROWS = 20


class Shortcut(NamedTuple):
    """How well a property other than speech predicts the label.

    Args:
        name: ``speaker``, ``duration``, ``loudness``, ``sample rate`` or ``folder and file type``.
        uar: Unweighted average recall of a classifier that sees this property alone, on held-out rows, in [0, 1].
        chance: UAR at chance level.
        information: Relative reduction of the label's uncertainty: 1 minus log loss over log loss at chance, each
            class weighted equally; 0 if the property is uninformative.
        speaker_disjoint: Whether the test speakers were unseen.
    """

    name: str
    uar: float
    chance: float
    information: float
    speaker_disjoint: bool

    @property
    def skill(self) -> float:
        """UAR rescaled so that chance is 0 and perfect prediction is 1."""
        return (self.uar - self.chance) / (1 - self.chance)

    @property
    def flagged(self) -> bool:
        """Whether a model could learn this property instead of the emotion."""
        return max(self.skill, self.information) >= FLAG_THRESHOLD


def shared_between_splits(manifest: Manifest, facts: Sequence[AudioFacts | None], private: bool = False) -> list[str]:
    """Lists speakers and recordings that are in more than one split, and recordings with more than one speaker.

    A recording with two speaker names would end up on two sides of any split by speaker. Copies are found by checksum.

    Args:
        manifest: The table.
        facts: Facts of each row's audio.
        private: Whether to name utterances instead of files.

    Returns:
        One line for each problem.
    """
    table = manifest.frame[["id", "speaker", "split", "path"]].copy()
    table["content"] = [fact.content if fact is not None and fact.content else None for fact in facts]
    problems = []
    for _, rows in table[table["content"].notna() & table["speaker"].notna()].groupby("content"):
        names = sorted(map(str, rows["speaker"].unique()))
        if len(names) > 1:
            problems.append(f"the same audio has speakers {', '.join(names[:4])}: {', '.join(rows['id'].head(4))}")
    table = table[table["split"].notna()]
    kinds = (("speaker", "speaker {}"), ("path", "recording {}"), ("content", "the same audio"))
    for column, name in kinds:
        for value, rows in table[table[column].notna()].groupby(column):
            splits = sorted(rows["split"].unique())
            if len(splits) > 1:
                if column == "path" and private:
                    value = f"of {rows['id'].iloc[0]}"
                problems.append(f"{name.format(value)} is in {', '.join(splits)}: {', '.join(rows['id'].head(4))}")
    return problems


def shortcuts(
    manifest: Manifest, facts: Sequence[AudioFacts | None], num_folds: int = 5, seed: int = 0
) -> list[Shortcut]:
    """Measures how well speaker, duration, loudness, sample rate and file location predict the label.

    A small classifier on one property (gradient boosting for numbers, naive Bayes for names) is cross-validated on
    unseen speakers; for the speaker itself, on other utterances of the same speakers. Duration and loudness are
    normally a little above chance: anger *is* loud. Of file names only the folder, the file type and the pattern of
    letters and digits are used, because names often contain the label and no model sees them.

    Args:
        manifest: The table, with labels.
        facts: Facts of each row's audio.
        num_folds: Number of cross-validation folds.
        seed: Seed of the folds.

    Returns:
        The properties that vary; empty if there are too few labelled rows.
    """
    emotion = manifest.frame["emotion"]
    labelled = np.flatnonzero(emotion.notna())
    counts = emotion.iloc[labelled].value_counts()
    classes = counts.index[counts >= num_folds]
    rows = labelled[emotion.iloc[labelled].isin(classes).to_numpy(dtype=bool)]
    if len(rows) < MIN_ROWS or len(classes) < 2:
        return []
    labels = emotion.iloc[rows].to_numpy(dtype=str)
    speakers = manifest.frame["speaker"].iloc[rows]
    disjoint = speakers.notna().all() and speakers.nunique() >= num_folds
    measured = []
    for name, values in _properties(manifest, facts, rows).items():
        if len(pd.DataFrame(values).dropna().drop_duplicates()) < 2:
            continue  # the same for all rows: uninformative
        groups = speakers if disjoint and name != "speaker" else None
        measured.append(_measure(name, values, labels, groups, num_folds, seed))
    return measured


def _properties(manifest: Manifest, facts: Sequence[AudioFacts | None], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the properties to test, each ``(row, column)``: float numbers, or objects for categories."""

    def numbers(attribute: str) -> np.ndarray:
        row_facts = [facts[row] for row in rows]
        values = [np.nan if fact is None or fact.problem else float(getattr(fact, attribute)) for fact in row_facts]
        return np.array(values)[:, None]

    speakers = manifest.frame["speaker"].iloc[rows]
    paths = manifest.frame["path"].iloc[rows].fillna("").astype(str)
    properties: dict[str, np.ndarray] = {}
    if speakers.notna().all() and 1 < speakers.nunique() < len(rows):
        properties["speaker"] = speakers.to_numpy(dtype=object)[:, None]
    return properties | {
        "duration": numbers("seconds"),
        "loudness": numbers("level_db"),
        "sample rate": numbers("sample_rate"),
        "folder and file type": np.array([_path_pattern(path) for path in paths], dtype=object),
    }


def _measure(
    name: str, values: np.ndarray, labels: np.ndarray, groups: pd.Series | None, num_folds: int, seed: int
) -> Shortcut:
    """Cross-validates a classifier of ``values`` ``(row, column)``; no group is in training and test."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import CategoricalNB
    from sklearn.preprocessing import OrdinalEncoder

    if values.dtype == object:
        values = OrdinalEncoder().fit_transform(values.astype(str)).astype(int)
        model = CategoricalNB(alpha=0.1, fit_prior=False, min_categories=(values.max(0) + 1).tolist())
    else:
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=5, class_weight="balanced", random_state=seed,
            early_stopping=False,
        )  # fmt: skip
    if groups is None:
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    else:
        folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        if not _all_classes_in_training(folds, values, labels, groups):
            folds = GroupKFold(num_folds, shuffle=True, random_state=seed)
    probs = cross_val_predict(model, values, labels, cv=folds, groups=groups, method="predict_proba")
    classes = np.unique(labels)
    targets = np.searchsorted(classes, labels)
    correct = probs.argmax(1) == targets
    loss = -np.log(np.maximum(probs[np.arange(len(targets)), targets], 1e-3))
    of_class = [targets == index for index in range(len(classes))]
    uar = float(np.mean([correct[rows].mean() for rows in of_class]))
    information = 1 - float(np.mean([loss[rows].mean() for rows in of_class])) / np.log(len(classes))
    return Shortcut(name, uar, 1 / len(classes), max(information, 0.0), groups is not None)


def _path_pattern(path: str) -> list[str]:
    """Returns a file's folder, file type, and name with letters replaced by ``a`` and numbers by ``0``."""
    parts = re.split(r"[/\\]", path)
    stem, _, suffix = parts[-1].rpartition(".")
    pattern = re.sub(r"[0-9]+", "0", re.sub(r"[^\W\d_]+", "a", stem))
    return ["/".join(parts[:-1]), suffix.lower(), pattern]


def _all_classes_in_training(folds: object, values: np.ndarray, labels: np.ndarray, groups: pd.Series) -> bool:
    """Returns whether the training rows of each fold have every class."""
    splits = folds.split(values, labels, groups)  # type: ignore[attr-defined]
    return all(len(set(labels[train])) == len(set(labels)) for train, _ in splits)
