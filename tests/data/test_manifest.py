from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mmemo.data.manifest import Manifest, ManifestError, private_columns, read_manifest, shown_columns


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_are_read_as_utterances(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "id,path,start,end,text,emotion,valence,speaker,mood\n"
        'a,clips/a.wav,0.5,1.5,"Hello, you",anger,-0.5,01,bad\n'
        "b,,,,only words,,,02,\n",
    )
    first, second = read_manifest(path)
    assert first.path == tmp_path / "clips/a.wav"
    assert (first.start, first.end, first.text, first.emotion) == (0.5, 1.5, "Hello, you", "anger")
    assert first.speaker == "01", "speakers stay text"
    assert first.valence == -0.5
    assert first.extra == {"mood": "bad"}, "unknown columns are kept"
    assert second.path is None
    assert second.emotion is None
    assert read_manifest(path)[1].text == "only words"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("x,a.wav,,,,angry ,,1,", "row 2, column emotion: found 'angry ', expected one of ('anger'"),
        ("x,a.wav,2,1,,anger,,1,", "row 2, column end: found '1', expected seconds after start"),
        ("x,a.wav,-1,,,anger,,1,", "row 2, column start: found '-1', expected seconds, 0 or more"),
        ("x,a.wav,soon,,,anger,,1,", "row 2, column start: found 'soon', expected a number"),
        ("x,a.wav,,,,anger,1.5,1,", "row 2, column valence: found '1.5', expected a number in [-1, 1]"),
        ("x,,,,,anger,,1,", "row 2, column path: found nothing, expected a path or a text"),
        (",a.wav,,,,anger,,1,", "row 2, column id: found nothing, expected a unique id"),
        ("x,a.wav,,,,anger,,1,\nx,b.wav,,,,anger,,1,", "row 3, column id: found 'x', expected an id that no other"),
        ("x,a.wav,,,,anger,,1,dev", "row 2, column split: found 'dev', expected one of ('train', 'val', 'test')"),
    ],
)
def test_an_invalid_value_is_reported_with_its_row_and_column(tmp_path: Path, row: str, complaint: str) -> None:
    path = write(tmp_path / "m.csv", f"id,path,start,end,text,emotion,valence,speaker,split\n{row}\n")
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert f"{path} {complaint}" in str(error.value)


def test_the_list_of_problems_is_limited(tmp_path: Path) -> None:
    rows = "".join(f"{number},a.wav,-1\n" for number in range(100))
    path = write(tmp_path / "m.csv", f"id,path,start\n{rows}")
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert "80 more" in lines[-1]


def test_an_unknown_label_is_reported_once_with_its_count(tmp_path: Path) -> None:
    rows = "".join(f"{number},a.wav,rage\n" for number in range(100))
    path = write(tmp_path / "m.csv", f"id,path,emotion\n{rows}")
    with pytest.raises(ManifestError, match="'rage' 100 times; `mmemo corpus table --values` renames them") as error:
        read_manifest(path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("gone.csv", None, "no such file"),
        ("empty.csv", b"", "empty, expected a header"),
        ("rows.csv", b"id,path\n", "no rows"),
        ("noid.csv", b"path,emotion\na.wav,anger\n", "no column id"),
        ("ragged.csv", b"id,path\na,b,c\n", "not a readable table"),
        ("latin.csv", "id,text\na,caf\xe9\n".encode("latin-1"), "not a readable table"),
        ("fake.parquet", b"not parquet", "not a readable table"),
        ("sheet.xlsx", b"PK", "expected a .csv or .parquet file"),
    ],
)
def test_unreadable_tables_are_rejected(tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=complaint) as error:
        read_manifest(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["copy.csv", "copy.parquet", "below/copy.csv"])
