"""`mmemo analyze`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmemo.cli.verb import call_with_many, screen
from mmemo.files import printable

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmemo.export.analysis import Analysis


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_many(analyze, argv, "analyze", "AUDIO", "audio files, folders, or - for standard input")


def analyze(
    audio: list[str],
    model: Path | None = None,
    out: Path | None = None,
    format: Literal["table", "jsonl", "csv"] = "table",
    picture: bool = True,
    min_confidence: float = 0.4,
    separate_channels: bool = False,
    transcript: bool = False,
    language: str | None = None,
    int8: bool = True,
    threads: int = 0,
) -> int:
    """Says which emotions are heard in clips, long recordings and folders, segment by segment.

    Speech is found first; each stretch of at most 15 s is judged, and marked unsure where no emotion is likely enough.
    With --out, a table of all recordings is written too, and for each a JSON file of its own (summary, segments and
    timeline) and a picture.

    Args:
        audio: Files, folders, or - for standard input.
        model: Folder of `mmemo export`; the student that ships with mmemo when not given.
        out: Folder for recordings.csv, segments.csv, segments.jsonl, and a JSON file and a picture of each recording;
            what it holds of other recordings stays.
        format: What is printed: a table to be read, or one line per segment as JSON or CSV.
        picture: Whether --out gets pictures too.
        min_confidence: Probability below which a segment is marked unsure, in [0, 1].
        separate_channels: Take each channel for a speaker of its own, counting from 0; else they are averaged.
        transcript: Also write down what is said, by Whisper.
        language: Of the words, such as en; detected when not given.
        int8: Run the small file of the model; else the one in full precision.
        threads: Of the processor; onnxruntime decides when 0.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from mmemo.audio.reader import AudioError
    from mmemo.export.analysis import analyze as listen
    from mmemo.export.analysis import student_folder
    from mmemo.export.runtime import Recognizer

    if language is not None and not transcript:
        raise ValueError("--language is of the words; add --transcript true")
    for given in audio:
        if given.startswith("-") and given != "-" and not Path(given).exists():
            raise ValueError(f"{given}: no such option, nor a file; `mmemo analyze --help` lists the options")
    if not 0 <= min_confidence <= 1:  # before --out is touched
        raise ValueError(f"--min_confidence {min_confidence:g}: expected a probability, 0 to 1")
    recognizer = Recognizer(model or student_folder(), int8, threads)
    words = _words(language) if transcript else None
    told = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:.0f} s heard"), TimeElapsedColumn())
    paths, given_up = _listed(audio)
    failed = given_up
    folder = None if out is None else _Folder(out, recognizer.classes, picture)
    rows = _Rows(format, recognizer.classes)
    with Progress(*columns, console=told, transient=True, disable=not sys.stderr.isatty()) as bar:
        for path in paths:
            task = bar.add_task(printable(path.name), total=None)
            try:
                heard = listen(
                    path, recognizer, min_confidence, separate_channels, words,
                    partial(_tell, bar, task),
                )  # fmt: skip
                for note in heard[0].notes:
                    _complain(f"{path}: {note}")
                for one in heard:
                    if not one.segments:
                        problem = f"nobody speaks in its {one.seconds:.1f} s"
                        _complain(f"{one.title}: {problem}")
                        if folder is not None:
                            folder.note(one.name, problem, one.channel)
                        continue
                    rows.add(one)
                    if folder is not None:
                        folder.add(one)
            except BrokenPipeError:  # nobody reads on
                raise
            except (AudioError, OSError) as error:
                _complain(str(error))
                failed += 1
                if folder is not None:
                    with suppress(OSError):  # of a full disk nothing can be noted on it
                        folder.note(printable(path), printable(str(error)))
            finally:
                bar.remove_task(task)
    rows.close()
    if folder is not None and folder.holds_any:
        told.print(f"Written: {out}")
    if failed:
        _complain(f"{failed} of {len(paths) + given_up} could not be analysed")
    return 1 if failed else 0


def _listed(audio: list[str]) -> tuple[list[Path], int]:
    """Files that are named, and those in folders; and how many names were given up."""
    from mmemo.audio.reader import AudioError
    from mmemo.export.analysis import audio_files

    paths: list[Path] = []
    given_up = 0
    for given in audio:
        try:
            paths += audio_files([given])
        except (AudioError, OSError) as error:
            _complain(str(error))
            given_up += 1
    return paths, given_up


