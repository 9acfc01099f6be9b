"""Which rows train, which choose, which judge; no speaker stands on two sides."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold as SklearnGroupKFold

from mmemo.data.manifest import SPLITS, Manifest


class SplitError(ValueError):
    """A split that would not give an honest result, or cannot be made from this manifest."""


class Split(NamedTuple):
    """Row numbers ``(row,)`` of a manifest.

    Args:
        train: Rows the weights are fitted on.
        val: Rows that choose epoch and settings; always taken from the training side.
        test: Rows that judge, once.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Splitter(Protocol):
    """Divides a manifest; ``fold`` counts from 1."""

    fold: int

    def count(self, manifest: Manifest) -> int:
        """How many folds there are."""

    def __call__(self, manifest: Manifest) -> Split:
        """Row numbers of the fold."""


class OfficialSplit:
    """The split that the manifest's ``split`` column states.

    Args:
        num_val_speakers: Speakers moved from train to val where the column names no val rows.
        seed: Which speakers these are.
        fold: There is one fold alone, 1.
    """

    def __init__(self, num_val_speakers: int = 2, seed: int = 0, fold: int = 1) -> None:
        self.num_val_speakers = num_val_speakers
        self.seed = seed
        self.fold = fold

    def count(self, manifest: Manifest) -> int:
        return 1

    def __call__(self, manifest: Manifest) -> Split:
        column = manifest.frame["split"]
        if column.isna().all():
            raise SplitError(
                f"{manifest.path}: no row names its split, expected {', '.join(SPLITS)}; "
                "fill it in, or use mmemo.data.GroupKFold"
            )
        train, val, test = (np.flatnonzero(column.eq(name).fillna(False).to_numpy(dtype=bool)) for name in SPLITS)
        if len(val) == 0 and len(train):
            train, val = hold_out_speakers(manifest, train, self.num_val_speakers, self.seed)
        return Split(train, val, test)


class FoldFile:
    """Published folds: the test speakers of each, read from a file.

    Args:
        path: CSV with a column ``fold`` and a column of speakers separated by spaces.
        fold: Which fold to test on, counting from 1.
        num_val_speakers: Speakers held out of the training side to choose the epoch; 0 trains on all of them,
            for a schedule that was fixed before (then judge the last checkpoint).
        seed: Which speakers these are.
    """

    def __init__(self, path: str, fold: int = 1, num_val_speakers: int = 2, seed: int = 0) -> None:
        self.path = Path(path)
        self.fold = fold
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    def count(self, manifest: Manifest) -> int:
        return len(self._read())

    def _read(self) -> dict[int, list[str]]:
        if not self.path.is_file():
            raise SplitError(f"{self.path}: no such file, expected a CSV of folds and their test speakers")
        table = pd.read_csv(self.path, dtype=str)
        if "fold" not in table or len(table.columns) != 2 or not table["fold"].fillna("").str.isdecimal().all():
            raise SplitError(
                f"{self.path}: found columns {list(table.columns)}, expected 'fold' (numbers) and one of test speakers"
            )
        folds: dict[int, list[str]] = {}
        for fold, names in zip(table["fold"], table.drop(columns="fold").iloc[:, 0].fillna(""), strict=True):
            folds.setdefault(int(fold), []).extend(names.split())  # a fold may take one row or several
        tested = [name for names in folds.values() for name in names]
        twice = sorted({name for name in tested if tested.count(name) > 1})
        if sorted(folds) != list(range(1, len(folds) + 1)) or not all(folds.values()) or twice:
            raise SplitError(
                f"{self.path}: expected folds 1 to {len(folds)}, each with speakers, no speaker in two; found folds "
                f"{sorted(folds)}, empty {[fold for fold, names in folds.items() if not names]}, twice {twice}"
            )
        return folds

    def __call__(self, manifest: Manifest) -> Split:
        folds = self._read()
        if self.fold not in folds:
            raise SplitError(f"{self.path}: no fold {self.fold}, expected one of {sorted(folds)}")
        speakers = manifest.frame["speaker"]
        missing = sorted(set(folds[self.fold]) - set(speakers.dropna()))
        if missing:
            raise SplitError(
                f"{self.path} fold {self.fold}: speakers {missing} are not in {manifest.path}, "
                f"which has {sorted(speakers.dropna().unique())[:8]}..."
            )
        in_test = speakers.isin(folds[self.fold]).to_numpy(dtype=bool)
        train, val = hold_out_speakers(manifest, np.flatnonzero(~in_test), self.num_val_speakers, self.seed)
        return Split(train, val, np.flatnonzero(in_test))


