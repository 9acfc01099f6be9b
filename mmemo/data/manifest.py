"""A corpus as one table: an utterance a row, checked where it enters, read by everything downstream."""

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

TEXT_COLUMNS = (
    "id", "path", "text", "emotion", "speaker", "session", "language", "gender", "split"
)  # fmt: skip
NUMBER_COLUMNS = ("start", "end", "channel", *DIMENSIONS, "age")
COLUMNS = (
    "id", "path", "start", "end", "channel", "text", "emotion", *DIMENSIONS,
    "speaker", "session", "language", "gender", "age", "split",
)  # fmt: skip
TEXT_DTYPE = "string[pyarrow]"
WORDS = ("text", "text_reference")
"""Columns of what is said: the transcript, and what stood there before it."""
VOTES_PREFIX = "votes_"
SPLITS = ("train", "val", "test")
REPORTS_OWN = (
    "fold", "seed", "answered", "conformal_set", "warning", "side", "predicted", "confidence", "length", "noise",
    "seconds",
)  # fmt: skip
"""Names that a report gives to columns of its own."""
SENTENCE_WORDS, SENTENCE_LENGTH = 3, 25
"""Words, and characters, on average from which a column of different values is taken for sentences."""
WORDY = r"transcript|utterance|sentence|note|comment|remark|text|words"
"""In the name of a column whose different values are taken for sentences however short they are."""
FILE_NAME = r"(?i)^(?:[a-z]:)?[/\\]|\.(?:wav|flac|mp3|ogg|opus|m4a|aac|mp4|txt|json|eaf|textgrid)$"
MAX_SHOWN = 20  # problems listed in one error


class ManifestError(ValueError):
    """A manifest that cannot be used as it is; each line names file, row, column, found and expected."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One manifest row.

    Args:
        id: Unique name of the utterance.
        path: Audio file; None where there is none.
        start: Where the utterance starts in the file, in seconds; None is its beginning.
        end: Where it ends, in seconds; None is the file's end.
        channel: Which of the file's channels, counting from 0; None averages them.
        text: Transcript; empty for silence, laughter, or one not transcribed yet.
        emotion: Class name; None when unlabelled.
        valence: Negative to positive, in [-1, 1]; NaN when unlabelled. ``arousal``, ``dominance`` likewise.
        speaker: Who speaks; no speaker may stand on both sides of a split.
        extra: Every further column of the manifest, rater votes (``votes_anger``, ...) among them.
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
    """A validated table of utterances; indexing gives an :class:`Utterance`, ``frame`` the whole table.

    Args:
        frame: One row per utterance. Missing columns are added empty, unknown ones are kept.
        path: File the table came from or goes to; audio paths are relative to its folder.
        emotions: Class names allowed in the ``emotion`` column.

    Raises:
        ManifestError: Listing each bad value with its row (the header is row 1) and what was expected.
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
        known = {name: row.pop(name) for name in COLUMNS}
        known["path"] = None if known["path"] is None else self.path.parent / known["path"]
        known["text"] = known["text"] or ""
        known["channel"] = None if known["channel"] is None else int(known["channel"])
        for name in (*DIMENSIONS, "age"):
            known[name] = math.nan if known[name] is None else known[name]
        return Utterance(**known, extra=row)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Manifest:
        """The manifest of some rows, in the order given."""
        part = object.__new__(Manifest)
        part.path = self.path
        part.frame = self.frame.iloc[np.asarray(indices, dtype=int)].reset_index(drop=True)
        return part

    def write(self, path: str | Path) -> Path:
        """Writes CSV, or Parquet by the file's ending; columns that hold nothing are left out.

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


def private_columns(frame: pd.DataFrame, wanted: Collection[str] = ()) -> list[str]:
    """Columns that no output may show: where recordings are, what is said in them, and any further column that looks
    like sentences or file names.

    Args:
        frame: Of a manifest.
        wanted: Columns that somebody asked for by name, who knows what is in them.
    """
    found = [name for name in ("path", "start", "end", "channel", *WORDS) if name in frame]
    for name in map(str, frame.columns.difference([*COLUMNS, *WORDS, *wanted], sort=False)):
        values = frame[name].dropna()
        if not len(values) or pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            continue
        texts = values.astype(str)
        different = texts.nunique() > max(0.2 * len(texts), 1)
        long = texts.str.split().str.len().mean() >= SENTENCE_WORDS or texts.str.len().mean() >= SENTENCE_LENGTH
        files = texts.str.contains(FILE_NAME).mean() >= 0.5
        if (different and (long or re.search(WORDY, name.lower()))) or files:
            found.append(name)
    return found


def shown_columns(frame: pd.DataFrame, wanted: Collection[str] = ()) -> list[str]:
    """Columns that a report has of a manifest: those with a value, that are not private, and not called as its own.

    Args:
        frame: Of a manifest.
        wanted: As for :func:`private_columns`.
    """
    private = private_columns(frame, wanted)
    return [
        name
        for name in map(str, frame.columns)
        if not (name in private or name.startswith(VOTES_PREFIX) or is_reports_own(name) or frame[name].isna().all())
    ]


def is_reports_own(name: str) -> bool:
    """Whether a report has a column of that name itself."""
    return name in REPORTS_OWN or name.startswith("weight_") or "prob_" in name


def join_manifests(manifests: Mapping[str, Manifest]) -> Manifest:
    """Several corpora as one table, with a column ``corpus`` that says where each row comes from.

    Ids and speakers get their corpus's name in front, so that speaker 01 of one is not taken for that of another.

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
        ManifestError: The file is missing, is no such table, or holds bad values.
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
            raise ManifestError(f"{path}: a manifest is a .csv or .parquet file, not {path.suffix or 'this'!r}")
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


