"""``mmemo analyze``."""

from __future__ import annotations

import inspect
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mmemo.cli.output import console, reject_option, warn
from mmemo.files import printable

if TYPE_CHECKING:
    from mmemo.export.analysis import Analysis, Transcriber
    from mmemo.export.analysis_folder import AnalysisFolder
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
    from mmemo.export.analysis_folder import AnalysisFolder
    from mmemo.export.runtime import Recognizer

    recognizer = Recognizer(model or student_folder(), int8, threads)
    transcriber = _transcriber(language) if transcript else None
    paths, num_failed = _list_files(audio)
    num_recordings = len(paths) + num_failed
    folder = None if out is None else AnalysisFolder.open(out, recognizer.classes, picture)
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
    folder: AnalysisFolder | None,
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
            else:
                warn("analyze", f"{analysis.title}: {analysis.problem}")
        if folder is not None:
            folder.add_all(analyses)
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
        from mmemo.export.analysis_folder import csv_line, segment_columns, segment_rows

        columns = segment_columns(self.classes)
        if self.format == "csv" and not self._has_header:
            print(",".join(columns))
            self._has_header = True
        for row in segment_rows(analysis):
            print(json.dumps(row, ensure_ascii=False) if self.format == "jsonl" else csv_line(row, columns))

    @staticmethod
    def _table(analysis: Analysis) -> None:
        from rich.table import Table
        from rich.text import Text

        from mmemo.export.timeline import format_time

        print(f"{analysis.title}: {analysis.speech_seconds:.1f} s of speech in {analysis.seconds:.1f} s")
        table = Table()
        table.add_column("from", justify="right")
        table.add_column("to", justify="right")
        table.add_column("emotion")
        table.add_column("probability", justify="right")
        has_text = any(segment.text is not None for segment in analysis.segments)
        if has_text:
            table.add_column("text")
        for segment in analysis.segments:
            cells = [
                format_time(segment.start), format_time(segment.end), segment.emotion, f"{segment.confidence:.2f}"
            ]  # fmt: skip
            table.add_row(*cells, *([Text(segment.text or "")] if has_text else []))  # Whisper's [sighs] is not markup
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
