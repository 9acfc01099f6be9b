"""Manifest -> training, validation and test rows; no speaker is on two sides."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold as SklearnGroupKFold

from mmemo.data.manifest import SPLITS, Manifest
from mmemo.wording import counted

BOTH_SIDES = "are both in {first} and in {second}"
MAYBE_BOTH_SIDES = "may be on two sides"
SHARED_RECORDINGS = "recordings are on two sides of the split"
TAUGHT_SPEAKERS = "the student or its teachers were trained on its test speakers"
"""Wording of the warnings about overlap, by which a report recognises them in a table of predictions."""


class SplitError(ValueError):
    """A split that would give a biased result, or that cannot be made from this manifest."""


class Split(NamedTuple):
    """Row numbers of a manifest, each ``(row,)``.

    Args:
        train: Rows to fit the weights on.
        val: Rows to choose the epoch and settings on; always taken from the training side.
        test: Rows to evaluate on, once.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Splitter(Protocol):
    """Splits a manifest into training, validation and test rows.

    A splitter of one's own inherits from this class, and then needs only ``count_folds`` and ``__call__``.

    Args:
        fold: Fold to test on, from 1.
        group: Column whose values are never on two sides.
        num_val_speakers: Training speakers held out to choose the epoch.
    """

    fold: int = 1
    group: str = "speaker"
    num_val_speakers: int = 0

    @property
    def files(self) -> list[Path]:
        """Files besides the manifest that the split depends on."""
        return []

    def count_folds(self, manifest: Manifest) -> int:
        """Returns the number of folds."""

    def __call__(self, manifest: Manifest) -> Split:
        """Returns the row numbers of the fold."""


class OfficialSplit(Splitter):
    """The split in the manifest's ``split`` column.

    Args:
        num_val_speakers: Speakers moved from train to val if the column has no val rows.
        seed: Seed of the choice of these speakers.
        fold: Always 1; there is only one fold.

    Raises:
        SplitError: The column is empty, or val has no rows and train has too few speakers.

    Example:
        >>> splits = ["train", "val", "test"]
        >>> frame = pd.DataFrame({"id": list("abc"), "text": "hi", "speaker": list("xyz"), "split": splits})
        >>> [rows.tolist() for rows in OfficialSplit()(Manifest(frame))]
        [[0], [1], [2]]
    """

    def __init__(self, num_val_speakers: int = 2, seed: int = 0, fold: int = 1) -> None:
        self.num_val_speakers = num_val_speakers
        self.seed = seed
        self.fold = fold

    def count_folds(self, manifest: Manifest) -> int:
        return 1

    def __call__(self, manifest: Manifest) -> Split:
        column = manifest.frame["split"]
        if column.isna().all():
            raise SplitError(
                f"{manifest.path}: column split is empty, expected {', '.join(SPLITS)}; "
                "fill it in, or use mmemo.data.GroupKFold"
            )
        train, val, test = (np.flatnonzero(column.eq(name).fillna(False).to_numpy(dtype=bool)) for name in SPLITS)
        if len(val) == 0 and len(train):
            train, val = hold_out_speakers(manifest, train, self.num_val_speakers, self.seed)
        return Split(train, val, test)