def _complain(problem: str) -> None:
    print(f"mmemo analyze: {printable(problem)}", file=sys.stderr)


def _tell(bar: Any, task: Any, seconds: float) -> None:
    bar.update(task, completed=seconds)


class _Rows:
    """Prints what was found, in the format that was asked for."""

    def __init__(self, format: str, classes: list[str]) -> None:
        self.format = format
        self.classes = classes
        self._begun = False

    def add(self, analysis: Analysis) -> None:
        if self.format == "csv" and not self._begun:
            print(",".join(_columns(self.classes)))
        self._begun = True
        if self.format == "table":
            self._table(analysis)
            return
        for row in _rows(analysis):
            print(
                json.dumps(row, ensure_ascii=False)
                if self.format == "jsonl"
                else _csv_line(row, _columns(self.classes))
            )

    def close(self) -> None:
        sys.stdout.flush()

    @staticmethod
    def _table(analysis: Analysis) -> None:
        from rich.table import Table
        from rich.text import Text

        from mmemo.export.analysis import clock

        print(f"{analysis.title}: {analysis.speech_seconds:.1f} s of speech in {analysis.seconds:.1f} s")
        table = Table()
        table.add_column("from", justify="right")
        table.add_column("to", justify="right")
        table.add_column("emotion")
        table.add_column("probability", justify="right")
        words = any(one.text is not None for one in analysis.segments)
        if words:
            table.add_column("words")
        for one in analysis.segments:
            cells = [clock(one.start), clock(one.end), one.emotion, f"{one.confidence:.2f}"]
            table.add_row(*cells, *([Text(one.text or "")] if words else []))  # Whisper's [sighs] is no markup
        console = screen()
        console.print(table)
        means = sorted(analysis.probabilities.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {mean:.2f}" for name, mean in means if mean >= 0.005)
        unsure = f"unsure in {100 * analysis.unsure:.0f} % of it"
        console.print(f"Over all: {analysis.emotion}. Mean probability over the speech: {listed}; {unsure}")


def _words(language: str | None) -> Any:
    from mmemo.data.transcripts import OpenAIWhisper, check_language

    if language is not None:
        check_language(language)
    whisper = OpenAIWhisper(language=language)
    return lambda waveforms: [heard.text for heard in whisper(waveforms)]


def _columns(classes: list[str]) -> list[str]:
    return ["recording", "channel", "start", "end", "emotion", "confidence", *_prob_columns(classes), "text"]


def _prob_columns(classes: list[str]) -> list[str]:
    return [f"prob_{name}" for name in classes]


def _rows(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "recording": analysis.name, "channel": analysis.channel, "start": one.start, "end": one.end,
            "emotion": one.emotion, "confidence": round(one.confidence, 4),
            **{f"prob_{name}": round(value, 4) for name, value in one.probabilities.items()},
            **({} if one.text is None else {"text": one.text}),
        }
        for one in analysis.segments
    ]  # fmt: skip


def _csv_line(row: dict[str, Any], columns: list[str]) -> str:
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([row.get(name, "") for name in columns])
    return line.getvalue()


