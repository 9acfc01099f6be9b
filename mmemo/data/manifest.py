"""A corpus as one table with one utterance per row, validated when it is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mmemo.files import replacing
from mmemo.labels import DIMENSION_RANGE, DIMENSIONS, EMOTIONS

NUMBER_COLUMNS = ("start", "end", "channel", *DIMENSIONS, "age")
COLUMNS = (
    "id", "path", "start", "end", "channel", "text", "emotion", *DIMENSIONS,
    "speaker", "session", "language", "gender", "age", "split",
)  # fmt: skip
TEXT_DTYPE = "string[pyarrow]"
TRANSCRIPT_COLUMNS = ("text", "text_reference")
"""The transcript, and the transcript that `mmemo transcribe` replaced."""
VOTES_PREFIX = "votes_"
SPLITS = ("train", "val", "test")
REPORT_COLUMNS = (
    "fold", "seed", "answered", "conformal_set", "warning", "side", "predicted", "confidence", "length", "noise",
    "seconds",
)  # fmt: skip
"""Column names that reports use for their own columns."""
MIN_SENTENCE_WORDS, MIN_SENTENCE_CHARACTERS = 3, 25
"""A column of varied values with at least this mean length counts as sentences."""
SENTENCE_COLUMN = r"transcript|utterance|sentence|note|comment|remark|text|words"
"""A column of varied values with such a name counts as sentences, whatever their length."""
FILE_NAME = r"(?i)^(?:[a-z]:)?[/\\]|\.(?:wav|flac|mp3|ogg|opus|m4a|aac|mp4|txt|json|eaf|textgrid)$"
MAX_SHOWN = 20  # problems listed in one error


class ManifestError(ValueError):
    """A manifest that cannot be used; each line names the file, row and column, and what was found and expected.

    Example:
        >>> try:
        ...     Manifest(pd.DataFrame({"id": ["a"], "text": ["Hi"], "emotion": ["angry"]}), emotions=("anger", "joy"))
        ... except ManifestError as error:
        ...     print(error)
        manifest.csv row 2, column emotion: found 'angry', expected one of ('anger', 'joy')
    """


@dataclass(frozen=True, slots=True)
class Utterance:
    """One manifest row.

    Args:
        id: Unique name of the utterance.
        path: Audio file; None for an utterance without audio.
        start: Start in the file, in seconds; None is the start of the file.
        end: End in the file, in seconds; None is the end of the file.
        channel: Channel of the file, from 0; None averages all channels.
        text: Transcript; empty for silence, laughter, or an utterance without a transcript.
        emotion: Class name; None if unlabelled.
        valence: Negative to positive, in [-1, 1]; NaN if unlabelled.
        arousal: Calm to excited, in [-1, 1]; NaN if unlabelled.
        dominance: Submissive to dominant, in [-1, 1]; NaN if unlabelled.
        speaker: Identifies the speaker; splits keep speakers apart.
        session: Recording session.
        language: Two-letter code.
        gender: Gender of the speaker.
        age: Age of the speaker, in years; NaN if unknown.
        split: ``train``, ``val`` or ``test``; None for manifests without an official split.
        extra: All other columns of the manifest, such as rater votes (``votes_anger``, ...).
    """

    id: str
    path: Path | None = None
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    text: str = ""
    emotion: str | None = None
    valence: float = math.nan
    arousal: float = math.nan
    dominance: float = math.nan
    speaker: str | None = None
    session: str | None = None
    language: str | None = None
    gender: str | None = None
    age: float = math.nan
    split: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Manifest:
    """A validated table of utterances; indexing returns an :class:`Utterance`, ``frame`` is the whole table.

    Args:
        frame: One row per utterance. Missing columns are added empty, unknown ones are kept.
        path: File of the table; audio paths are relative to its folder.
        emotions: Class names allowed in the ``emotion`` column.

    Raises:
        ManifestError: A value is invalid; the message lists all of them with row numbers (the header is row 1).

    Example:
        >>> manifest = Manifest(pd.DataFrame({"id": ["a"], "text": ["Hello!"], "emotion": ["happiness"]}))
        >>> manifest[0].emotion
        'happiness'
    """

    def __init__(
        self, frame: pd.DataFrame, path: str | Path = "manifest.csv", emotions: Sequence[str] = EMOTIONS
    ) -> None:
        self.path = Path(path)
        self.frame = _validated(frame, self.path, emotions)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> Utterance:
        return self._utterance({name: values.iat[index] for name, values in self.frame.items()})

    def __iter__(self) -> Iterator[Utterance]:
        names = list(self.frame.columns)
        columns = (self.frame[name].tolist() for name in names)
        return (self._utterance(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True))

    def _utterance(self, row: dict[Any, Any]) -> Utterance:
        row = {name: (None if _is_missing(value) else value) for name, value in row.items()}
        values = {name: row.pop(name) for name in COLUMNS}
        values["path"] = None if values["path"] is None else self.path.parent / values["path"]
        values["text"] = values["text"] or ""
        values["channel"] = None if values["channel"] is None else int(values["channel"])
        for name in (*DIMENSIONS, "age"):
            values[name] = math.nan if values[name] is None else values[name]
        return Utterance(**values, extra=row)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """Returns the manifest of some rows ``(row,)``, in the given order."""
        subset = object.__new__(Manifest)  # skips validation, which has been done
        subset.path = self.path
        subset.frame = self.frame.iloc[np.asarray(indices, dtype=int)].reset_index(drop=True)
        return subset

    def write(self, path: str | Path) -> Path:
        """Writes CSV, or Parquet for the suffix .parquet; empty columns are left out.

        Args:
            path: File to write; audio paths are rewritten relative to its folder.
        """
        path = Path(path)
        table = self.frame.dropna(axis="columns", how="all").copy()
        if "path" in table and self.path.parent.resolve() != path.parent.resolve():
            base, target = self.path.parent.resolve(), path.parent.resolve()
            table["path"] = [
                value if pd.isna(value) else os.path.relpath(base / value, target) for value in table["path"]
            ]
        with replacing(path) as partial:
            if path.suffix == ".parquet":
                table.to_parquet(partial, index=False)
            else:
                table.to_csv(partial, index=False)
        return path


def private_columns(frame: pd.DataFrame, requested: Collection[str] = ()) -> list[str]:
    """Lists columns that no output may show: file locations, transcripts, and columns of sentences or file names.

    Args:
        frame: Table of a manifest.
        requested: Columns that the user named explicitly; they are not checked for sentences or file names.
    """
    private = [name for name in ("path", "start", "end", "channel", *TRANSCRIPT_COLUMNS) if name in frame]
    for name in map(str, frame.columns.difference([*COLUMNS, *TRANSCRIPT_COLUMNS, *requested], sort=False)):
        values = frame[name].dropna()
        if not len(values) or pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            continue
        texts = values.astype(str)
        varied = texts.nunique() > max(0.2 * len(texts), 1)
        mean_words, mean_characters = texts.str.split().str.len().mean(), texts.str.len().mean()
        long = mean_words >= MIN_SENTENCE_WORDS or mean_characters >= MIN_SENTENCE_CHARACTERS
        file_names = texts.str.contains(FILE_NAME).mean() >= 0.5
        if (varied and (long or re.search(SENTENCE_COLUMN, name.lower()))) or file_names:
            private.append(name)
    return private


def shown_columns(frame: pd.DataFrame, requested: Collection[str] = ()) -> list[str]:
    """Lists the manifest columns that a report shows: not empty, not private, and no name of a report's own column.

    Args:
        frame: Table of a manifest.
        requested: As for :func:`private_columns`.
    """
    private = private_columns(frame, requested)
    return [
        name
        for name in map(str, frame.columns)
        if not (name in private or name.startswith(VOTES_PREFIX) or is_report_column(name) or frame[name].isna().all())
    ]


def is_report_column(name: str) -> bool:
    """Returns whether reports use this name for a column of their own."""
    return name in REPORT_COLUMNS or name.startswith("weight_") or "prob_" in name


def join_manifests(manifests: Mapping[str, Manifest]) -> Manifest:
    """Joins several corpora into one table, with the name of each row's corpus in the column ``corpus``.

    Ids, speakers and sessions are prefixed with that name, so that speaker 01 of one corpus differs from speaker 01
    of another.

    Args:
        manifests: Name of each corpus -> its manifest.
    """
    frames = []
    for name, manifest in manifests.items():
        frame = manifest.frame.copy()
        for column in ("id", "speaker", "session"):
            frame[column] = (name + "/" + frame[column]).astype(TEXT_DTYPE)
        base = manifest.path.parent.resolve()
        paths = [None if pd.isna(path) else str(base / path) for path in frame["path"]]
        frame["path"] = pd.Series(paths, index=frame.index, dtype=TEXT_DTYPE)
        frame["corpus"] = pd.Series(name, index=frame.index, dtype=TEXT_DTYPE)
        frames.append(frame)
    joined = object.__new__(Manifest)
    joined.path = Path(" + ".join(str(manifest.path) for manifest in manifests.values()))
    joined.frame = pd.concat([frame.dropna(axis="columns", how="all") for frame in frames], ignore_index=True)
    for column in COLUMNS:
        if column not in joined.frame:
            joined.frame[column] = frames[0][column].iloc[:0].reindex(joined.frame.index)
    return joined


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def read_manifest(path: str | Path, emotions: Sequence[str] = EMOTIONS) -> Manifest:
    """Reads and validates a manifest.

    Args:
        path: ``.csv`` (UTF-8, comma) or ``.parquet`` file.
        emotions: Class names allowed in the ``emotion`` column.

    Raises:
        ManifestError: The file is missing or not such a table, or has invalid values.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such file, expected a manifest; make one with `mmemo corpus`")
    try:
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        elif path.suffix == ".csv":
            table = _read_csv(path)
        else:
            raise ManifestError(f"{path}: expected a .csv or .parquet file, found suffix {path.suffix!r}")
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise ManifestError(f"{path}: not a readable table, expected UTF-8 CSV or Parquet ({error})") from None
    return Manifest(table.to_pandas(), path, emotions)


