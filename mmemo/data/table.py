"""The immutable table behind a data module: manifest, labels, split, facts about the audio, warnings.

Pure functions build it step by step; no later room changes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmemo.audio.reader import AudioFacts
from mmemo.data.augmentation import Soundalikes
from mmemo.data.checks import list_broken_audio
from mmemo.data.dataset import Targets
from mmemo.data.manifest import MAX_SHOWN, SPLITS, Manifest, ManifestError, join_manifests, read_manifest
from mmemo.data.ratings import map_votes, vote_shares, voted_emotions
from mmemo.data.splits import SHARED_RECORDINGS, Split
from mmemo.labels import DIMENSIONS, UNLABELLED
from mmemo.settings import is_offline

log = logging.getLogger(__name__)


@dataclass
class Corpus:
    """One of several corpora that are used together.

    Args:
        manifest: CSV or Parquet file with one row per utterance.
        label_map: Like ``data.label_map``, but for this corpus only; applied first.
        name: Prefix of the corpus's ids and speakers, and its value in the column ``corpus``. Defaults to the file's
            name.
        unlabelled: Hide the labels of its training rows. The rows then serve what needs no labels: a teacher
            (``mmemo.training.DistillationSystem``) or a hook such as ``mmemo.training.DomainAdversarial``. Its
            validation and test rows keep their labels.
    """

    manifest: str
    label_map: dict[str, str | None] = field(default_factory=dict)
    name: str | None = None
    unlabelled: bool = False

    @property
    def title(self) -> str:
        """Name of the corpus."""
        return self.name or Path(self.manifest).stem


class Requirements(NamedTuple):
    """What a model needs from its data.

    Args:
        labels: Kinds of labels that the loss uses, some of ``emotion``, ``votes``, ``dimensions``.
        audio: Whether the model has an encoder of the waveform.
        text: Whether the model has a text encoder.
        unlabelled: Whether training also uses rows without labels.
        facts: Whether facts about the audio are needed even if the model has no audio encoder.
    """

    labels: tuple[str, ...] = ("emotion",)
    audio: bool = False
    text: bool = False
    unlabelled: bool = False
    facts: bool = False


@dataclass(frozen=True)
class DataTable:
    """Everything that is known about the utterances of an experiment.

    Args:
        manifest: Utterances after label mapping and row selection.
        classes: Emotion classes in the order of the model's outputs.
        targets: Labels of every row.
        split: Rows of each side; rows with broken audio have been removed.
        train_rows: Rows of the training side that training uses ``(num_rows,)``.
        facts: Facts about each row's audio, None for a row without audio; empty if no model asked for audio.
        warnings: Warnings that every result must carry.
    """

    manifest: Manifest
    classes: tuple[str, ...]
    targets: Targets
    split: Split
    train_rows: np.ndarray
    facts: tuple[AudioFacts | None, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the table in error messages."""
        return str(self.manifest.path)

    @property
    def contents(self) -> list[str]:
        """Checksum of each row's audio; empty for a row without usable audio."""
        if not self.facts:
            return [""] * len(self.manifest)
        return ["" if fact is None or fact.problem else fact.content for fact in self.facts]

    @property
    def usable_rows(self) -> np.ndarray:
        """All rows but those with broken audio ``(num_rows,)``."""
        broken = {row for row, fact in enumerate(self.facts) if fact is not None and fact.problem}
        return np.array([row for row in range(len(self.manifest)) if row not in broken], dtype=int)

    @property
    def lengths(self) -> np.ndarray:
        """A number per row that grows with its cost: seconds of audio, else characters of text ``(row,)``."""
        seconds = np.array([0.0 if fact is None else fact.seconds for fact in self.facts])
        if seconds.any():
            return seconds
        return self.manifest.frame["text"].fillna("").str.len().to_numpy(dtype=float)

    @property
    def class_counts(self) -> Tensor:
        """Number of training rows of each class ``(num_classes,)``."""
        emotion = self.targets.emotion[self.split.train]
        return torch.from_numpy(np.bincount(emotion[emotion != UNLABELLED], minlength=len(self.classes)))

    def sides(self) -> dict[int, str]:
        """Returns row -> side of the split; rows that are on no side are missing."""
        return {int(row): name for name, rows in zip(SPLITS, self.split, strict=True) for row in rows}

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Returns the ids of some rows."""
        return [str(name) for name in self.manifest.frame["id"].iloc[list(rows)]]

    def texts(self) -> list[str]:
        """Returns each row's transcript, empty if there is none."""
        return self.manifest.frame["text"].fillna("").str.strip().tolist()

    def soundalikes(self, training_only: bool = False) -> Soundalikes:
        """Returns the vocabulary that word augmentation draws misheard words from.

        Args:
            training_only: Use training transcripts only, so that training never sees words of other rows.
        """
        texts = self.manifest.frame["text"].fillna("")
        return Soundalikes((texts.iloc[self.split.train] if training_only else texts).tolist())