class GroupKFold:
    """Folds of about equal size with whole groups in each.

    Args:
        num_folds: Number of folds, at most the number of groups.
        fold: Which fold to test on, counting from 1.
        group: Column whose values stay together: ``speaker``, ``session``, or any other.
        num_val_speakers: Speakers held out of the training side to choose the epoch; 0 trains on all of them,
            for a schedule that was fixed before (then judge the last checkpoint).
        seed: Which speakers go where.
    """

    def __init__(
        self,
        num_folds: int = 5,
        fold: int = 1,
        group: str = "speaker",
        num_val_speakers: int = 2,
        seed: int = 0,
    ) -> None:
        self.num_folds = num_folds
        self.fold = fold
        self.group = group
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    def count(self, manifest: Manifest) -> int:
        return self.num_folds

    def __call__(self, manifest: Manifest) -> Split:
        groups = _groups(manifest, self.group)
        if groups.nunique() < 2:
            raise SplitError(
                f"{manifest.path}: one {self.group} alone cannot be judged on others; add more of them, or choose "
                "another group"
            )
        if not 2 <= self.num_folds <= groups.nunique():
            raise SplitError(
                f"{manifest.path}: num_folds={self.num_folds}, expected 2 to {groups.nunique()}, "
                f"the number of {self.group}s"
            )
        if not 1 <= self.fold <= self.num_folds:
            raise SplitError(f"fold={self.fold}, expected 1 to {self.num_folds}")
        folds = SklearnGroupKFold(self.num_folds, shuffle=True, random_state=self.seed)
        rest, test = list(folds.split(groups, groups=groups))[self.fold - 1]
        train, val = hold_out_speakers(manifest, rest, self.num_val_speakers, self.seed)
        return Split(train, val, test)


class LeaveOneGroupOut:
    """Each speaker, or each value of another column, is tested once, by a model that heard none of it.

    Args:
        fold: Whose turn it is, counting from 1 in alphabetical order.
        group: Column whose values stay together.
        num_val_speakers: Speakers held out of the training side to choose the epoch; 0 trains on all of them,
            for a schedule that was fixed before (then judge the last checkpoint).
        seed: Which speakers these are.
    """

    def __init__(self, fold: int = 1, group: str = "speaker", num_val_speakers: int = 2, seed: int = 0) -> None:
        self.fold = fold
        self.group = group
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    def count(self, manifest: Manifest) -> int:
        return int(_groups(manifest, self.group).nunique())

    def __call__(self, manifest: Manifest) -> Split:
        groups = _groups(manifest, self.group).astype(str)
        names = sorted(groups.unique())
        if len(names) < 2:
            raise SplitError(
                f"{manifest.path}: one {self.group} alone cannot be judged on others; add more of them, or choose "
                "another group"
            )
        if not 1 <= self.fold <= len(names):
            raise SplitError(f"fold={self.fold}, expected 1 to {len(names)}, the number of {self.group}s")
        tested = groups.eq(names[self.fold - 1]).to_numpy(dtype=bool)
        train, val = hold_out_speakers(manifest, np.flatnonzero(~tested), self.num_val_speakers, self.seed)
        return Split(train, val, np.flatnonzero(tested))


