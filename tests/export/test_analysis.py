from __future__ import annotations

import io
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile

from mmemo.audio.reader import AudioError, read_audio
from mmemo.audio.speech import detect_speech, read_blocks
from mmemo.cli.analyze import _Printer
from mmemo.cli.app import main
from mmemo.export.analysis import (
    Segment,
    analyze,
    list_audio_files,
    summarize,
)
from mmemo.export.onnx import export_onnx
from mmemo.export.timeline import MAX_PLOT_POINTS, UNSURE, draw_timeline, format_time
from tests.conftest import CLASSES, ROOT
from tests.export.test_onnx import SECONDS, clips, student

SPEECH_FILES = sorted((ROOT / "demo" / "clips").glob("*.flac")) or sorted((ROOT / "demo" / "clips").glob("*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "student"
    export_onnx(student(), path, clips(*SECONDS))
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four spoken sentences with two seconds of silence around each."""
    pause = np.zeros(32_000, dtype=np.float32)
    parts = [part for path in SPEECH_FILES[:4] for part in (pause, read_audio(path))]
    path = tmp_path_factory.mktemp("recording") / "talk.wav"
    soundfile.write(path, np.concatenate([*parts, pause]), 16_000)
    return path


def test_speech_is_detected_where_it_is(recording: Path) -> None:
    waveform = read_audio(recording)
    segments = list(detect_speech([waveform]))
    expected, position = [], 0.0
    for path in SPEECH_FILES[:4]:
        length = len(read_audio(path)) / 16_000
        expected.append((position + 2.0, position + 2.0 + length))
        position += 2.0 + length
    assert len(segments) == 4
    for segment, (start, end) in zip(segments, expected, strict=True):
        assert start - 0.3 < segment.start < segment.end < end + 0.3
        first = round(segment.start * 16_000)
        np.testing.assert_array_equal(segment.waveform, waveform[first : first + len(segment.waveform)])
    from_pieces = list(detect_speech(np.array_split(waveform, 57)))
    assert [segment.start for segment in from_pieces] == [segment.start for segment in segments]


def test_a_truncated_mp3_is_an_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "whole.mp3", 0.1 * random.standard_normal(60 * 44_100), 44_100)
    content = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 3])
    assert sum(map(len, read_blocks(tmp_path / "whole.mp3"))) == pytest.approx(60 * 16_000, rel=0.01)
    lengths: list[int] = []
    with pytest.raises(AudioError, match="truncated"):
        lengths.extend(map(len, read_blocks(tmp_path / "cut.mp3")))
    assert sum(lengths) < 25 * 16_000


def test_a_long_segment_is_split_without_loss() -> None:
    waveform = np.concatenate([read_audio(path) for path in SPEECH_FILES[:12]])
    segments = list(detect_speech([waveform], max_seconds=2.0, min_silence_seconds=3.0))
    assert max(len(segment.waveform) for segment in segments) <= 2.1 * 16_000
    for before, after in itertools.pairwise(segments):
        assert after.start == pytest.approx(before.end, abs=1e-6)
    joined = np.concatenate([segment.waveform for segment in segments])
    first = round(segments[0].start * 16_000)
    np.testing.assert_array_equal(joined, waveform[first : first + len(joined)])
    assert len(joined) > 0.95 * len(waveform)


def test_blocks_join_to_the_file_at_any_sampling_rate(tmp_path: Path) -> None:
    waveform = clips(25.0)[0]
    soundfile.write(tmp_path / "a.flac", np.stack([waveform, 0 * waveform], 1), 16_000, subtype="PCM_24")
    blocks = list(read_blocks(tmp_path / "a.flac", channel=0))
    assert len(blocks) == 3
    np.testing.assert_allclose(np.concatenate(blocks), waveform, atol=1e-5)
    for rate in (8_000, 48_000):
        import soxr

        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, soxr.resample(waveform, 16_000, rate), rate)
        assert sum(map(len, read_blocks(path))) == pytest.approx(len(waveform), abs=20)
    with pytest.raises(AudioError, match="has 2 channels, yet channel 2"):
        list(read_blocks(tmp_path / "a.flac", channel=2))


def test_means_and_timeline_follow_from_the_segments() -> None:
    sure = dict(zip(CLASSES, (0.8, 0.1, 0.1), strict=True))
    unsure = dict(zip(CLASSES, (0.34, 0.33, 0.33), strict=True))
    segments = [Segment(0, 3, "anger", 0.8, sure), Segment(10, 11, UNSURE, 0.34, unsure)]
    analysis = summarize("talk", None, 60.0, segments, CLASSES, np.zeros(600, dtype=np.float32))
    assert analysis.speech_seconds == 4
    assert analysis.probabilities["anger"] == pytest.approx((3 * 0.8 + 0.34) / 4)
    assert analysis.unsure == 0.25
    assert analysis.emotion == "anger"
    assert analysis._replace(unsure=0.6).emotion == UNSURE
    assert analysis.timeline.shape == (121, 3)
    assert analysis.timeline[0, 0] > analysis.timeline[7, 0] > analysis.timeline[20, 0] >= 0.34, (
        "smooth between segments"
    )
    assert np.isnan(analysis.timeline[[10, 50, 120]]).all(), "no value in a pause"
    rows = analysis.timeline[~np.isnan(analysis.timeline[:, 0])]
    np.testing.assert_allclose(rows.sum(1), 1)


def test_each_channel_can_be_a_speaker(folder: Path, recording: Path, tmp_path: Path) -> None:
    waveform = read_audio(recording)
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([waveform, np.roll(waveform, 8000)], 1), 16_000)
    left, right = analyze(path, folder, separate_channels=True)
    assert (left.channel, right.channel) == (0, 1)
    assert left.title == f"{path}, channel 0"
    assert right.segments[0].start == pytest.approx(left.segments[0].start + 0.5, abs=0.1)
    (averaged,) = analyze(path, folder)
    assert "its 2 channels were averaged" in averaged.notes[0]
    assert left.notes == ()
    soundfile.write(path, np.stack([waveform, -waveform], 1), 16_000)
    with pytest.raises(AudioError, match=r"no speech in its .* s; its 2 channels were averaged"):
        analyze(path, folder)


def test_an_unknown_short_option_is_reported_before_any_analysis(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(recording), "-o", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert "unknown option -o" in output.err
    assert output.out == ""
    for options in (["--model"], ["--min-confidence", "--out", "x"]):
        assert main(["analyze", str(recording), *options]) == 2
        assert options[0] in capsys.readouterr().err
    phone = tmp_path / "memo.m4a"
    phone.write_bytes(b"\0\0\0\x20ftypM4A " * 100)
    assert main(["analyze", str(phone)]) == 1
    assert "`ffmpeg -i memo.m4a memo.wav`" in capsys.readouterr().err


def test_a_channel_without_speech_is_reported(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waveform = read_audio(recording)
    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([waveform, 0 * waveform], 1), 16_000)
    options = ["--separate-channels", "--model", str(folder), "--format", "jsonl", "--out", str(tmp_path / "o")]
    assert main(["analyze", str(path), *options]) == 0
    output = capsys.readouterr()
    assert f"{path}, channel 1: no speech in its" in output.err
    assert {json.loads(line)["channel"] for line in output.out.splitlines()} == {0}
    table = pd.read_csv(tmp_path / "o" / "recordings.csv")
    assert table["channel"].tolist() == [0, 1]
    assert "no speech" in table["notes"][1]
    assert analyze(path, folder, separate_channels=True)[1].emotion == UNSURE


def test_a_low_sampling_rate_is_reported(folder: Path, recording: Path, tmp_path: Path) -> None:
    import soxr

    path = tmp_path / "telephone.wav"
    soundfile.write(path, soxr.resample(read_audio(recording), 16_000, 8_000), 8_000)
    (analysis,) = analyze(path, folder)
    assert "recorded at 8000 Hz, so it has nothing above 4 kHz" in analysis.notes[0]


def test_the_plot_of_a_long_recording_is_downsampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    sure = dict(zip(CLASSES, (0.8, 0.1, 0.1), strict=True))
    segments = [Segment(5.0 * n, 5.0 * n + 3, "anger", 0.8, sure) for n in range(2000)]
    hours = summarize("talk.wav", None, 10_800.0, segments, CLASSES, np.ones(108_000, dtype=np.float32))
    widths = []
    fill = Axes.fill_between
    monkeypatch.setattr(Axes, "fill_between", lambda self, x, *a, **k: (widths.append(len(x)), fill(self, x, *a, **k)))
    draw_timeline(hours, tmp_path / "hours.png")
    assert widths == [MAX_PLOT_POINTS] * (1 + len(CLASSES))
    short = hours._replace(seconds=20.0, times=hours.times[:41], timeline=hours.timeline[:41], segments=segments[:4])
    draw_timeline(short, tmp_path / "short.png")
    assert widths[-1] == 41
    assert (tmp_path / "hours.png").stat().st_size > 10_000


def test_times_are_formatted_as_clocks() -> None:
    assert [format_time(seconds) for seconds in (0, 59.96, 61.25, 3599.99, 7325.5)] == [
        "0:00.0",
        "1:00.0",
        "1:01.2",
        "1:00:00.0",
        "2:02:05.5",
    ]
    assert [format_time(seconds, digits=0) for seconds in (0, 75, 3600)] == ["0:00", "1:15", "1:00:00"]


def test_a_long_file_name_and_options_in_any_order_are_accepted(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / f"{'x' * 245}.wav"
    long.write_bytes(recording.read_bytes())
    out = tmp_path / "out"
    arguments = ["--format", "csv", str(long), "--model", str(folder), str(recording), "--out", str(out)]
    assert main(["analyze", *arguments]) == 0, "options may come before the files"
    table = pd.read_csv(out / "recordings.csv")
    assert table["recording"].tolist() == [str(long), str(recording)]
    assert len(list(out.glob("*.png"))) == 2
    capsys.readouterr()
    (tmp_path / "file").touch()
    assert main(["analyze", str(recording), "--model", str(folder), "--out", str(tmp_path / "file" / "o")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_the_command_writes_all_files_and_reports_failures(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent, text = tmp_path / "silent.wav", tmp_path / "text.wav"
    soundfile.write(silent, np.zeros(48_000), 16_000)
    text.write_text("no audio")
    out = tmp_path / "out"
    arguments = [str(silent), str(recording), str(text), str(tmp_path / "none.wav")]
    options = ["--model", str(folder), "--out", str(out), "--min-confidence", "0", "--threads", "1"]
    assert main(["analyze", *arguments, *options]) == 1
    output = capsys.readouterr()
    assert f"{silent}: no speech in its 3.0 s" in output.err
    assert f"{text}: not readable audio" in output.err
    assert "none.wav: no such file" in output.err
    assert "3 of 4 could not be analysed" in output.err
    assert "talk.wav" in output.out
    table = pd.read_csv(out / "segments.csv")
    assert len(table) == 4
    assert set(table["emotion"]) <= set(CLASSES)
    lines = [json.loads(line) for line in (out / "segments.jsonl").read_text().splitlines()]
    assert [line["start"] for line in lines] == table["start"].tolist()
    content = json.loads((out / "talk.wav.json").read_text())
    assert sum(content[f"prob_{name}"] for name in CLASSES) == pytest.approx(1, abs=1e-3)
    assert set(content["timeline"]) == {"seconds", *CLASSES}
    assert len(content["timeline"]["seconds"]) == len(content["timeline"]["anger"]) > 5
    overall = pd.read_csv(out / "recordings.csv")
    assert overall["emotion"].dropna().tolist() == [content["emotion"]]
    assert sorted(overall["recording"]) == sorted(arguments), "failed recordings have a row"
    assert "no speech" in overall.loc[overall["recording"] == str(silent), "notes"].item()
    assert f"Overall: {content['emotion']}." in output.out
    assert (out / "talk.wav.png").stat().st_size > 10_000


def test_unreadable_files_are_reported_and_the_others_analysed(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, out = tmp_path / "odd", tmp_path / "out"
    inside.mkdir()
    content = recording.read_bytes()
    strange = os.fsdecode(os.fsencode(inside / "caf") + b"\xe9.wav")
    for name in (strange, inside / "cost $x_$ of.wav", inside / "zz.wav"):
        Path(name).write_bytes(content)
    (inside / "call.raw").write_bytes(content)  # not listed from a folder
    (inside / "memo.m4a").write_bytes(bytes(range(256)) * 8)
    arguments = ["analyze", str(inside), str(inside / "call.raw"), "--model", str(folder), "--out", str(out)]
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert "memo.m4a: not readable audio" in errors
    assert "ffmpeg" in errors
    assert "call.raw: not readable audio" in errors
    assert "2 of 5 could not be analysed" in errors
    table = pd.read_csv(out / "recordings.csv")
    assert table["emotion"].notna().sum() == 3
    assert table["recording"].str.contains("caf").sum() == 1
    assert len(list(out.glob("*.png"))) == 3
    assert main(["analyze", strange, "--model", str(folder)]) == 1
    assert "the file name is not valid UTF-8; rename the file, or name its folder" in capsys.readouterr().err


def test_a_transcript_is_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[laughs] hello [/b] then"
    segments = [Segment(0, 2, "anger", 0.9, {"anger": 0.9}, text)]
    _Printer("table", ["anger"]).add(summarize("talk", None, 2.0, segments, ["anger"], np.zeros(20)))
    assert text in capsys.readouterr().out


def test_the_output_folder_keeps_other_recordings(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "elsewhere" / recording.name
    other.parent.mkdir()
    other.write_bytes(recording.read_bytes())
    options = ["--model", str(folder), "--out", str(out)]
    for path in (recording, other, recording):
        assert main(["analyze", str(path), *options]) == 0
    assert main(["analyze", str(tmp_path / "none.wav"), *options]) == 1
    table = pd.read_csv(out / "recordings.csv")
    assert sorted(table["recording"]) == sorted(map(str, (recording, other, tmp_path / "none.wav")))
    assert table["files"].nunique() == 2
    assert len(pd.read_csv(out / "segments.csv")) == 8
    assert len((out / "segments.jsonl").read_text().splitlines()) == 8
    for name in ("segments.csv", "segments.jsonl"):  # as after a killed command
        with (out / name).open("a") as file:
            file.write('{"recording": "torn')
    assert main(["analyze", str(recording), *options]) == 0
    assert len((out / "segments.jsonl").read_text().splitlines()) == 8
    (out / "recordings.csv").write_text("mine\n1\n")
    assert main(["analyze", str(recording), *options]) == 1
    assert "its recordings.csv belongs to another model or program" in capsys.readouterr().err
    assert (out / "recordings.csv").read_text() == "mine\n1\n"
    for arguments in (["", "--model", str(folder)], [str(recording), "--out", ""], [str(recording), "--out="]):
        assert main(["analyze", *arguments]) == 1
        assert "empty path" in capsys.readouterr().err


def test_low_confidence_is_unsure_in_every_format(
    folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(folder), "--min-confidence", "1", "--format"]
    assert main(["analyze", str(recording), *options, "csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert set(table["emotion"]) == {UNSURE}
    assert main(["analyze", str(recording), *options, "jsonl"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first["start"] == table["start"].iat[0]


def test_standard_input_is_analysed(
    folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(recording.read_bytes())))
    assert main(["analyze", "-", "--model", str(folder), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["recording"] == "-"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert main(["analyze", "-", "--model", str(folder)]) == 1
    assert "standard input: empty" in capsys.readouterr().err
    half = recording.read_bytes()[: recording.stat().st_size // 2]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(half)))
    assert main(["analyze", "-", "--model", str(folder)]) == 1
    assert "standard input: truncated" in capsys.readouterr().err


def test_a_folder_is_expanded_to_its_audio_files(folder: Path, recording: Path, tmp_path: Path) -> None:
    assert list_audio_files([recording.parent, "-"]) == [recording, Path("-")]
    with pytest.raises(AudioError, match="a folder without audio"):
        list_audio_files([tmp_path])


def test_wrong_arguments_are_reported(folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, code, message in (
        ([], 2, "audio"),
        (["--format", "csv"], 2, "audio"),
        ([str(folder / "none"), str(recording.parent / ("x" * 300))], 1, "2 of 2 could not be analysed"),
        ([str(recording), "--model", str(recording.parent)], 1, "lacks config.json"),
        ([str(recording), "--model", str(folder), "--min-confidence", "2"], 1, "expected a probability"),
        ([str(recording), "--model", str(folder), "--language", "en"], 1, "add --transcript"),
    ):
        assert main(["analyze", *options]) == code
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.weights
def test_segments_are_transcribed_on_request(folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", str(folder), "--transcript", "--language", "en", "--format", "jsonl"]
    assert main(["analyze", str(recording), *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(len(line["text"].split()) for line in lines) >= 8


def test_python_writes_the_same_folder_as_the_command_line(folder: Path, recording: Path, tmp_path: Path) -> None:
    assert main(["analyze", str(recording), "--model", str(folder), "--out", str(tmp_path / "verb")]) == 0
    analyze(recording, folder, out=tmp_path / "python")
    names = sorted(path.name for path in (tmp_path / "verb").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "python").iterdir())
    for name in ("recordings.csv", "segments.csv", "segments.jsonl"):
        assert (tmp_path / "verb" / name).read_text() == (tmp_path / "python" / name).read_text()