def read_corpora(
    corpora: Sequence[Corpus], label_map: Mapping[str, str | None], prefixed: bool, fitting: bool
) -> Manifest:
    """Reads one or several manifests and maps their labels.

    Args:
        corpora: Manifests with their label maps.
        label_map: Applied to all of them, after their own maps.
        prefixed: Whether ids and speakers get the corpus's name as a prefix.
        fitting: Whether this is for training; unknown keys of a label map are then an error.

    Raises:
        ManifestError: A manifest is bad, two corpora share a name, or a label map names a label that does not occur.
    """
    if not prefixed:
        return map_labels(read_manifest(corpora[0].manifest), label_map, "data.label_map", fitting)
    tables: dict[str, Manifest] = {}
    for corpus in corpora:
        if corpus.title in tables:
            raise ManifestError(f"data.corpora has two corpora called {corpus.title!r}; set another name for one")
        setting = f"label_map of corpus {corpus.title!r}"
        tables[corpus.title] = map_labels(read_manifest(corpus.manifest), corpus.label_map, setting, fitting)
    return map_labels(join_manifests(tables), label_map, "data.label_map", fitting)


def map_labels(
    manifest: Manifest, label_map: Mapping[str, str | None], setting: str, fitting: bool
) -> Manifest:  # fmt: skip
    """Renames emotions, and drops the rows of emotions that are mapped to None.

    Args:
        manifest: Table to map; it is not changed.
        label_map: Old name -> new name or None.
        setting: Name of the setting in error messages.
        fitting: Whether a name that does not occur is an error.

    Raises:
        ManifestError: The map names a label that does not occur.
    """
    emotion = manifest.frame["emotion"]
    labels = set(emotion.dropna()) | set(voted_emotions(manifest.frame))
    unknown = set(label_map) - labels
    if unknown and fitting:
        raise ManifestError(f"{manifest.path}: {setting} names {sorted(unknown)}, the labels are {sorted(labels)}")
    dropped = [old for old, new in label_map.items() if new is None]
    is_dropped = emotion.isin(dropped)
    if dropped and fitting:
        log.warning("%s: %s drops %d rows: %s", manifest.path, setting, int(is_dropped.sum()), ", ".join(dropped))
    mapped = manifest.subset(np.flatnonzero(~is_dropped.to_numpy()))
    renamed = {old: new for old, new in label_map.items() if new is not None}
    frame = mapped.frame.assign(emotion=mapped.frame["emotion"].replace(renamed))
    mapped.frame = map_votes(frame, label_map)
    return mapped


def select_rows(manifest: Manifest, only: Mapping[str, Sequence[str | int]]) -> Manifest:
    """Keeps the rows whose columns have one of the given values.

    Args:
        manifest: Table to select from.
        only: Column -> allowed values.

    Raises:
        ManifestError: A column does not exist, or no row is left.
    """
    for column, values in only.items():
        if column not in manifest.frame:
            raise ManifestError(f"{manifest.path}: data.only names column {column!r}, which does not exist")
        cells = manifest.frame[column]
        wanted = {float(value) if pd.api.types.is_numeric_dtype(cells) else str(value) for value in values}
        kept = np.flatnonzero(cells.isin(wanted).fillna(False).to_numpy(dtype=bool))
        if not len(kept):
            existing = ", ".join(map(str, cells.dropna().unique()[:8]))
            raise ManifestError(
                f"{manifest.path}: data.only leaves no row: {column} is never {values}, its values are {existing}"
            )
        manifest = manifest.subset(kept)
    return manifest


def encode_targets(manifest: Manifest, classes: Sequence[str], votes: bool, fitting: bool) -> Targets:
    """Returns the labels of every row as numbers.

    Args:
        manifest: Table with mapped labels.
        classes: Emotion classes in order; none for a model of dimensions.
        votes: Whether the raters' votes are used.
        fitting: Whether missing votes are an error.

    Raises:
        ManifestError: A label is not one of the classes, or votes are needed and missing.
    """
    frame = manifest.frame
    shares = np.zeros((len(frame), len(classes)), dtype=np.float32)
    if votes:
        try:
            shares = vote_shares(frame, classes)
        except ValueError as error:
            if fitting:  # a table without votes can still be predicted and tested
                raise ManifestError(f"{manifest.path}: {error}") from None
    dimensions = frame[list(DIMENSIONS)].to_numpy(dtype=np.float32)
    return Targets(_class_indices(manifest, classes), shares, dimensions)


