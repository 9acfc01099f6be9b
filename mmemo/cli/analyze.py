"""``mmemo analyze``."""

from __future__ import annotations

import inspect
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mmemo.cli.output import console, reject_option, warn
from mmemo.files import printable

if TYPE_CHECKING:
    from mmemo.export.analysis import Analysis, Transcriber
    from mmemo.export.runtime import Recognizer


def analyze(
    audio: Annotated[list[str], Parameter(allow_leading_hyphen=True)],
    *,
    model: Path | None = None,
    out: str | None = None,
    format: Literal["table", "jsonl", "csv"] = "table",
    picture: bool = True,
    min_confidence: float = 0.4,
    separate_channels: bool = False,
    transcript: bool = False,
    language: str | None = None,
    int8: bool = True,
    threads: int = 0,
) -> int:
    """Predicts the emotions of clips, long recordings and folders, segment by segment.

    Speech is detected first. Each stretch of at most 15 s gets a prediction, and is marked unsure if no emotion is
    likely enough. With --out, tables of all recordings are written, and for each recording a JSON file (summary,
    segments and timeline) and a picture.

    Args:
        audio: Files, folders, or - for standard input.
        model: Folder of `mmemo export`. Defaults to the model that ships with mmemo.
        out: Folder for recordings.csv, segments.csv, segments.jsonl, and a JSON file and a picture of each recording;
            results of other recordings in it are kept.
        format: Output: a table to read, or one line per segment as JSON or CSV.
        picture: Whether --out gets pictures.
        min_confidence: Probability below which a segment is marked unsure, in [0, 1].
        separate_channels: Treat each channel as a speaker, counted from 0. By default channels are averaged.
        transcript: Also transcribe the speech with Whisper.
        language: Language of the speech for --transcript, such as en. By default it is detected.
        int8: Use the small model file; otherwise the one in full precision.
        threads: Processor threads; 0 lets onnxruntime decide.
    """
    if language is not None and not transcript:
        raise ValueError("--language is for the transcript; add --transcript")
    _check_paths(audio)
    if out is not None and str(out) in ("", "."):
        raise ValueError("--out: an empty path; is a shell variable empty?")
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"--min-confidence {min_confidence:g}: expected a probability, 0 to 1")
    from mmemo.export.analysis import student_folder
    from mmemo.export.runtime import Recognizer

    recognizer = Recognizer(model or student_folder(), int8, threads)
    transcriber = _transcriber(language) if transcript else None
    paths, num_failed = _list_files(audio)
    num_recordings = len(paths) + num_failed
    folder = None if out is None else _Folder(Path(out), recognizer.classes, picture)
    printer = _Printer(format, recognizer.classes)
    for path in paths:
        num_failed += not _analyze_file(
            path, recognizer, min_confidence, separate_channels, transcriber, printer, folder
        )
    sys.stdout.flush()
    if folder is not None and folder.has_results:
        print(f"Written: {out}", file=sys.stderr)
    if num_failed:
        warn("analyze", f"{num_failed} of {num_recordings} could not be analysed")
    return 1 if num_failed else 0


def _check_paths(audio: list[str]) -> None:
    """Checks the words of the command line that name recordings; an unknown option is one of them."""
    for name in audio:
        if not name:
            raise ValueError("AUDIO: an empty path; is a shell variable empty?")
        if name.startswith("-") and name != "-" and not Path(name).exists():
            known = [f"--{option.replace('_', '-')}" for option in inspect.signature(analyze).parameters]
            reject_option("analyze", name.partition("=")[0], known)
        if printable(name) != name:
            raise ValueError(
                f"{printable(name)}: the file name is not valid UTF-8; rename the file, or name its folder"
            )


def _analyze_file(
    path: Path,
    recognizer: Recognizer,
    min_confidence: float,
    separate_channels: bool,
    transcriber: Transcriber | None,
    printer: _Printer,
    folder: _Folder | None,
) -> bool:
    """Analyses one file and shows the result; returns whether it could be read."""
    from mmemo.audio.reader import AudioError
    from mmemo.export.analysis import analyze as analyze_recording
    from mmemo.progress import progress

    try:
        with progress(printable(path.name), None, unit="s") as advance:
            done = 0.0

            def report(seconds: float) -> None:
                nonlocal done
                advance(max(seconds - done, 0.0))
                done = seconds

            analyses = analyze_recording(path, recognizer, min_confidence, separate_channels, transcriber, report)
        for note in analyses[0].notes:
            warn("analyze", f"{path}: {note}")
        for analysis in analyses:
            if analysis.segments:
                printer.add(analysis)
                if folder is not None:
                    folder.add(analysis)
                continue
            problem = f"no speech in its {analysis.seconds:.1f} s"
            warn("analyze", f"{analysis.title}: {problem}")
            if folder is not None:
                folder.note(analysis.name, problem, analysis.channel)
    except BrokenPipeError:
        raise
    except (AudioError, OSError) as error:
        warn("analyze", str(error))
        if folder is not None:
            with suppress(OSError):  # the disk may be full
                folder.note(printable(path), printable(str(error)))
        return False
    return True


