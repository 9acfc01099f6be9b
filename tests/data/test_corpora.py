from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from mmemo.cli.app import main
from mmemo.data.corpora.cremad import cremad
from mmemo.data.corpora.emodb import emodb
from mmemo.data.corpora.goemotions import goemotions
from mmemo.data.corpora.meld import meld
from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.corpora.table import table
from mmemo.data.manifest import Manifest, ManifestError, read_manifest
from tests.conftest import CORPORA


def test_a_custom_table_needs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("file;label;who;mood\na.wav;joy;7;good\nb.wav;rage;8;bad\n")
    frame = table(
        path,
        {"path": "file", "emotion": "label", "speaker": "who"},
        {"language": "en"},
        {"emotion": {"joy": "happiness", "rage": "anger"}},
    )
    first, second = Manifest(frame, tmp_path / "m.csv")
    assert (first.id, first.emotion, first.speaker, first.language) == ("a", "happiness", "7", "en")
    assert first.extra == {"mood": "good"}
    assert second.path == tmp_path / "b.wav"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [({"path": "gone"}, r"no column \['gone'\], found"), ({"feeling": "file"}, r"columns maps \['feeling'\]")],
)
def test_an_invalid_column_map_is_rejected(tmp_path: Path, columns: dict[str, str], complaint: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("file,label\na.wav,joy\n")
    with pytest.raises(ManifestError, match=complaint):
        table(path, columns)


def test_the_input_table_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, out = tmp_path / "mine.csv", tmp_path / "out.csv"
    mine.write_text("name,mood,said\na,angry,leave\n")
    options = ["--columns", "id=name", "emotion=mood", "text=said", "--values", "emotion.angry=anger"]
    assert main(["corpus", "table", str(mine), *options, "--out", str(mine)]) == 1
    assert "would overwrite the input table" in capsys.readouterr().err
    assert mine.read_text() == "name,mood,said\na,angry,leave\n"
    assert main(["corpus", "table", str(mine), *options, "--out", str(out)]) == 0
    assert "was replaced" not in capsys.readouterr().err
    assert main(["corpus", "table", str(mine), *options, "--out", str(out)]) == 0
    assert "out.csv was replaced" in capsys.readouterr().err


def test_the_demo_corpus_is_complete() -> None:
    demo = Path(__file__).parent.parent.parent / "demo"
    frame = table(demo / "clips.csv", {"path": "file", "emotion": "label", "speaker": "voice", "split": "set"})
    manifest = Manifest(frame, demo / "m.csv")
    assert len(manifest) == 80
    assert all(utterance.path is not None and utterance.path.is_file() for utterance in manifest)
    assert sum(path.stat().st_size for path in (demo / "clips").iterdir()) < 4e6


@pytest.mark.corpora
def test_ravdess() -> None:
    manifest = Manifest(ravdess(CORPORA / "ravdess"))
    assert len(manifest) == 1440
    assert manifest.frame["speaker"].nunique() == 24
    assert manifest.frame["emotion"].value_counts().to_dict() == {
        "neutral": 96, "calm": 192, "happiness": 192, "sadness": 192,
        "anger": 192, "fear": 192, "disgust": 192, "surprise": 192,
    }  # fmt: skip
    assert manifest.frame.groupby("speaker")["gender"].nunique().max() == 1
    assert manifest.frame["text"].isna().all(), "Whisper writes the transcripts"


@pytest.mark.corpora
def test_emodb() -> None:
    manifest = Manifest(emodb(CORPORA / "emodb"))
    assert len(manifest) == 535
    assert manifest.frame["speaker"].nunique() == 10
    assert manifest.frame["emotion"].value_counts().to_dict() == {
        "anger": 127, "boredom": 81, "neutral": 79, "happiness": 71, "fear": 69, "sadness": 62, "disgust": 46
    }  # fmt: skip


@pytest.mark.corpora
def test_meld() -> None:
    manifest = Manifest(meld(CORPORA / "meld"))
    assert len(manifest) == 13708
    assert manifest.frame["split"].value_counts().to_dict() == {"train": 9989, "val": 1109, "test": 2610}
    assert manifest.frame["emotion"].notna().all()
    assert not manifest.frame["text"].str.contains("[\x80-\x9f]", regex=True).any()


@pytest.mark.corpora
def test_cremad_votes() -> None:
    manifest = Manifest(cremad(CORPORA / "cremad"))
    assert len(manifest) == 7442
    first = manifest[0]
    assert first.id == "1001_DFA_ANG_XX"
    votes = {name: count for name, count in first.extra.items() if name.startswith("votes_")}
    assert len(votes) == 6
    assert sum(votes.values()) > 4
    assert first.text == "Don't forget a jacket."
    face = Manifest(cremad(CORPORA / "cremad", "face"))
    assert (face.frame["votes_anger"] != manifest.frame["votes_anger"]).any()


def test_cremad_audio_layout(tmp_path: Path) -> None:
    (tmp_path / "AudioWAV").mkdir()
    (tmp_path / "AudioWAV" / "1001_IEO_ANG_HI.wav").touch()
    frame = cremad(tmp_path)
    assert frame["path"].tolist() == [str(tmp_path / "AudioWAV" / "1001_IEO_ANG_HI.wav")]
    assert pd.isna(frame["text"][0])


@pytest.mark.corpora
def test_spoken_words_as_a_custom_table(tmp_path: Path) -> None:
    frame = table(
        CORPORA / "spoken_words" / "spoken_words.csv",
        {"path": "file", "emotion": "emotion", "text": "text", "split": "split", "speaker": "file"},
        values={"emotion": {"joy": "happiness"}, "split": {"dev": "val"}},
    )
    manifest = read_manifest(Manifest(frame, CORPORA / "m.csv").write(tmp_path / "m.csv"))
    assert len(manifest) == 1274
    assert manifest[0].path is not None
    assert manifest[0].path.is_file()


@pytest.mark.corpora
def test_goemotions_has_votes_and_an_emotion_for_single_labels() -> None:
    frame = Manifest(goemotions(CORPORA / "goemotions"), "goemotions.csv").frame
    assert frame["split"].value_counts().to_dict() == {"train": 43410, "val": 5426, "test": 5427}
    votes = frame.filter(like="votes_").sum(axis="columns")
    assert (votes >= 1).all()
    assert (frame["emotion"].notna() == (votes == 1)).all()
    first = frame[frame["id"] == "eezlygj"].iloc[0]
    assert (first["emotion"], first["split"]) == ("anger", "train")


def test_trimming_removes_only_silence(tmp_path: Path) -> None:
    voice = 0.3 * np.sin(2 * np.pi * 220 * np.arange(16_000) / 16_000)
    clip = np.concatenate([np.zeros(8000), voice, np.zeros(16_000)])
    soundfile.write(tmp_path / "03-01-05-01-01-01-01.wav", clip, 16_000)
    assert main(["corpus", "ravdess", str(tmp_path), "--out", str(tmp_path / "m.csv"), "--trim-db", "35"]) == 0
    row = read_manifest(tmp_path / "m.csv")[0]
    assert row.start == pytest.approx(0.4, abs=0.05)
    assert row.end == pytest.approx(1.6, abs=0.05)
    assert main(["corpus", "ravdess", str(tmp_path), "--trim-db", "-3"]) == 1
