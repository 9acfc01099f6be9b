"""What a run said of its test utterances, beside what the manifest says of them: all that evidence is made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mmemo.data.manifest import COLUMNS, WORDS, Manifest, is_reports_own, private_columns, shown_columns
from mmemo.evaluation.statistics import Tallies, clusters
from mmemo.labels import DIMENSIONS

PREDICTIONS = ("predictions.parquet", "predictions.csv")


class Predictions(NamedTuple):
    """Predictions of test utterances.

    Args:
        table: One row per utterance (and seed): ``id``, ``speaker``, ``emotion``, ``predicted``, ``prob_...``, ``fold``
            and ``seed`` where there are several, and what the manifest says.
        classes: In the order of the probabilities; none for a model of dimensions alone.
        warnings: What every result must carry.
    """

    table: pd.DataFrame
    classes: list[str]
    warnings: list[str]

    @property
    def labelled(self) -> Predictions:
        """Rows with an emotion the model knows; of a model of dimensions, those with a value of one."""
        rows = self.table["emotion"].isin(self.classes)
        if not self.classes:
            rows = self.table[self.dimensions].notna().any(axis="columns")
        return self._replace(table=self.table[rows].reset_index(drop=True))

    @property
    def dimensions(self) -> list[str]:
        """Those that are predicted and known of two utterances or more."""
        names = [name for name in DIMENSIONS if {name, f"predicted_{name}"} <= set(self.table)]
        return [name for name in names if self.table[name].notna().sum() > 1]

    @property
    def probs(self) -> np.ndarray:
        """``(utterance, class)``."""
        return self.table[[f"prob_{name}" for name in self.classes]].to_numpy(dtype=float)

    @property
    def calibrated(self) -> np.ndarray | None:
        """Probabilities calibrated on inner folds ``(utterance, class)``; None for a run without them."""
        names = [f"calibrated_prob_{name}" for name in self.classes]
        return self.table[names].to_numpy(dtype=float) if set(names) <= set(self.table) else None

    @property
    def target(self) -> np.ndarray:
        """True class numbers ``(utterance,)``; all rows must be labelled."""
        return self.table["emotion"].map({name: number for number, name in enumerate(self.classes)}).to_numpy(dtype=int)

    @property
    def predicted(self) -> np.ndarray:
        """Predicted class numbers ``(utterance,)``."""
        return self.probs.argmax(1)

    @property
    def speakers(self) -> np.ndarray:
        """Of each row; one without a speaker stands for itself."""
        return clusters(self.table["speaker"].to_numpy(dtype=object), self.table["id"].tolist())

    @property
    def seeds(self) -> list[int]:
        """Of a run with several; none else."""
        return sorted(self.table["seed"].unique()) if "seed" in self.table else []

    def tallies(self, dimensions: Sequence[str] | None = None) -> Tallies:
        """What every figure needs of each speaker; rows must be labelled.

        Of classes, where there are any: ``predictions._replace(classes=[])`` has those of the dimensions.

        Args:
            dimensions: Of these; of all when not given.
        """
        if self.classes:
            return Tallies.of_classes(self.target, self.predicted, self.speakers, len(self.classes))
        names = self.dimensions if dimensions is None else list(dimensions)
        true, said = (
            self.table[[f"{prefix}{name}" for name in names]].to_numpy(dtype=float) for prefix in ("", "predicted_")
        )
        return Tallies.of_dimensions(true, said, self.speakers, names)

    def view(self, modality: str) -> Predictions | None:
        """From the ``audio`` or the ``text`` alone; None where the run was not told to say."""
        names = [f"{modality}_prob_{name}" for name in self.classes]
        if not self.classes or not set(names) <= set(self.table):
            return None
        probs = self.table[names].to_numpy()
        plain = [f"prob_{name}" for name in self.classes]
        return self._replace(table=self.table.assign(**dict(zip(plain, probs.T, strict=True))))


def read_predictions(source: Path, side: str = "test") -> Predictions:
    """Test predictions of a run.

    Args:
        source: Folder of ``mmemo crossval``, or of ``mmemo fit`` after ``mmemo predict``; or a file that it wrote.
        side: Which rows of the split.

    Raises:
        ValueError: There are no predictions, or none of that side.
    """
    path = source
    if source.is_dir():
        found = [source / name for name in PREDICTIONS if (source / name).is_file()]
        if not found:
            folds = sorted(source.glob("fold*/config.yaml"))
            hint = (
                f"{len(folds)} folds have begun; let `mmemo crossval` finish them" if folds
                else "run `mmemo predict --config ...` or `mmemo crossval` first"
            )  # fmt: skip
            raise ValueError(f"{source}: has no predictions; {hint}")
        path = max(found, key=lambda one: one.stat().st_mtime)  # `mmemo predict` may have written another since
    if not path.is_file():
        raise ValueError(f"{path}: no such run or file; `mmemo crossval` and `mmemo predict` write predictions")
    text = dict.fromkeys(("id", "speaker", "emotion", "side"), str)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=text)
    except Exception as error:
        raise ValueError(f"{path}: is no table of predictions ({str(error).splitlines()[0]})") from None
    classes = [str(name).removeprefix("prob_") for name in table if str(name).startswith("prob_")]
    dimensions = [f"predicted_{name}" for name in DIMENSIONS]
    if "id" not in table or not (classes or set(dimensions) <= set(table)):
        raise ValueError(
            f"{path}: not a file of predictions, expected columns id and prob_<class>; found {list(table)[:6]}"
        )
    if table["id"].duplicated().any() and "seed" not in table:
        twice = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise ValueError(f"{path}: {twice!r} is predicted twice; expected each utterance once")
    for name in ("speaker", "emotion"):
        if name not in table:
            table[name] = None
    if "side" not in table and side != "test":
        raise ValueError(f"{path}: has predictions of the test side alone")
    if "side" in table:
        table = table[table["side"] == side].reset_index(drop=True)
        if table.empty:
            raise ValueError(
                f"{path}: has no predictions of the {side} side; give `mmemo predict` a split that has one"
            )
    warnings = sorted(table["warning"].dropna().unique()) if "warning" in table else []
    return Predictions(table, classes, [str(warning) for warning in warnings])


def with_manifest(predictions: Predictions, manifest: Manifest, wanted: Collection[str] = ()) -> Predictions:
    """Adds what the manifest says of each utterance, but its words and where its audio is.

    Args:
        predictions: Of a run.
        manifest: With the same ids.
        wanted: Columns asked for by name; others that look like words or file names are left out.

    Raises:
        ValueError: An utterance is not in the manifest, or has another emotion there.
    """
    rows = manifest.frame.set_index("id")
    ids = predictions.table["id"]
    missing = ids[~ids.isin(rows.index)]
    if len(missing):
        raise ValueError(
            f"{manifest.path}: the predictions do not match this manifest: {len(missing)} of {len(ids)} utterances are "
            f"not in it, such as {missing.iloc[0]!r}; give --manifest the one that was predicted"
        )
    there = rows.loc[ids].reset_index(drop=True)
    own = predictions.table["emotion"].reset_index(drop=True)
    both = (own.notna() & there["emotion"].isin(predictions.classes)).to_numpy(dtype=bool)
    differ = both.copy()
    differ[both] = own[both].astype(str).to_numpy() != there["emotion"][both].astype(str).to_numpy()
    if differ.any():
        first = int(np.flatnonzero(differ)[0])
        raise ValueError(
            f"{manifest.path}: the predictions do not match this manifest: {int(differ.sum())} utterances have another "
            f"emotion there, such as {ids.iloc[first]!r} ({there['emotion'].iloc[first]}, predicted as "
            f"{own.iloc[first]}); predict again, or give --manifest the one that was predicted"
        )
    table = predictions.table.copy()
    for name in ("speaker", "emotion"):  # a file of probabilities may lack them
        given = table[name].astype(object).where(table[name].notna(), None)
        table[name] = given.where(given.notna(), there[name].astype(object).where(there[name].notna(), None).to_numpy())
    shown, private = shown_columns(there, wanted), private_columns(there, wanted)
    added = {name: there[name].to_numpy() for name in shown if name not in table}
    warnings = list(predictions.warnings)
    withheld = [name for name in private if name not in COLUMNS and name not in WORDS]
    if withheld:
        warnings.append(
            f"columns {', '.join(withheld)} of the manifest look like words or file names; they are not shown, unless "
            "a study or --columns names them"
        )
    clash = [name for name in there if is_reports_own(name)]
    if clash:
        warnings.append(
            f"columns {', '.join(clash)} of the manifest have names that reports use; they are not looked at"
        )
    return predictions._replace(table=table.assign(**added), warnings=warnings)


def same_utterances(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Two runs in the same order of utterances.

    Args:
        first: Of one run.
        second: Of the other.

    Raises:
        ValueError: They tell other classes apart, judge other utterances, or give one another emotion or speaker.
    """
    if first.classes != second.classes:
        raise ValueError(
            f"the runs tell other classes apart: {', '.join(first.classes)} and {', '.join(second.classes)}; compare "
            "runs of the same classes, in the same order"
        )
    if set(first.table["id"]) != set(second.table["id"]):
        only = len(set(first.table["id"]) ^ set(second.table["id"]))
        raise ValueError(
            f"the runs judge other utterances ({only} are in one of them alone); a paired comparison needs the same"
        )
    for name in ("emotion", "speaker"):
        own, other = (one.table.drop_duplicates("id").set_index("id")[name] for one in (first, second))
        own = own.astype(object).where(own.notna(), None)
        other = other.astype(object).where(other.notna(), None).reindex(own.index)
        differ = (own != other) & ~(own.isna() & other.isna())
        if differ.any():
            found = differ.idxmax()
            raise ValueError(
                f"the runs give {int(differ.sum())} utterances another {name}, such as {found!r} ({own[found]} and "
                f"{other[found]}); a paired comparison needs the same manifest"
            )
    return tuple(one._replace(table=one.table.sort_values(["id"], ignore_index=True)) for one in (first, second))  # type: ignore[return-value]


def majority(predictions: Predictions) -> np.ndarray:
    """Class number said most likely on average over seeds, in the order of sorted ids ``(utterance,)``.

    Args:
        predictions: Of one or several seeds.
    """
    names = [f"prob_{name}" for name in predictions.classes]
    mean = predictions.table.groupby("id", sort=True)[names].mean()
    return mean.to_numpy().argmax(1)


def labelled_probs(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities ``(utterance, class)`` and true class numbers ``(utterance,)`` of the rows that have a label.

    Args:
        predictions: Of ``mmemo predict``.

    Raises:
        ValueError: The model predicts dimensions alone, or no row has a label.
    """
    names = [str(name) for name in predictions if str(name).startswith("prob_")]
    if not names:
        raise ValueError("the predictions have no class probabilities; calibration is of classes")
    rows = predictions[predictions["emotion"].notna()]
    if rows.empty:
        raise ValueError("no predicted row has a label")
    numbers = {name.removeprefix("prob_"): number for number, name in enumerate(names)}
    return rows[names].to_numpy(dtype=float), rows["emotion"].map(numbers).to_numpy(dtype=int)