def _list_files(audio: list[str]) -> tuple[list[Path], int]:
    """Returns the files that are named or in named folders, and how many names could not be used."""
    from mmemo.audio.reader import AudioError
    from mmemo.export.analysis import list_audio_files

    paths: list[Path] = []
    num_failed = 0
    for name in audio:
        try:
            paths += list_audio_files([name])
        except (AudioError, OSError) as error:
            warn("analyze", str(error))
            num_failed += 1
    return paths, num_failed


class _Printer:
    """Prints analyses in the chosen format."""

    def __init__(self, format: str, classes: list[str]) -> None:
        self.format = format
        self.classes = classes
        self._has_header = False

    def add(self, analysis: Analysis) -> None:
        if self.format == "table":
            self._table(analysis)
            return
        columns = _segment_columns(self.classes)
        if self.format == "csv" and not self._has_header:
            print(",".join(columns))
            self._has_header = True
        for row in _segment_rows(analysis):
            print(json.dumps(row, ensure_ascii=False) if self.format == "jsonl" else _csv_line(row, columns))

    @staticmethod
    def _table(analysis: Analysis) -> None:
        from rich.table import Table
        from rich.text import Text

        from mmemo.export.analysis import format_time

        print(f"{analysis.title}: {analysis.speech_seconds:.1f} s of speech in {analysis.seconds:.1f} s")
        table = Table()
        table.add_column("from", justify="right")
        table.add_column("to", justify="right")
        table.add_column("emotion")
        table.add_column("probability", justify="right")
        has_words = any(segment.text is not None for segment in analysis.segments)
        if has_words:
            table.add_column("words")
        for segment in analysis.segments:
            cells = [
                format_time(segment.start), format_time(segment.end), segment.emotion, f"{segment.confidence:.2f}"
            ]  # fmt: skip
            table.add_row(*cells, *([Text(segment.text or "")] if has_words else []))  # Whisper's [sighs] is not markup
        console().print(table)
        means = sorted(analysis.probabilities.items(), key=lambda item: -item[1])
        listing = ", ".join(f"{name} {mean:.2f}" for name, mean in means if mean >= 0.005)
        unsure = f"unsure in {100 * analysis.unsure:.0f} %"
        print(f"Overall: {analysis.emotion}. Mean probability over the speech: {listing}; {unsure}")


def _transcriber(language: str | None) -> Transcriber:
    from mmemo.data.transcripts import OpenAIWhisper, check_language

    if language is not None:
        check_language(language)
    whisper = OpenAIWhisper(language=language)
    return lambda waveforms: [transcript.text for transcript in whisper(waveforms)]


def _segment_columns(classes: list[str]) -> list[str]:
    return ["recording", "channel", "start", "end", "emotion", "confidence", *_prob_columns(classes), "text"]


def _prob_columns(classes: list[str]) -> list[str]:
    return [f"prob_{name}" for name in classes]


def _segment_rows(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "recording": analysis.name, "channel": analysis.channel, "start": segment.start, "end": segment.end,
            "emotion": segment.emotion, "confidence": round(segment.confidence, 4),
            **{f"prob_{name}": round(value, 4) for name, value in segment.probabilities.items()},
            **({} if segment.text is None else {"text": segment.text}),
        }
        for segment in analysis.segments
    ]  # fmt: skip


def _csv_line(row: dict[str, Any], columns: list[str]) -> str:
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([row.get(name, "") for name in columns])
    return line.getvalue()