class _Folder:
    """Keeps what was found, recording by recording, so that a killed run has lost none that was finished.

    Args:
        out: Where; what it holds stays, but for recordings that are analysed again.
        classes: Of the model.
        picture: Whether each recording gets one.
    """

    def __init__(self, out: Path, classes: list[str], picture: bool) -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out}: is a file, expected a folder to write into")
        self.out = out
        self.classes = classes
        self.picture = picture
        self.holds_any = False
        try:
            out.mkdir(parents=True, exist_ok=True)
            before = self._keep(set())  # all of it, but for a line that was broken off
        except OSError as error:  # now, not after an hour of listening
            raise ValueError(f"--out {out}: nothing can be written there ({error.strerror})") from None
        self._used = {row["files"] for row in before if row["files"]}
        self._stale = {row["recording"] for row in before}

    def _keep(self, again: Collection[str]) -> list[dict[str, Any]]:
        """Leaves in the tables what they hold of other recordings; returns the rows of ``recordings.csv``."""
        tables = {"recordings.csv": _summary_columns(self.classes), "segments.csv": _columns(self.classes)}
        rows = {name: self._others(name, columns, again) for name, columns in tables.items()}
        lines = self._other_lines(again)
        for name, columns in tables.items():
            self._write(name, [",".join(columns), *(_csv_line(row, columns) for row in rows[name])])
        self._write("segments.jsonl", lines)
        return rows["recordings.csv"]

    def _forget(self, name: str) -> None:
        """What an earlier command said of a recording makes way for what is said now."""
        if name in self._stale:
            self._stale.remove(name)
            self._used = {row["files"] for row in self._keep({name}) if row["files"]}

    def _lines(self, name: str) -> list[str]:
        """Of a table, as far as they were written to their end."""
        path = self.out / name
        return path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []

    def _others(self, name: str, columns: list[str], again: Collection[str]) -> list[dict[str, Any]]:
        """Rows of a table that are of other recordings."""
        import csv

        table = csv.DictReader(f"{line}\n" for line in self._lines(name))
        if list(table.fieldnames or columns) != columns:
            raise self._strange(name)
        return [row for row in table if row["recording"] not in again]

    def _other_lines(self, again: Collection[str]) -> list[str]:
        """Likewise, of the segments as JSON."""
        name = "segments.jsonl"
        try:
            return [line for line in self._lines(name) if json.loads(line)["recording"] not in again]
        except (ValueError, KeyError, TypeError):
            raise self._strange(name) from None

    def _strange(self, name: str) -> ValueError:
        return ValueError(f"--out {self.out}: its {name} is of another model, or something else; choose another folder")

    def _write(self, name: str, lines: list[str]) -> None:
        from mmemo.files import replacing

        with replacing(self.out / name) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, one: Analysis) -> None:
        from mmemo.export.analysis import draw
        from mmemo.files import replacing

        self._forget(one.name)
        rows = _rows(one)
        name = self._name(one)
        self.holds_any = True
        overall = {**_summary(one), "files": name}
        timeline = {"seconds": one.times, **dict(zip(self.classes, one.timeline.T.round(4), strict=True))}
        heard = one.timeline[:, 0] == one.timeline[:, 0]
        content = {
            **overall, "segments": rows,
            "timeline": {key: values[heard].tolist() for key, values in timeline.items()},
        }  # fmt: skip
        with replacing(self.out / f"{name}.json") as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        if self.picture:
            draw(one, self.out / f"{name}.png")
        for file_name, found in (
            ("recordings.csv", [_csv_line(overall, _summary_columns(self.classes))]),
            ("segments.csv", [_csv_line(row, _columns(self.classes)) for row in rows]),
            ("segments.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows]),
        ):
            with (self.out / file_name).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in found)

    def note(self, name: str, problem: str, channel: int | None = None) -> None:
        """A line of ``recordings.csv`` for what could not be analysed."""
        self._forget(name)
        row = {"recording": name, "channel": channel, "notes": problem}
        with (self.out / "recordings.csv").open("a", encoding="utf-8") as file:
            file.write(f"{_csv_line(row, _summary_columns(self.classes))}\n")

    def _name(self, one: Analysis) -> str:
        """Of its files: no other's, and short enough for a file system."""
        from mmemo.export.analysis import STDIN

        shown = one.name.replace(STDIN, "stdin", 1) if one.name.startswith(STDIN) else one.name
        encoded = Path(shown).name.replace(" ", "_").encode()[:200]
        stem = encoded.decode(errors="ignore") + ("" if one.channel is None else f"_channel{one.channel}")
        name, copy = stem, 1
        while name in self._used:
            copy += 1
            name = f"{stem}_copy{copy}"
        self._used.add(name)
        return name


def _summary_columns(classes: list[str]) -> list[str]:
    figures = ["seconds", "speech_seconds", "emotion", "unsure", *_prob_columns(classes)]
    return ["recording", "channel", *figures, "notes", "files"]


def _summary(one: Analysis) -> dict[str, Any]:
    return {
        "recording": one.name, "channel": one.channel, "seconds": round(one.seconds, 3),
        "speech_seconds": round(one.speech_seconds, 3), "emotion": one.emotion, "unsure": round(one.unsure, 4),
        **{f"prob_{name}": round(value, 4) for name, value in one.probabilities.items()}, "notes": "; ".join(one.notes),
    }  # fmt: skip
