"""How a corpus may give its labels away: the same voice or sound on two sides, or a side door to the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.audio.reader import AudioFacts
from mmemo.data.manifest import Manifest

RED_FLAG = 0.25
"""Share of the way from chance to certainty, in UAR or in information, at which a side door is flagged."""
MIN_ROWS = 20


class SideDoor(NamedTuple):
    """How well something that is no speech tells the label.

    Args:
        name: ``speaker``, ``duration``, ``loudness``, ``sample rate`` or ``folder and file type``.
        uar: Of a classifier that knows this alone, on rows it did not see; in [0, 1].
        chance: Of one that knows nothing.
        information: How much of what there is to know of the label it tells: 1 less the log loss over that of chance,
            each class alike; 0 when it tells nothing.
        grouped: Whether it was judged on speakers that it had not seen.
    """

    name: str
    uar: float
    chance: float
    information: float
    grouped: bool

    @property
    def skill(self) -> float:
        """How far from chance to certainty, in (-1, 1]."""
        return (self.uar - self.chance) / (1 - self.chance)

    @property
    def flagged(self) -> bool:
        """Whether a model could learn this instead of the emotion."""
        return max(self.skill, self.information) >= RED_FLAG


def shared(manifest: Manifest, facts: Sequence[AudioFacts | None], private: bool = False) -> list[str]:
    """One line for each speaker or recording that stands in more than one split of the manifest, and for each sound
    that several speakers are said to have made: whatever divides by speaker would put it on two sides.

    Args:
        manifest: The table.
        facts: Of each row's audio.
        private: Whether to name utterances in the place of files.
    """
    table = manifest.frame[["id", "speaker", "split", "path"]].copy()
    table["content"] = [fact.content if fact is not None and fact.content else None for fact in facts]
    found = []
    for _, rows in table[table["content"].notna() & table["speaker"].notna()].groupby("content"):
        names = sorted(map(str, rows["speaker"].unique()))
        if len(names) > 1:
            found.append(f"the same audio is of speakers {', '.join(names[:4])}: {', '.join(rows['id'].head(4))}")
    table = table[table["split"].notna()]
    kinds = (("speaker", "speaker {}"), ("path", "recording {}"), ("content", "the same audio"))
    for column, name in kinds:
        for value, rows in table[table[column].notna()].groupby(column):
            splits = sorted(rows["split"].unique())
            if len(splits) > 1:
                if column == "path" and private:
                    value = f"of {rows['id'].iloc[0]}"
                found.append(f"{name.format(value)} is in {', '.join(splits)}: {', '.join(rows['id'].head(4))}")
    return found


def side_doors(
    manifest: Manifest, facts: Sequence[AudioFacts | None], num_folds: int = 5, seed: int = 0
) -> list[SideDoor]:
    """How well the speaker, the duration, the loudness, the sample rate, or where a file is, tells its label.

    A small classifier on that alone (gradient boosting for numbers, counts for names) is judged on speakers it did not
    see; what the speaker itself tells, on other utterances of the same speakers. A little above chance is normal for
    duration and loudness: anger *is* loud. File names are not looked at, only folders, the type of file and the shape
    of its name, since names often state the label and no model sees them.

    Args:
        manifest: With labels.
        facts: Of each row's audio.
        num_folds: Folds of the estimate.
        seed: Of the folds.

    Returns:
        Those that can be asked; none with too few labelled rows.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.naive_bayes import CategoricalNB
    from sklearn.preprocessing import OrdinalEncoder

    frame = manifest.frame
    known = np.flatnonzero(frame["emotion"].notna())
    counts = frame["emotion"].iloc[known].value_counts()
    often = counts.index[counts >= num_folds]
    rows = known[frame["emotion"].iloc[known].isin(often).to_numpy(dtype=bool)]
    if len(rows) < MIN_ROWS or len(often) < 2:
        return []
    label = frame["emotion"].iloc[rows].to_numpy(dtype=str)
    speakers = frame["speaker"].iloc[rows]
    heard = [facts[row] for row in rows]

    def number(name: str) -> np.ndarray:
        values = [float("nan") if fact is None or fact.problem else float(getattr(fact, name)) for fact in heard]
        return np.array(values)[:, None]

    paths = frame["path"].iloc[rows].fillna("").astype(str)
    places = np.array([_place(path) for path in paths], dtype=object)
    grouped = speakers.notna().all() and speakers.nunique() >= num_folds
    asked: list[tuple[str, np.ndarray, bool]] = []
    if speakers.notna().all() and speakers.nunique() > 1 and speakers.nunique() < len(rows):
        asked.append(("speaker", speakers.to_numpy(dtype=object)[:, None], False))
    asked += [
        ("duration", number("seconds"), grouped), ("loudness", number("level_db"), grouped),
        ("sample rate", number("sample_rate"), grouped), ("folder and file type", places, grouped),
    ]  # fmt: skip
    found = []
    for name, values, by_speaker in asked:
        if len(pd.DataFrame(values).dropna().drop_duplicates()) < 2:
            continue  # the same for all: nothing to be learned from it
        categorical = values.dtype == object
        if categorical:
            values = OrdinalEncoder().fit_transform(values.astype(str)).astype(int)
        if by_speaker:
            folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
            if not _all_classes(folds, values, label, speakers):
                folds = GroupKFold(num_folds, shuffle=True, random_state=seed)
        else:
            folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
        model = (
            CategoricalNB(alpha=0.1, fit_prior=False, min_categories=(values.max(0) + 1).tolist())
            if categorical
            else HistGradientBoostingClassifier(
                max_iter=40, max_leaf_nodes=8, min_samples_leaf=5, class_weight="balanced", random_state=seed,
                early_stopping=False,
            )
        )  # fmt: skip
        groups = speakers if by_speaker else None
        probs = cross_val_predict(model, values, label, cv=folds, groups=groups, method="predict_proba")
        names = np.unique(label)
        truth = np.searchsorted(names, label)
        right = probs.argmax(1) == truth
        loss = -np.log(np.maximum(probs[np.arange(len(truth)), truth], 1e-3))
        of_class = [truth == place for place in range(len(names))]
        uar = float(np.mean([right[rows].mean() for rows in of_class]))
        told = 1 - float(np.mean([loss[rows].mean() for rows in of_class])) / np.log(len(names))
        found.append(SideDoor(name, uar, 1 / len(names), max(told, 0.0), by_speaker))
    return found


def _place(path: str) -> list[str]:
    """Folders, type and shape of the name (letters as a, digits as 0) of a file."""
    parts = re.split(r"[/\\]", path)
    stem, _, kind = parts[-1].rpartition(".")
    shape = re.sub(r"[0-9]+", "0", re.sub(r"[^\W\d_]+", "a", stem))
    return ["/".join(parts[:-1]), kind.lower(), shape]


def _all_classes(folds: object, values: np.ndarray, label: np.ndarray, groups: pd.Series) -> bool:
    """Whether each training side has every class."""
    divided = folds.split(values, label, groups)  # type: ignore[attr-defined]
    return all(len(set(label[train])) == len(set(label)) for train, _ in divided)