class _Folder:
    """Writes results recording by recording, so that a killed command loses none that was finished.

    Args:
        out: Folder; results of other recordings in it are kept.
        classes: Classes of the model.
        picture: Whether each recording gets a picture.
    """

    def __init__(self, out: Path, classes: list[str], picture: bool) -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out}: is a file, expected a folder")
        self.out = out
        self.classes = classes
        self.picture = picture
        self.has_results = False
        try:
            out.mkdir(parents=True, exist_ok=True)
            previous = self._keep(set())  # all but an incomplete last line
        except OSError as error:  # now, not after an hour of analysis
            raise ValueError(f"--out {out}: cannot be written to ({error.strerror})") from None
        self._used = {row["files"] for row in previous if row["files"]}
        self._stale = {row["recording"] for row in previous}

    def _keep(self, again: set[str]) -> list[dict[str, Any]]:
        """Removes recordings from the tables; returns the remaining rows of ``recordings.csv``."""
        tables = {"recordings.csv": _summary_columns(self.classes), "segments.csv": _segment_columns(self.classes)}
        rows = {name: self._others(name, columns, again) for name, columns in tables.items()}
        lines = self._other_lines(again)
        for name, columns in tables.items():
            self._write(name, [",".join(columns), *(_csv_line(row, columns) for row in rows[name])])
        self._write("segments.jsonl", lines)
        return rows["recordings.csv"]

    def _forget(self, name: str) -> None:
        """Removes the results of an earlier command for a recording that is analysed again."""
        if name in self._stale:
            self._stale.remove(name)
            self._used = {row["files"] for row in self._keep({name}) if row["files"]}

    def _lines(self, name: str) -> list[str]:
        """Returns the complete lines of a table."""
        path = self.out / name
        return path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []

    def _others(self, name: str, columns: list[str], again: set[str]) -> list[dict[str, Any]]:
        """Returns the rows of a CSV table that belong to other recordings."""
        import csv

        table = csv.DictReader(f"{line}\n" for line in self._lines(name))
        if list(table.fieldnames or columns) != columns:
            raise self._strange(name)
        return [row for row in table if row["recording"] not in again]

    def _other_lines(self, again: set[str]) -> list[str]:
        """Returns the lines of the JSON segments that belong to other recordings."""
        name = "segments.jsonl"
        try:
            return [line for line in self._lines(name) if json.loads(line)["recording"] not in again]
        except (ValueError, KeyError, TypeError):
            raise self._strange(name) from None

    def _strange(self, name: str) -> ValueError:
        return ValueError(f"--out {self.out}: its {name} belongs to another model or program; choose another folder")

    def _write(self, name: str, lines: list[str]) -> None:
        from mmemo.files import write_text

        write_text(self.out / name, "".join(f"{line}\n" for line in lines))

    def add(self, analysis: Analysis) -> None:
        from mmemo.export.analysis import draw
        from mmemo.files import write_text

        self._forget(analysis.name)
        rows = _segment_rows(analysis)
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
            draw(analysis, self.out / f"{name}.png")
        for file_name, lines in (
            ("recordings.csv", [_csv_line(summary, _summary_columns(self.classes))]),
            ("segments.csv", [_csv_line(row, _segment_columns(self.classes)) for row in rows]),
            ("segments.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows]),
        ):
            with (self.out / file_name).open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def note(self, name: str, problem: str, channel: int | None = None) -> None:
        """Adds a line to ``recordings.csv`` for a recording without results."""
        self._forget(name)
        row = {"recording": name, "channel": channel, "notes": problem}
        with (self.out / "recordings.csv").open("a", encoding="utf-8") as file:
            file.write(f"{_csv_line(row, _summary_columns(self.classes))}\n")

    def _file_name(self, analysis: Analysis) -> str:
        """Returns an unused name for a recording's files, short enough for a file system."""
        from mmemo.export.analysis import STDIN

        name = analysis.name
        shown = name.replace(STDIN, "stdin", 1) if name.startswith(STDIN) else name
        encoded = Path(shown).name.replace(" ", "_").encode()[:200]
        channel = "" if analysis.channel is None else f"_channel{analysis.channel}"
        stem = encoded.decode(errors="ignore") + channel
        unused, copy = stem, 1
        while unused in self._used:
            copy += 1
            unused = f"{stem}_copy{copy}"
        self._used.add(unused)
        return unused


def _summary_columns(classes: list[str]) -> list[str]:
    values = ["seconds", "speech_seconds", "emotion", "unsure", *_prob_columns(classes)]
    return ["recording", "channel", *values, "notes", "files"]


def _summary(analysis: Analysis) -> dict[str, Any]:
    return {
        "recording": analysis.name, "channel": analysis.channel, "seconds": round(analysis.seconds, 3),
        "speech_seconds": round(analysis.speech_seconds, 3), "emotion": analysis.emotion,
        "unsure": round(analysis.unsure, 4),
        **{f"prob_{name}": round(value, 4) for name, value in analysis.probabilities.items()},
        "notes": "; ".join(analysis.notes),
    }  # fmt: skip