def _read_csv(path: Path) -> pa.Table:
    try:
        columns = pd.read_csv(path, nrows=0, encoding_errors="replace").columns
    except pd.errors.EmptyDataError:
        raise ManifestError(f"{path}: empty, expected a header such as 'id,path,emotion,speaker'") from None
    return pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in columns},  # "01" is a speaker, not the number 1
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


class _Problems:
    """Collects invalid values of a table and raises them together.

    Args:
        frame: The table as it was read.
        path: File to name in the error.
    """

    def __init__(self, frame: pd.DataFrame, path: Path) -> None:
        self.frame = frame
        self.path = path
        self.lines: list[str] = []
        self.num_omitted = 0

    def add(self, invalid: pd.Series, column: str, expected: str) -> None:
        """Adds the rows in which ``invalid`` is True."""
        rows = np.flatnonzero(invalid.to_numpy(dtype=bool, na_value=False))
        for row in rows[:MAX_SHOWN]:
            value = self.frame[column].iat[row] if column in self.frame else None
            shown = "nothing" if pd.isna(value) else repr(value)
            self.lines.append(f"{self.path} row {row + 2}, column {column}: found {shown}, expected {expected}")
        self.num_omitted += max(len(rows) - MAX_SHOWN, 0)

    def raise_if_any(self) -> None:
        """Raises a ManifestError that lists the first ``MAX_SHOWN`` problems."""
        if self.lines:
            shown = self.lines[:MAX_SHOWN]
            more = len(self.lines) + self.num_omitted - len(shown)
            raise ManifestError("\n".join([*shown, f"and {more} more; fix them and try again"] if more else shown))