def test_a_written_manifest_reads_back_unchanged(tiny_corpus: Path, tmp_path: Path, name: str) -> None:
    manifest = read_manifest(tiny_corpus)
    copy = read_manifest(manifest.write(tmp_path / name))
    assert [utterance.id for utterance in copy] == [utterance.id for utterance in manifest]
    for ours, theirs in zip(copy, manifest, strict=True):
        assert ours.path is not None
        assert theirs.path is not None
        assert ours.path.resolve() == theirs.path.resolve()
        assert (ours.text, ours.emotion, ours.split) == (theirs.text, theirs.emotion, theirs.split)
    assert [path.name for path in (tmp_path / name).parent.iterdir() if "partial" in path.name] == []


def test_subset_keeps_the_given_order(tiny_corpus: Path) -> None:
    manifest = read_manifest(tiny_corpus)
    assert [row.id for row in manifest.subset([5, 1])] == [manifest[5].id, manifest[1].id]


def test_votes_are_numbers() -> None:
    frame = pd.DataFrame({"id": ["a"], "text": ["hi"], "votes_anger": ["3"]})
    assert Manifest(frame)[0].extra == {"votes_anger": 3.0}
    with pytest.raises(ManifestError, match="column votes_anger: found '-1', expected a vote count"):
        Manifest(frame.assign(votes_anger="-1"))


MILLION = """
import re, sys, time
from pathlib import Path
import pandas as pd
from mmemo.data.manifest import read_manifest
started = time.perf_counter()
manifest = read_manifest(sys.argv[1])
seconds = time.perf_counter() - started
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss starts at the parent's peak
started = time.perf_counter()
pd.read_csv(sys.argv[2], dtype=str)
print(len(manifest), seconds / (time.perf_counter() - started), int(peak[1]) / 1e6)
"""
"""Reads a manifest, and its rows as a CSV file with pandas: prints rows, the ratio of both times, and gigabytes."""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_reading_a_million_rows_takes_a_few_times_what_pandas_takes_and_two_gigabytes(
    tmp_path: Path, suffix: str
) -> None:
    numbers = pd.Series(range(1_000_000)).astype(str)
    frame = pd.DataFrame(
        {
            "id": "utterance" + numbers,
            "path": "clips/" + numbers + ".wav",
            "start": 0.0,
            "end": 2.5,
            "text": "some words that were said " + numbers,
            "emotion": "anger",
            "speaker": "speaker" + numbers.str[:3],
            "language": "en",
            "split": "train",
        }
    )
    path, csv = tmp_path / f"million{suffix}", tmp_path / "million.csv"
    frame.to_csv(csv, index=False)
    if suffix == ".parquet":
        frame.to_parquet(path)
    del frame
    command = [sys.executable, "-c", MILLION, path, csv]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows, ratio, gigabytes = map(float, output.split())
    assert rows == 1_000_000
    assert ratio < 6  # about 2 for .csv and 1 for .parquet
    assert gigabytes < 2


CHINESE = "\u6211\u771f\u7684\u4e0d\u77e5\u9053\u8be5\u600e\u4e48\u529e\u624d\u597d\u554a" * 2
"""A sentence without spaces counts as one word."""


def test_columns_of_sentences_or_file_names_are_private_and_codes_and_dates_are_not() -> None:
    size = 20
    frame = pd.DataFrame(
        {
            "id": [f"u{row}" for row in range(size)], "path": "x.wav", "text": "hello",
            "transcript": [f"no {row}" for row in range(size)],
            "heard": [f"I really do not know about {row}" for row in range(size)],
            "said": [CHINESE + str(row) for row in range(size)],
            "source": [f"clip{row}.flac" for row in range(size)], "folder": "/home/someone",
            "day": [f"0{row % 9 + 1}/06/2020" for row in range(size)], "code": ["A/01", "B/02"] * 10,
            "diagnosis": ["major depressive disorder", "no disorder at all"] * 10, "dose": range(size),
        }
    )  # fmt: skip
    manifest = Manifest(frame).frame
    assert set(private_columns(manifest)) == {
        "path", "start", "end", "channel", "text", "transcript", "heard", "said", "source", "folder",
    }  # fmt: skip
    assert shown_columns(manifest) == ["id", "day", "code", "diagnosis", "dose"]
    assert "heard" in shown_columns(manifest, ["heard"])
    assert "text" not in shown_columns(manifest, ["text"])