class InnerFolds:
    """Folds of another split's training side: what tuning and calibration may see. Its test rows are nowhere here.

    Args:
        outer: The other split, at the fold in question.
        num_folds: Number of inner folds.
        fold: Which inner fold judges, counting from 1.
        group: Column whose values stay together.
        num_val_speakers: Speakers held out of an inner training side to choose the epoch.
        seed: Which groups go where.
    """

    def __init__(
        self,
        outer: Splitter,
        num_folds: int = 4,
        fold: int = 1,
        group: str = "speaker",
        num_val_speakers: int = 0,
        seed: int = 0,
    ) -> None:
        self.outer = outer
        self.inner = GroupKFold(num_folds, fold, group, num_val_speakers, seed)

    @property
    def fold(self) -> int:
        """Which inner fold judges."""
        return self.inner.fold

    def count(self, manifest: Manifest) -> int:
        return self.inner.num_folds

    def __call__(self, manifest: Manifest) -> Split:
        split = self.outer(manifest)
        rows = np.sort(np.concatenate([split.train, split.val]))
        return Split(*(rows[part] for part in self.inner(manifest.subset(rows))))


def _groups(manifest: Manifest, column: str) -> pd.Series:
    """A column to group by, of which no row may lack its value."""
    if column not in manifest.frame:
        raise SplitError(f"{manifest.path}: no column {column!r} to group by")
    groups = manifest.frame[column]
    if groups.isna().any():
        raise SplitError(
            f"{manifest.path}: {int(groups.isna().sum())} rows have no {column}; fill it in to group by it"
        )
    return groups


def hold_out_speakers(
    manifest: Manifest, rows: np.ndarray, num_speakers: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moves whole speakers out of the training side.

    Args:
        manifest: The table.
        rows: Row numbers of the training side.
        num_speakers: How many speakers to take out.
        seed: Which.

    Returns:
        Row numbers that stay, row numbers taken out.

    Raises:
        SplitError: There are not enough speakers to leave one for training.
    """
    if num_speakers < 0:
        raise SplitError(f"data.split.init_args.num_val_speakers={num_speakers}: expected 0 or more")
    speakers = manifest.frame["speaker"].iloc[rows]
    names = np.sort(speakers.dropna().unique().astype(str))
    if len(names) <= num_speakers:
        raise SplitError(
            f"{manifest.path}: the training side has {len(names)} speakers, too few to hold out "
            f"data.split.init_args.num_val_speakers={num_speakers}; set it lower, or name val rows in the split column"
        )
    chosen = np.random.default_rng(seed).permutation(names)[:num_speakers]
    held_out = speakers.isin(chosen).to_numpy(dtype=bool)
    return rows[~held_out], rows[held_out]


def check_speakers_disjoint(
    manifest: Manifest, split: Split, allow_overlap: bool = False, column: str = "speaker"
) -> list[str]:
    """Refuses a split in which a speaker stands on two sides.

    Args:
        manifest: The table.
        split: Row numbers.
        allow_overlap: Whether to warn instead of refusing.
        column: Of the speakers; a study may call its participants otherwise.

    Returns:
        Warnings that every result of this split must carry; none for an honest split.

    Raises:
        SplitError: A speaker is on two sides, or rows without a speaker hide whether one is.
    """
    problems = []
    speakers = manifest.frame[column].astype(object)
    sides = {name: speakers.iloc[rows] for name, rows in zip(SPLITS, split, strict=True)}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(map(str, set(sides[first].dropna()) & set(sides[second].dropna())))
        if shared:
            problems.append(f"{len(shared)} {column}s are both in {first} and in {second}: {', '.join(shared[:5])}")
    unnamed = sum(int(side.isna().sum()) for side in sides.values())
    if unnamed:
        problems.append(f"{unnamed} rows name no {column}, so one may stand on two sides")
    if problems and not allow_overlap:
        raise SplitError(
            f"{manifest.path}: {'; '.join(problems)}. Results would be too good; split by {column}, or set "
            "data.allow_speaker_overlap: true and every result will say so"
        )
    return [f"{column}s not separated: {problem}" for problem in problems]