class FoldFile(Splitter):
    """Published folds, read from a file of test speakers.

    Args:
        path: CSV with a column ``fold`` and a column of speakers separated by spaces.
        fold: Fold to test on, from 1.
        num_val_speakers: Training speakers held out to choose the epoch; 0 trains on all of them, for a fixed
            schedule (then test the last checkpoint).
        seed: Seed of the choice of these speakers.

    Raises:
        SplitError: The file is missing or malformed, lacks the fold, or names speakers that are not in the manifest.

    Example:
        >>> import tempfile
        >>> frame = pd.DataFrame({"id": list("abcd"), "text": "hi", "speaker": list("wxyz")})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pd.DataFrame({"fold": [1, 2], "speakers": ["w x", "y z"]}).to_csv(f"{folder}/folds.csv", index=False)
        ...     split = FoldFile(f"{folder}/folds.csv", fold=2, num_val_speakers=0)(Manifest(frame))
        >>> split.test.tolist()
        [2, 3]
    """

    def __init__(self, path: str, fold: int = 1, num_val_speakers: int = 2, seed: int = 0) -> None:
        self.path = Path(path)
        self.fold = fold
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def count_folds(self, manifest: Manifest) -> int:
        return len(self._read())

    def _read(self) -> dict[int, list[str]]:
        if not self.path.is_file():
            raise SplitError(
                f"{self.path}: no such file, expected a CSV of folds and their test speakers; or use "
                "mmemo.data.GroupKFold"
            )
        table = pd.read_csv(self.path, dtype=str)
        if "fold" not in table or len(table.columns) != 2 or not table["fold"].fillna("").str.isdecimal().all():
            raise SplitError(
                f"{self.path}: found columns {list(table.columns)}, expected 'fold' (numbers) and one of test speakers"
            )
        folds: dict[int, list[str]] = {}
        for fold, names in zip(table["fold"], table.drop(columns="fold").iloc[:, 0].fillna(""), strict=True):
            folds.setdefault(int(fold), []).extend(names.split())  # a fold may have several rows
        tested = [name for names in folds.values() for name in names]
        duplicates = sorted({name for name in tested if tested.count(name) > 1})
        empty = [fold for fold, names in folds.items() if not names]
        if sorted(folds) != list(range(1, len(folds) + 1)) or empty or duplicates:
            raise SplitError(
                f"{self.path}: expected folds 1 to {len(folds)}, each with speakers, no speaker in two; found folds "
                f"{sorted(folds)}, empty {empty}, twice {duplicates}"
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


class GroupKFold(Splitter):
    """Folds of about equal size that never split a group.

    Args:
        num_folds: Number of folds, at most the number of groups.
        fold: Fold to test on, from 1.
        group: Column that defines the groups: ``speaker``, ``session``, or any other.
        num_val_speakers: Training speakers held out to choose the epoch; 0 trains on all of them, for a fixed
            schedule (then test the last checkpoint).
        seed: Seed of the assignment of groups and validation speakers.

    Raises:
        SplitError: The manifest has too few groups or speakers, or ``fold`` or ``num_folds`` is out of range.

    Example:
        >>> frame = pd.DataFrame({"id": list("abcd"), "text": "hi", "speaker": ["x", "x", "y", "y"]})
        >>> split = GroupKFold(num_folds=2, num_val_speakers=0)(Manifest(frame))
        >>> set(frame["speaker"][split.train]) & set(frame["speaker"][split.test])
        set()
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

    def count_folds(self, manifest: Manifest) -> int:
        return self.num_folds

    def __call__(self, manifest: Manifest) -> Split:
        groups = _groups(manifest, self.group)
        if groups.nunique() < 2:
            raise SplitError(
                f"{manifest.path}: only one {self.group}, expected 2 or more; add some, or choose another group"
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


class LeaveOneGroupOut(Splitter):
    """One fold for each speaker, or each value of another column: tests on it, trains on all others.

    Args:
        fold: Group to test on, from 1 in alphabetical order.
        group: Column that defines the groups.
        num_val_speakers: Training speakers held out to choose the epoch; 0 trains on all of them, for a fixed
            schedule (then test the last checkpoint).
        seed: Seed of the choice of these speakers.

    Raises:
        SplitError: The manifest has too few groups or speakers, or ``fold`` is out of range.

    Example:
        >>> frame = pd.DataFrame({"id": list("abc"), "text": "hi", "speaker": list("xyz")})
        >>> LeaveOneGroupOut(fold=2, num_val_speakers=1)(Manifest(frame)).test.tolist()
        [1]
    """

    def __init__(self, fold: int = 1, group: str = "speaker", num_val_speakers: int = 2, seed: int = 0) -> None:
        self.fold = fold
        self.group = group
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    def count_folds(self, manifest: Manifest) -> int:
        return int(_groups(manifest, self.group).nunique())

    def __call__(self, manifest: Manifest) -> Split:
        groups = _groups(manifest, self.group).astype(str)
        names = sorted(groups.unique())
        if len(names) < 2:
            raise SplitError(
                f"{manifest.path}: only one {self.group}, expected 2 or more; add some, or choose another group"
            )
        if not 1 <= self.fold <= len(names):
            raise SplitError(f"fold={self.fold}, expected 1 to {len(names)}, the number of {self.group}s")
        in_test = groups.eq(names[self.fold - 1]).to_numpy(dtype=bool)
        train, val = hold_out_speakers(manifest, np.flatnonzero(~in_test), self.num_val_speakers, self.seed)
        return Split(train, val, np.flatnonzero(in_test))


class InnerFolds(Splitter):
    """Folds of another split's training side, for tuning and calibration; its test rows are excluded.

    Args:
        outer: The other split, set to one of its folds.
        num_folds: Number of inner folds.
        fold: Inner fold to test on, from 1.
        group: Column that defines the groups.
        num_val_speakers: Speakers held out of the inner training side to choose the epoch.
        seed: Seed of the assignment of groups and validation speakers.

    Example:
        >>> frame = pd.DataFrame({"id": list("abcd"), "text": "hi", "speaker": list("wxyz")})
        >>> outer, manifest = LeaveOneGroupOut(fold=1), Manifest(frame)
        >>> outer(manifest).test[0] in np.concatenate(InnerFolds(outer, num_folds=3)(manifest))
        False
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
        self.num_folds = num_folds
        self.fold = fold
        self.group = group
        self.num_val_speakers = num_val_speakers
        self.seed = seed

    @property
    def files(self) -> list[Path]:
        return self.outer.files

    def count_folds(self, manifest: Manifest) -> int:
        return self.num_folds

    def __call__(self, manifest: Manifest) -> Split:
        split = self.outer(manifest)
        rows = np.sort(np.concatenate([split.train, split.val]))
        inner = GroupKFold(self.num_folds, self.fold, self.group, self.num_val_speakers, self.seed)
        return Split(*(rows[part] for part in inner(manifest.subset(rows))))


def _groups(manifest: Manifest, column: str) -> pd.Series:
    """Returns the column to group by, which must be complete."""
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
    """Holds out whole speakers of the training side.

    Args:
        manifest: The table.
        rows: Row numbers of the training side ``(row,)``.
        num_speakers: Number of speakers to hold out.
        seed: Seed of their choice.

    Returns:
        Remaining row numbers ``(row,)``, held-out row numbers ``(row,)``.

    Raises:
        SplitError: ``num_speakers`` is negative, or no speaker would be left for training.
    """
    if num_speakers < 0:
        raise SplitError(f"data.split.init_args.num_val_speakers={num_speakers}: expected 0 or more")
    speakers = manifest.frame["speaker"].iloc[rows]
    names = np.sort(speakers.dropna().unique().astype(str))
    if len(names) <= num_speakers:
        raise SplitError(
            f"{manifest.path}: the training side has {counted(len(names), 'speaker')}, too few to hold out "
            f"data.split.init_args.num_val_speakers={num_speakers}; lower it, or mark val rows in the split column"
        )
    chosen = np.random.default_rng(seed).permutation(names)[:num_speakers]
    held_out = speakers.isin(chosen).to_numpy(dtype=bool)
    return rows[~held_out], rows[held_out]


def check_speakers_disjoint(
    manifest: Manifest, split: Split, allow_overlap: bool = False, column: str = "speaker"
) -> list[str]:
    """Checks that no speaker is on two sides of a split.

    Args:
        manifest: The table.
        split: Row numbers.
        allow_overlap: Whether to warn instead of raising.
        column: Column that identifies speakers, or participants of a study.

    Returns:
        Warnings that every result of this split must carry; empty for a disjoint split.

    Raises:
        SplitError: A speaker is on two sides, or rows lack a speaker, so that overlap cannot be excluded.
    """
    problems = []
    speakers = manifest.frame[column].astype(object)
    sides = {name: speakers.iloc[rows] for name, rows in zip(SPLITS, split, strict=True)}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        overlap = sorted(map(str, set(sides[first].dropna()) & set(sides[second].dropna())))
        if overlap:
            both = BOTH_SIDES.format(first=first, second=second)
            problems.append(f"{len(overlap)} {column}s {both}: {', '.join(overlap[:5])}")
    unnamed = sum(int(side.isna().sum()) for side in sides.values())
    if unnamed:
        problems.append(f"{unnamed} rows have no {column}, so a {column} {MAYBE_BOTH_SIDES}")
    if problems and not allow_overlap:
        raise SplitError(
            f"{manifest.path}: {'; '.join(problems)}. Results would be too optimistic; split by {column}, "
            "or set data.allow_speaker_overlap: true, which adds a warning to every result"
        )
    return [f"{column}s not separated: {problem}" for problem in problems]
