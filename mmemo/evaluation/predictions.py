"""A run's predictions of its test utterances, joined with the manifest's columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.data.manifest import (
    COLUMNS,
    TRANSCRIPT_COLUMNS,
    Manifest,
    is_report_column,
    private_columns,
    shown_columns,
)
from mmemo.evaluation.statistics import SpeakerCounts, speaker_clusters
from mmemo.labels import DIMENSIONS

PREDICTION_FILES = ("predictions.parquet", "predictions.csv")


class Predictions(NamedTuple):
    """Predictions of test utterances.

    Args:
        table: One row per utterance (and seed): ``id``, ``speaker``, ``emotion``, ``prob_CLASS`` for each class,
            ``predicted_DIMENSION`` for each dimension, ``fold`` and ``seed`` if there are several, and columns of the
            manifest.
        classes: Class names, in the order of the probabilities; empty for a model that predicts dimensions only.
        warnings: Warnings that every result must repeat.

    Example:
        >>> rows = {"id": ["a"], "speaker": ["s1"], "emotion": ["fear"], "prob_anger": [0.2], "prob_fear": [0.8]}
        >>> predictions = Predictions(pd.DataFrame(rows), ["anger", "fear"], [])
        >>> predictions.predicted, predictions.target
        (array([1]), array([1]))
    """

    table: pd.DataFrame
    classes: list[str]
    warnings: list[str]

    @property
    def labelled(self) -> Predictions:
        """The rows whose emotion is one of the classes; without classes, the rows with a label of any dimension."""
        rows = self.table["emotion"].isin(self.classes)
        if not self.classes:
            rows = self.table[self.dimensions].notna().any(axis="columns")
        return self._replace(table=self.table[rows].reset_index(drop=True))

    @property
    def dimensions(self) -> list[str]:
        """The dimensions that are predicted and labelled for two or more utterances."""
        names = [name for name in DIMENSIONS if {name, f"predicted_{name}"} <= set(self.table)]
        return [name for name in names if self.table[name].notna().sum() > 1]

    @property
    def probs(self) -> np.ndarray:
        """Class probabilities ``(utterance, class)``."""
        probs: np.ndarray = self.table[[f"prob_{name}" for name in self.classes]].to_numpy(dtype=float)
        return probs

    @property
    def calibrated(self) -> np.ndarray | None:
        """Probabilities calibrated on inner folds ``(utterance, class)``; None if the run was not nested."""
        names = [f"calibrated_prob_{name}" for name in self.classes]
        return self.table[names].to_numpy(dtype=float) if set(names) <= set(self.table) else None

    @property
    def target(self) -> np.ndarray:
        """True class indices ``(utterance,)``; every row must be labelled."""
        index = {name: number for number, name in enumerate(self.classes)}
        target: np.ndarray = self.table["emotion"].map(index).to_numpy(dtype=int)
        return target

    @property
    def predicted(self) -> np.ndarray:
        """Predicted class indices ``(utterance,)``."""
        predicted: np.ndarray = self.probs.argmax(1)
        return predicted

    @property
    def speakers(self) -> np.ndarray:
        """Speaker of each row ``(utterance,)``; an utterance without one counts as its own speaker."""
        return speaker_clusters(self.table["speaker"].to_numpy(dtype=object), self.table["id"].tolist())

    @property
    def seeds(self) -> list[int]:
        """Random seeds of the run; empty if it has only one."""
        return sorted(self.table["seed"].unique()) if "seed" in self.table else []

    def speaker_counts(self, dimensions: Sequence[str] | None = None) -> SpeakerCounts:
        """Counts of each speaker: of classes if there are any, of dimensions otherwise. Rows must be labelled.

        ``predictions._replace(classes=[])`` gives the counts of dimensions for a model with both.

        Args:
            dimensions: Names of dimensions. Defaults to all.
        """
        if self.classes:
            return SpeakerCounts.of_classes(self.target, self.predicted, self.speakers, len(self.classes))
        names = self.dimensions if dimensions is None else list(dimensions)
        true, predicted = (
            self.table[[f"{prefix}{name}" for name in names]].to_numpy(dtype=float) for prefix in ("", "predicted_")
        )
        return SpeakerCounts.of_dimensions(true, predicted, self.speakers, names)

    def condition(self, prefix: str) -> Predictions | None:
        """Predictions from other inputs; None if the run did not write them.

        Args:
            prefix: ``audio`` or ``text`` for one modality alone, ``uncalibrated`` for unknown speakers.
        """
        names = [f"{prefix}_prob_{name}" for name in self.classes]
        if not self.classes or not set(names) <= set(self.table):
            return None
        probs = self.table[names].to_numpy()
        columns = [f"prob_{name}" for name in self.classes]
        return self._replace(table=self.table.assign(**dict(zip(columns, probs.T, strict=True))))


def read_predictions(source: str | Path, side: str = "test") -> Predictions:
    """Reads the predictions of a run.

    Args:
        source: Folder of ``mmemo crossval``, or of ``mmemo fit`` after ``mmemo predict``; or a file of predictions.
        side: Side of the split to read: ``train``, ``val`` or ``test``.

    Raises:
        ValueError: There are no predictions of that side, or the file is malformed.

    Example:
        >>> import tempfile
        >>> table = pd.DataFrame({"id": ["x", "y"], "emotion": ["a", "b"], "prob_a": [0.9, 0.6], "prob_b": [0.1, 0.4]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table.to_csv(f"{folder}/predictions.csv", index=False)
        ...     read_predictions(f"{folder}/predictions.csv").classes
        ['a', 'b']
    """
    path = _predictions_file(Path(source))
    text_columns = dict.fromkeys(("id", "speaker", "emotion", "side"), str)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=text_columns)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise ValueError(f"{path}: cannot be read as a table of predictions ({str(error).splitlines()[0]})") from None
    classes = [str(name).removeprefix("prob_") for name in table if str(name).startswith("prob_")]
    dimensions = [f"predicted_{name}" for name in DIMENSIONS]
    if "id" not in table or not (classes or set(dimensions) <= set(table)):
        raise ValueError(
            f"{path}: not a file of predictions, expected columns id and prob_<class>; found {list(table)[:6]}"
        )
    if table["id"].duplicated().any() and "seed" not in table:
        duplicate = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise ValueError(f"{path}: {duplicate!r} appears twice; expected one prediction for each utterance")
    for name in ("speaker", "emotion"):
        if name not in table:
            table[name] = None
    table = _select_side(table, side, path)
    warnings = sorted(table["warning"].dropna().unique()) if "warning" in table else []
    return Predictions(table, classes, [str(warning) for warning in warnings])


def _predictions_file(source: Path) -> Path:
    """The newest file of predictions in a run's folder, or the file itself."""
    if source.is_dir():
        files = [source / name for name in PREDICTION_FILES if (source / name).is_file()]
        if not files:
            folds = sorted(source.glob("fold*/config.yaml"))
            remedy = (
                f"{len(folds)} folds have started; let `mmemo crossval` finish them" if folds
                else "run `mmemo predict --config ...` or `mmemo crossval` first"
            )  # fmt: skip
            raise ValueError(f"{source}: has no predictions; {remedy}")
        return max(files, key=lambda path: path.stat().st_mtime)  # `mmemo predict` may have written the other one since
    if not source.is_file():
        raise ValueError(f"{source}: no such run or file; `mmemo crossval` and `mmemo predict` write predictions")
    return source


def _select_side(table: pd.DataFrame, side: str, path: Path) -> pd.DataFrame:
    if "side" not in table:
        if side != "test":
            raise ValueError(f"{path}: has predictions of the test side only")
        return table
    table = table[table["side"] == side].reset_index(drop=True)
    if table.empty:
        raise ValueError(f"{path}: has no predictions of the {side} side; give `mmemo predict` a split with this side")
    return table


def with_manifest(predictions: Predictions, manifest: Manifest, wanted: Collection[str] = ()) -> Predictions:
    """Adds the manifest's columns, except transcripts and audio paths.

    Args:
        predictions: Predictions of a run.
        manifest: Manifest with the same ids.
        wanted: Columns to add although they look like transcripts or file names.

    Raises:
        ValueError: An utterance is not in the manifest, or has another emotion there.
    """
    rows = manifest.frame.set_index("id")
    ids = predictions.table["id"]
    missing = ids[~ids.isin(rows.index)]
    if len(missing):
        raise ValueError(
            f"{manifest.path}: the predictions do not match this manifest: {len(missing)} of {len(ids)} utterances are "
            f"not in it, such as {missing.iloc[0]!r}; give the manifest of the run (manifest)"
        )
    rows = rows.loc[ids].reset_index(drop=True)
    _check_emotions(predictions, rows["emotion"], manifest.path)
    table = predictions.table.copy()
    for name in ("speaker", "emotion"):  # a file of probabilities may lack them
        own = table[name].astype(object).where(table[name].notna(), None)
        table[name] = own.where(own.notna(), rows[name].astype(object).where(rows[name].notna(), None).to_numpy())
    shown, private = shown_columns(rows, wanted), private_columns(rows, wanted)
    added = {name: rows[name].to_numpy() for name in shown if name not in table}
    warnings = list(predictions.warnings)
    withheld = [name for name in private if name not in COLUMNS and name not in TRANSCRIPT_COLUMNS]
    if withheld:
        warnings.append(
            f"manifest columns {', '.join(withheld)} look like transcripts or file names and are not shown; name them "
            "in the study or in columns to show them"
        )
    reserved = [name for name in rows if is_report_column(name)]
    if reserved:
        warnings.append(f"manifest columns {', '.join(reserved)} have names that reports reserve; they are ignored")
    return predictions._replace(table=table.assign(**added), warnings=warnings)


def _check_emotions(predictions: Predictions, emotions: pd.Series, manifest: Path | None) -> None:
    """Checks that predictions and manifest have the same labels."""
    ids = predictions.table["id"]
    own = predictions.table["emotion"].reset_index(drop=True)
    both = (own.notna() & emotions.isin(predictions.classes)).to_numpy(dtype=bool)
    differ = both.copy()
    differ[both] = own[both].astype(str).to_numpy() != emotions[both].astype(str).to_numpy()
    if differ.any():
        first = int(np.flatnonzero(differ)[0])
        raise ValueError(
            f"{manifest}: the predictions do not match this manifest: {int(differ.sum())} utterances have another "
            f"emotion there, such as {ids.iloc[first]!r} ({emotions.iloc[first]}, but {own.iloc[first]} in the "
            "predictions); predict again, or give the manifest of the run (manifest)"
        )


def align_runs(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Sorts the utterances of two runs in the same order.

    Args:
        first: Predictions of the first run.
        second: Predictions of the second run.

    Raises:
        ValueError: The runs differ in classes, utterances, emotions or speakers.
    """
    if first.classes != second.classes:
        raise ValueError(
            f"the runs have different classes: {', '.join(first.classes)} and {', '.join(second.classes)}; compare "
            "runs with the same classes in the same order"
        )
    if set(first.table["id"]) != set(second.table["id"]):
        num_different = len(set(first.table["id"]) ^ set(second.table["id"]))
        raise ValueError(
            f"the runs have different test utterances ({num_different} are in only one of them); a paired comparison "
            "needs the same"
        )
    for name in ("emotion", "speaker"):
        own, other = (run.table.drop_duplicates("id").set_index("id")[name] for run in (first, second))
        own = own.astype(object).where(own.notna(), None)
        other = other.astype(object).where(other.notna(), None).reindex(own.index)
        differ = (own != other) & ~(own.isna() & other.isna())
        if differ.any():
            example = differ.idxmax()
            raise ValueError(
                f"the runs have a different {name} for {int(differ.sum())} utterances, such as {example!r} "
                f"({own[example]} and {other[example]}); a paired comparison needs the same manifest"
            )
    first, second = (run._replace(table=run.table.sort_values(["id"], ignore_index=True)) for run in (first, second))
    return first, second


def seed_averaged_classes(predictions: Predictions) -> np.ndarray:
    """Class indices predicted by the mean probabilities over seeds, in the order of sorted ids ``(utterance,)``.

    Args:
        predictions: Predictions of one or several seeds.
    """
    names = [f"prob_{name}" for name in predictions.classes]
    mean = predictions.table.groupby("id", sort=True)[names].mean()
    predicted: np.ndarray = mean.to_numpy().argmax(1)
    return predicted


def labelled_probs(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``(utterance, class)`` and true class indices ``(utterance,)`` of the labelled rows.

    Args:
        predictions: Table of ``mmemo predict``.

    Raises:
        ValueError: There are no class probabilities, or no labelled rows.

    Example:
        >>> table = pd.DataFrame({"emotion": ["b", None], "prob_a": [0.25, 0.5], "prob_b": [0.75, 0.5]})
        >>> labelled_probs(table)
        (array([[0.25, 0.75]]), array([1]))
    """
    names = [str(name) for name in predictions if str(name).startswith("prob_")]
    if not names:
        raise ValueError("the predictions have no class probabilities, which calibration needs")
    rows = predictions[predictions["emotion"].notna()]
    if rows.empty:
        raise ValueError("no row of the predictions has a label")
    indices = {name.removeprefix("prob_"): index for index, name in enumerate(names)}
    return rows[names].to_numpy(dtype=float), rows["emotion"].map(indices).to_numpy(dtype=int)