def _class_indices(manifest: Manifest, classes: Sequence[str]) -> np.ndarray:
    emotion = manifest.frame["emotion"]
    if not classes:
        return np.full(len(emotion), UNLABELLED, dtype=np.int64)
    is_unknown = emotion.notna() & ~emotion.isin(list(classes))
    if is_unknown.any():
        row = int(np.flatnonzero(is_unknown)[0])
        near = get_close_matches(emotion.iat[row], classes, n=1, cutoff=0.75)
        guess = f"is {near[0]!r} in data.classes misspelt? Otherwise " if near else ""
        raise ManifestError(
            f"{manifest.path}: utterance {manifest.frame['id'].iat[row]!r} (and {int(is_unknown.sum()) - 1} more) has "
            f"emotion {emotion.iat[row]!r}, expected one of data.classes={list(classes)}; {guess}add it to "
            f"data.classes, or map it with data.label_map ({emotion.iat[row]}: null drops these rows)"
        )
    indices = {name: index for index, name in enumerate(classes)}
    return np.array([indices.get(name, UNLABELLED) for name in emotion], dtype=np.int64)


def hide_labels(manifest: Manifest, targets: Targets, split: Split, corpora: Sequence[Corpus]) -> Targets:
    """Returns the targets without the training labels of corpora that are ``unlabelled``."""
    names = [corpus.title for corpus in corpora if corpus.unlabelled]
    if not names:
        return targets
    corpus = manifest.frame.get("corpus", pd.Series(names[0], index=manifest.frame.index))
    hidden = np.intersect1d(split.train, np.flatnonzero(corpus.isin(names)))
    emotion, votes, dimensions = (values.copy() for values in targets)
    emotion[hidden], votes[hidden], dimensions[hidden] = UNLABELLED, 0.0, np.nan
    return Targets(emotion, votes, dimensions)


def check_unlabelled(table: DataTable, corpora: Sequence[Corpus], requirements: Requirements) -> None:
    """Checks that training can use the corpora that are ``unlabelled``.

    Raises:
        ManifestError: Nothing in the model learns from unlabelled rows, every corpus is unlabelled, or none of an
            unlabelled corpus's rows is on the training side.
    """
    hidden = [corpus for corpus in corpora if corpus.unlabelled]
    if not hidden:
        return
    if not requirements.unlabelled:
        raise ManifestError(
            f"{hidden[0].manifest}: unlabelled is true, but nothing learns from rows without labels; add a hook such "
            "as mmemo.training.DomainAdversarial or VirtualAdversarial, distil a teacher, or remove the corpus"
        )
    if len(hidden) == len(corpora):
        raise ManifestError(
            f"{table.name}: every corpus is unlabelled, so there are no labels to train on; set unlabelled: false for "
            "one of them"
        )
    for corpus in hidden:
        rows = np.flatnonzero(table.manifest.frame["corpus"] == corpus.title)
        if not np.isin(rows, table.split.train).any():
            raise ManifestError(
                f"{corpus.manifest}: unlabelled is true, but the split puts none of its {len(rows)} rows on the "
                "training side; set split to train in the manifest (`mmemo corpus table --constants split=train`)"
            )


def check_labels(table: DataTable, required: Sequence[str]) -> None:
    """Checks that the training rows have the labels that the loss needs.

    Args:
        table: With split and targets.
        required: Kinds of labels.

    Raises:
        ManifestError: A kind of label or a class does not occur, or some rows have only labels that the loss ignores.
    """
    train = table.split.train
    has = {kind: present[train] for kind, present in table.targets.present().items()}
    for kind in required:
        if not has[kind].any():
            raise ManifestError(f"{table.name}: the loss needs {kind}, but no training row has any")
    is_used = np.any([has[kind] for kind in required], axis=0)
    for kind in ("emotion", "dimensions"):
        unused = has[kind] & ~is_used
        if kind not in required and unused.any():
            label = "valence, arousal or dominance" if kind == "dimensions" else "an emotion"
            first = table.manifest.frame["id"].iat[train[np.flatnonzero(unused)[0]]]
            raise ManifestError(
                f"{table.name}: utterance {first!r} (and {int(unused.sum()) - 1} more) has {label} but no "
                f"{' or '.join(required)}, the only label that the loss uses; join losses of both with "
                "mmemo.losses.WeightedSum, or remove these rows"
            )
    occurring = set(table.targets.emotion[train])
    if "votes" in required:
        occurring |= set(np.flatnonzero(table.targets.votes[train].sum(0)))
    missing = [name for index, name in enumerate(table.classes) if index not in occurring]
    if missing and {"emotion", "votes"} & set(required):
        raise ManifestError(
            f"{table.name}: no training row has emotion {', '.join(missing)}; "
            "remove it from data.classes, or use another split"
        )


