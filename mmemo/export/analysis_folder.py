"""The folder of ``mmemo analyze``: tables of all recordings, and a JSON file and a picture of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemo.export.timeline import draw_timeline
from mmemo.files import write_text

if TYPE_CHECKING:
    from mmemo.export.analysis import Analysis


class AnalysisFolder:
    """Writes results recording by recording, so that a killed command loses none that was finished.

    Args:
        out: Folder; results of other recordings in it are kept.
        classes: Classes of the model.
        picture: Whether each recording gets a picture.
    """

    def __init__(self, out: Path, classes: list[str], picture: bool = True) -> None:
        self.out = out
        self.classes = classes
        self.picture = picture
        self.has_results = False
        self._used: set[str] = set()
        self._stale: set[str] = set()

    @classmethod
    def open(cls, out: str | Path, classes: list[str], picture: bool = True) -> AnalysisFolder:
        """Creates the folder, or opens it and reads which recordings it has.

        Raises:
            ValueError: It cannot be written to, or holds results of another model or program.
        """
        folder = cls(Path(out), classes, picture)
        if folder.out.exists() and not folder.out.is_dir():
            raise ValueError(f"{out}: is a file, expected a folder")
        try:
            folder.out.mkdir(parents=True, exist_ok=True)
            previous = folder._rewrite_tables(set())  # all but an incomplete last line
        except OSError as error:  # now, not after an hour of analysis
            raise ValueError(f"{out}: cannot be written to ({error.strerror})") from None
        folder._used = {row["files"] for row in previous if row["files"]}
        folder._stale = {row["recording"] for row in previous}
        return folder

    def _rewrite_tables(self, excluding: set[str]) -> list[dict[str, Any]]:
        """Removes recordings from the tables; returns the remaining rows of ``recordings.csv``."""
        tables = {"recordings.csv": _summary_columns(self.classes), "segments.csv": segment_columns(self.classes)}
        rows = {name: self._others(name, columns, excluding) for name, columns in tables.items()}
        lines = self._other_lines(excluding)
        for name, columns in tables.items():
            self._write(name, [",".join(columns), *(csv_line(row, columns) for row in rows[name])])
        self._write("segments.jsonl", lines)
        return rows["recordings.csv"]

    def _remove(self, name: str) -> None:
        """Removes the results of an earlier command for a recording that is analysed again."""
        if name in self._stale:
            self._stale.remove(name)
            self._used = {row["files"] for row in self._rewrite_tables({name}) if row["files"]}

    def _lines(self, name: str) -> list[str]:
        """Returns the complete lines of a table."""
        path = self.out / name
        return path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []

    def _others(self, name: str, columns: list[str], excluding: set[str]) -> list[dict[str, Any]]:
        """Returns the rows of a CSV table that belong to other recordings."""
        table = csv.DictReader(f"{line}\n" for line in self._lines(name))
        if list(table.fieldnames or columns) != columns:
            raise self._foreign_table_error(name)
        return [row for row in table if row["recording"] not in excluding]

    def _other_lines(self, excluding: set[str]) -> list[str]:
        """Returns the lines of the JSON segments that belong to other recordings."""
        name = "segments.jsonl"
        try:
            return [line for line in self._lines(name) if json.loads(line)["recording"] not in excluding]
        except (ValueError, KeyError, TypeError):
            raise self._foreign_table_error(name) from None

    def _foreign_table_error(self, name: str) -> ValueError:
        return ValueError(f"{self.out}: its {name} belongs to another model or program; choose another folder")

    def _write(self, name: str, lines: list[str]) -> None:
        write_text(self.out / name, "".join(f"{line}\n" for line in lines))

    def add(self, analysis: Analysis) -> None:
        """Writes the files of a recording, and adds it to the tables."""
        self._remove(analysis.name)
        rows = segment_rows(analysis)
        name = self._file_name(analysis)
        self.has_results = True
        summary = {**_summary(analysis), "files": name}
        timeline = {"seconds": analysis.times, **dict(zip(self.classes, analysis.timeline.T.round(4), strict=True))}
        is_speech = analysis.timeline[:, 0] == analysis.timeline[:, 0]  # NaN far from any speech
        content = {
            **summary, "segments": rows,
            "timeline": {key: values[is_speech].tolist() for key, values in timeline.items()},
        }  # fmt: skip
        write_text(self.out / f"{name}.json", json.dumps(content, ensure_ascii=False))
        if self.picture:
            draw_timeline(analysis, self.out / f"{name}.png")
        for file_name, lines in (
            ("recordings.csv", [csv_line(summary, _summary_columns(self.classes))]),
            ("segments.csv", [csv_line(row, segment_columns(self.classes)) for row in rows]),
            ("segments.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows]),
        ):
            with (self.out / file_name).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def add_all(self, analyses: Sequence[Analysis]) -> None:
        """Adds the channels of a recording; one without speech gets only a note."""
        for analysis in analyses:
            if analysis.segments:
                self.add(analysis)
            else:
                self.note(analysis.name, analysis.problem, analysis.channel)

    def note(self, name: str, problem: str, channel: int | None = None) -> None:
        """Adds a line to ``recordings.csv`` for a recording without results."""
        self._remove(name)
        row = {"recording": name, "channel": channel, "notes": problem}
        with (self.out / "recordings.csv").open("a", encoding="utf-8") as file:
            file.write(f"{csv_line(row, _summary_columns(self.classes))}\n")

    def _file_name(self, analysis: Analysis) -> str:
        """Returns an unused name for a recording's files, short enough for a file system."""
        shown = "stdin" if analysis.name == "-" else analysis.name
        encoded = Path(shown).name.replace(" ", "_").encode()[:200]
        channel = "" if analysis.channel is None else f"_channel{analysis.channel}"
        stem = encoded.decode(errors="ignore") + channel
        unused, copy = stem, 1
        while unused in self._used:
            copy += 1
            unused = f"{stem}_copy{copy}"
        self._used.add(unused)
        return unused


def segment_columns(classes: Sequence[str]) -> list[str]:
    """Returns the columns of ``segments.csv``."""
    return ["recording", "channel", "start", "end", "emotion", "confidence", *prob_columns(classes), "text"]


def prob_columns(classes: Sequence[str]) -> list[str]:
    """Returns the column of each class's probability."""
    return [f"prob_{name}" for name in classes]


def segment_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Returns one row per segment, with the columns of :func:`segment_columns`; ``text`` only if there is one."""
    return [
        {
            "recording": analysis.name, "channel": analysis.channel, "start": segment.start, "end": segment.end,
            "emotion": segment.emotion, "confidence": round(segment.confidence, 4),
            **{f"prob_{name}": round(value, 4) for name, value in segment.probabilities.items()},
            **({} if segment.text is None else {"text": segment.text}),
        }
        for segment in analysis.segments
    ]  # fmt: skip


def csv_line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns a row as a line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([row.get(name, "") for name in columns])
    return line.getvalue()


def _summary_columns(classes: list[str]) -> list[str]:
    values = ["seconds", "speech_seconds", "emotion", "unsure", *prob_columns(classes)]
    return ["recording", "channel", *values, "notes", "files"]


def _summary(analysis: Analysis) -> dict[str, Any]:
    return {
        "recording": analysis.name, "channel": analysis.channel, "seconds": round(analysis.seconds, 3),
        "speech_seconds": round(analysis.speech_seconds, 3), "emotion": analysis.emotion,
        "unsure": round(analysis.unsure, 4),
        **{f"prob_{name}": round(value, 4) for name, value in analysis.probabilities.items()},
        "notes": "; ".join(analysis.notes),
    }  # fmt: skip