def _validated(frame: pd.DataFrame, path: Path, emotions: Sequence[str]) -> pd.DataFrame:
    if "id" not in frame or len(frame) == 0:
        found = ", ".join(map(str, frame.columns)) or "nothing"
        problem = "no column id" if len(frame) else "no rows"
        raise ManifestError(
            f"{path}: {problem}, found columns {found}; expected some of {', '.join(COLUMNS)} (`mmemo corpus table` "
            "makes a manifest of any table)"
        )
    twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
    if twice:
        raise ManifestError(f"{path}: column {', '.join(twice)} stands there twice, expected each once")
    frame = frame.reset_index(drop=True)
    problems: list[str] = []

    def report(bad: pd.Series, column: str, expected: str) -> None:
        rows = np.flatnonzero(bad.to_numpy(dtype=bool, na_value=False))
        for row in rows[:MAX_SHOWN]:
            value = frame[column].iat[row] if column in frame else None
            found = "nothing" if pd.isna(value) else repr(value)
            problems.append(f"{path} row {row + 2}, column {column}: found {found}, expected {expected}")
        problems.extend(["..."] * max(len(rows) - MAX_SHOWN, 0))

    table: dict[str, pd.Series] = {}
    for name in COLUMNS:
        if name not in frame:
            dtype = "float64" if name in NUMBER_COLUMNS else TEXT_DTYPE
            table[name] = pd.Series(None, index=frame.index, dtype=dtype)
        elif name in NUMBER_COLUMNS:
            table[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
            report(table[name].isna() & frame[name].notna(), name, "a number")
        else:
            text = frame[name].astype(TEXT_DTYPE)
            table[name] = text.where(text != "", None)
    for name in frame.columns.difference(list(COLUMNS), sort=False):
        table[name] = frame[name]
        if str(name).startswith(VOTES_PREFIX):
            table[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
            report((table[name].isna() & frame[name].notna()) | (table[name] < 0), name, "a vote count, 0 or more")

    report(table["id"].isna(), "id", "a unique id")
    report(table["id"].duplicated() & table["id"].notna(), "id", "an id that no other row has")
    report(table["path"].isna() & table["text"].isna(), "path", "a path or a text, here both are missing")
    emotion = table["emotion"]
    unknown = emotion.notna() & ~emotion.isin(list(emotions))
    first_of_each = unknown & ~emotion.duplicated()
    report(first_of_each, "emotion", f"one of {tuple(emotions)}")
    if unknown.sum() > first_of_each.sum():
        counts = ", ".join(f"{name!r} {count} times" for name, count in emotion[unknown].value_counts().items())
        problems.append(f"{path}: unknown emotions are {counts}; `mmemo corpus table --values` renames them")
    report(table["split"].notna() & ~table["split"].isin(SPLITS), "split", f"one of {SPLITS}")
    for name in DIMENSIONS:
        low, high = DIMENSION_RANGE
        report((table[name] < low) | (table[name] > high), name, f"a number in [{low:g}, {high:g}]")
    report((table["start"] < 0) | np.isinf(table["start"]), "start", "seconds, 0 or more")
    report(np.isinf(table["end"]) | (table["end"] <= table["start"].fillna(0.0)), "end", "seconds after start")
    report(table["age"] < 0, "age", "years, 0 or more")
    report((table["channel"] < 0) | (table["channel"] % 1 != 0) & table["channel"].notna(), "channel", "0, 1, ...")

    if problems:
        shown = [problem for problem in problems if problem != "..."][:MAX_SHOWN]
        more = len(problems) - len(shown)
        raise ManifestError("\n".join([*shown, f"and {more} more; mend them and try again"] if more else shown))
    return pd.DataFrame(table)