def _validated(frame: pd.DataFrame, path: Path, emotions: Sequence[str]) -> pd.DataFrame:
    _check_columns(frame, path)
    frame = frame.reset_index(drop=True)
    problems = _Problems(frame, path)
    table = _convert_types(frame, problems)
    _check_values(table, emotions, problems)
    problems.raise_if_any()
    return pd.DataFrame(table)


def _check_columns(frame: pd.DataFrame, path: Path) -> None:
    if "id" not in frame or len(frame) == 0:
        columns = ", ".join(map(str, frame.columns)) or "nothing"
        problem = "no column id" if len(frame) else "no rows"
        raise ManifestError(
            f"{path}: {problem}, found columns {columns}; expected some of {', '.join(COLUMNS)} (`mmemo corpus table` "
            "converts any table to a manifest)"
        )
    duplicates = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if duplicates:
        raise ManifestError(f"{path}: column {', '.join(duplicates)} appears twice, expected each column once")


def _convert_types(frame: pd.DataFrame, problems: _Problems) -> dict[str, pd.Series]:
    table: dict[str, pd.Series] = {}
    for name in COLUMNS:
        if name not in frame:
            dtype = "float64" if name in NUMBER_COLUMNS else TEXT_DTYPE
            table[name] = pd.Series(None, index=frame.index, dtype=dtype)
        elif name in NUMBER_COLUMNS:
            table[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
            problems.add(table[name].isna() & frame[name].notna(), name, "a number")
        else:
            text = frame[name].astype(TEXT_DTYPE)
            table[name] = text.where(text != "", None)
    for name in frame.columns.difference(list(COLUMNS), sort=False):
        table[name] = frame[name]
        if str(name).startswith(VOTES_PREFIX):
            table[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
            problems.add(
                (table[name].isna() & frame[name].notna()) | (table[name] < 0), name, "a vote count, 0 or more"
            )
    return table


def _check_values(table: Mapping[str, pd.Series], emotions: Sequence[str], problems: _Problems) -> None:
    problems.add(table["id"].isna(), "id", "a unique id")
    problems.add(table["id"].duplicated() & table["id"].notna(), "id", "an id that no other row has")
    problems.add(table["path"].isna() & table["text"].isna(), "path", "a path or a text, here both are missing")
    emotion = table["emotion"]
    unknown = emotion.notna() & ~emotion.isin(list(emotions))
    first_of_each = unknown & ~emotion.duplicated()
    problems.add(first_of_each, "emotion", f"one of {tuple(emotions)}")
    if unknown.sum() > first_of_each.sum():
        counts = ", ".join(f"{name!r} {count} times" for name, count in emotion[unknown].value_counts().items())
        problems.lines.append(
            f"{problems.path}: unknown emotions are {counts}; `mmemo corpus table --values` renames them"
        )
    unknown = table["split"].notna() & ~table["split"].isin(SPLITS)
    problems.add(unknown & ~table["split"].duplicated(), "split", f"one of {SPLITS}")  # the first row of each
    for name in DIMENSIONS:
        low, high = DIMENSION_RANGE
        problems.add((table[name] < low) | (table[name] > high), name, f"a number in [{low:g}, {high:g}]")
    start, end, channel = table["start"], table["end"], table["channel"]
    problems.add((start < 0) | np.isinf(start), "start", "seconds, 0 or more")
    problems.add(np.isinf(end) | (end <= start.fillna(0.0)), "end", "seconds after start")
    problems.add(table["age"] < 0, "age", "years, 0 or more")
    problems.add((channel < 0) | (channel % 1 != 0) & channel.notna(), "channel", "0, 1, ...")