def check_not_empty(table: DataTable, rows: np.ndarray, requirements: Requirements) -> None:
    """Checks that every utterance has something that the model takes.

    Args:
        table: The utterances.
        rows: Rows that will be used ``(row,)``.
        requirements: Which modalities the model has.

    Raises:
        ManifestError: Some utterances have neither.
    """
    frame = table.manifest.frame
    has_input = np.zeros(len(frame), dtype=bool)
    if requirements.audio:
        has_input |= frame["path"].notna().to_numpy(dtype=bool)
    if requirements.text:
        has_input |= (frame["text"].fillna("").str.strip() != "").to_numpy(dtype=bool)
    empty = rows[~has_input[rows]]
    if len(empty):
        names = ", ".join(repr(name) for name in frame["id"].iloc[empty[:5]])
        inputs = " and ".join(["audio"] * requirements.audio + ["text"] * requirements.text)
        raise ManifestError(
            f"{table.name}: {len(empty)} utterances have no input for the model ({inputs}): {names}; remove them, or "
            "set data.empty_rows: keep to predict them without input"
        )


def with_audio(
    table: DataTable,
    facts: Sequence[AudioFacts | None],
    on_broken: Literal["refuse", "skip"],
    allow_overlap: bool,
) -> DataTable:
    """Returns the table with facts about its audio, without the rows whose audio is broken.

    Args:
        table: The utterances.
        facts: Facts about each row's audio.
        on_broken: Whether broken audio is an error, or its rows are left out with a warning.
        allow_overlap: Whether the same recording may be on two sides of the split, with a warning.

    Raises:
        ManifestError: Audio is broken and ``on_broken`` is ``refuse``, or a recording is on two sides.
    """
    warnings = list(table.warnings)
    split = table.split
    broken = [row for row, fact in enumerate(facts) if fact is not None and fact.problem]
    if broken:
        lines = list_broken_audio(list(table.manifest), facts, private=is_offline())[:MAX_SHOWN]
        if len(broken) > MAX_SHOWN:
            lines.append(f"and {len(broken) - MAX_SHOWN} more")
        listing = "\n".join(lines)
        if on_broken == "refuse":
            raise ManifestError(
                f"{table.name}: {len(broken)} utterances have unusable audio; replace the files, or set "
                f"data.broken_audio: skip to leave them out\n{listing}"
            )
        log.warning("%d utterances with broken audio left out:\n%s", len(broken), listing)
        warnings.append(f"{len(broken)} utterances with broken audio left out")
        split = Split(*(np.setdiff1d(rows, broken, assume_unique=True).astype(int) for rows in split))
    shared = _shared_recordings(table.manifest, split, facts)
    if shared:
        problem = f"{len(shared)} {SHARED_RECORDINGS}: {', '.join(shared[:5])}"
        if not allow_overlap:
            raise ManifestError(
                f"{table.name}: {problem}; remove the copies, or set data.allow_speaker_overlap: true, and every "
                "result will carry a warning"
            )
        warnings.append(problem)
    train_rows = np.setdiff1d(table.train_rows, broken, assume_unique=True).astype(int)
    return replace(table, split=split, train_rows=train_rows, facts=tuple(facts), warnings=tuple(warnings))


def _shared_recordings(manifest: Manifest, split: Split, facts: Sequence[AudioFacts | None]) -> list[str]:
    """Returns ids of recordings that are on a second side of the split."""
    first_side: dict[str, str] = {}
    shared = []
    for side, rows in zip(SPLITS, split, strict=True):
        for row in rows:
            fact = facts[row]
            if fact is None or fact.problem:
                continue
            if first_side.setdefault(fact.content, side) != side:
                shared.append(f"{manifest.frame['id'].iat[row]} ({first_side[fact.content]} and {side})")
    return shared
